"""Separation and CKA: equal to scikit-learn and to closed forms, invariant as they should be, and right on a model's states."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from tests.model_folders import model_folder, tokenizer
from trueline.errors import TruelineError
from trueline.measure import _geometry as geometry
from trueline.measure._layers import layer_weights, sparsemax
from trueline.measure.cka import alignment, cka
from trueline.measure.separation import separation
from trueline.measuring import Request, measure

pytestmark = pytest.mark.slow


def by_name(readings):
    return {r.name: r for r in readings}


def clouds(sizes=(40, 60), apart=1.0, width=6, layers=3, seed=0):
    """Two normal clouds a layer, further apart in later layers: activations and labels."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], sizes)
    points = rng.normal(size=(sum(sizes), layers, width)) * np.linspace(0.5, 2, width)
    points[:, :, 0] += apart * label[:, None] * np.arange(1, layers + 1)
    return points, label.tolist()


def test_indices_are_scikit_learns():
    points, label = clouds()
    found = by_name(separation(points, label))
    last = points[:, -1]
    assert found["calinski_harabasz"].value == pytest.approx(calinski_harabasz_score(last, label), rel=1e-9)
    assert found["davies_bouldin"].value == pytest.approx(davies_bouldin_score(last, label), rel=1e-9)
    assert found["silhouette"].value == pytest.approx(silhouette_score(last, label), rel=1e-9)
    assert [i["layer"] for i in found["aqi"].items] == [1, 2, 3]
    assert found["aqi"].items[0]["calinski_harabasz"] == pytest.approx(calinski_harabasz_score(points[:, 0], label))
    assert by_name(separation(points, label, layer=1))["aqi"].value == pytest.approx(found["aqi"].items[0]["aqi"])


def test_indices_of_three_labels_are_scikit_learns_too():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1, 2], 30)
    points = rng.normal(size=(90, 1, 4)) + label[:, None, None] * [1.0, 0.5, 0, 0]
    found = by_name(separation(points, label.tolist()))
    assert found["calinski_harabasz"].value == pytest.approx(calinski_harabasz_score(points[:, 0], label))
    assert found["davies_bouldin"].value == pytest.approx(davies_bouldin_score(points[:, 0], label))
    means = np.stack([points[label == k, 0].mean(0) for k in range(3)])
    within = sum(((points[label == k, 0] - means[k]) ** 2).sum() for k in range(3))
    nearest = min(((means[a] - means[b]) ** 2).sum() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert found["xie_beni"].value == pytest.approx(within / (90 * nearest))
    assert "bhattacharyya" not in found  # of two laws only


@pytest.mark.parametrize("sizes", [(40, 60), (50, 50), (7, 90)])
def test_calinski_harabasz_times_xie_beni_is_fixed_by_the_class_sizes(sizes):
    points, label = clouds(sizes)
    found = by_name(separation(points, label))
    n = sum(sizes)
    product = found["calinski_harabasz"].value * found["xie_beni"].value
    assert product == pytest.approx(sizes[0] * sizes[1] * (n - 2) / n**2, rel=1e-6)


def test_dunn_is_the_smallest_distance_between_over_the_largest_within():
    points = np.array([[0.0], [1.0], [4.0], [6.0]])
    assert geometry.dunn(points, np.array([0, 0, 1, 1])) == pytest.approx(3 / 2)


def test_aqi_is_hand_computed_on_six_points():
    points = np.array([[-1.0], [0.0], [1.0], [9.0], [10.0], [11.0]])[:, None]
    found = by_name(separation(points, list("aaabbb"), gamma=0.25, ridge=0.0))
    ch, xb = 150 / (4 / 4), 4 / (6 * 100)
    assert found["calinski_harabasz"].value == pytest.approx(ch)
    assert found["xie_beni"].value == pytest.approx(xb)
    assert found["aqi"].value == pytest.approx(0.25 * ch / (ch + 6) + 0.75 / (1 + xb))
    db, di = (2 / 3 + 2 / 3) / 10, 8 / 2
    assert found["aqi_db_dunn"].value == pytest.approx(0.25 / (1 + db) + 0.75 * di / (1 + di))


def test_indices_do_not_change_with_rotation_shift_and_scale_even_far_from_the_origin():
    points, label = clouds()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    moved = (points @ rotation) * 17.0 + 1e8
    plain, other = by_name(separation(points, label)), by_name(separation(moved, label))
    assert {n: r.value for n, r in other.items()} == {n: pytest.approx(r.value, rel=1e-5) for n, r in plain.items()}


def test_aqi_tends_to_one_as_the_sets_part_and_random_labels_give_a_calinski_harabasz_of_one():
    values = [by_name(separation(*clouds(apart=a)))["aqi"].value for a in (0.0, 1.0, 10.0, 1000.0)]
    assert values == sorted(values) and values[0] < 0.15 and values[-1] > 0.99
    points, label = clouds(apart=3.0)
    rng = np.random.default_rng(0)
    permuted = [
        by_name(separation(points[:, -1:], rng.permutation(label).tolist(), sample=4))["calinski_harabasz"].value
        for _ in range(40)
    ]
    assert np.mean(permuted) == pytest.approx(1.0, abs=0.35)


def test_the_interval_of_aqi_holds_the_value_of_a_large_sample():
    large = by_name(separation(*clouds((20_000, 20_000), apart=2.0, layers=1), sample=4))["aqi"].value
    inside = 0
    for seed in range(100):
        reading = by_name(separation(*clouds((60, 60), apart=2.0, layers=1, seed=seed + 1), sample=4))["aqi"]
        inside += reading.low <= large <= reading.high
    assert inside >= 90  # of 100


# ---- Bhattacharyya ---------------------------------------------------------------------------------------------------


def test_bhattacharyya_is_its_closed_forms():
    one = np.array([[[2.0]], [[2.0]]])
    assert geometry.bhattacharyya(np.array([[0.0], [3.0]]), one) == pytest.approx(9 / 2 / 8)
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.normal(size=(2, 2, 2)))
    mean, cov = rng.normal(size=(2, 2)), np.stack([a, b])
    middle, d = (a + b) / 2, mean[1] - mean[0]
    expected = d @ np.linalg.inv(middle) @ d / 8 + 0.5 * math.log(
        np.linalg.det(middle) / math.sqrt(np.linalg.det(a) * np.linalg.det(b))
    )
    assert geometry.bhattacharyya(mean, cov) == pytest.approx(expected)
    assert geometry.bhattacharyya(mean[::-1], cov[::-1]) == pytest.approx(expected)
    assert geometry.bhattacharyya(mean[[0, 0]], cov[[0, 0]]) == pytest.approx(0.0, abs=1e-12)
    affine = rng.normal(size=(2, 2))
    moved = geometry.bhattacharyya(mean @ affine.T + 5, affine @ cov @ affine.T)
    assert moved == pytest.approx(expected)


def test_the_plane_is_scikit_learns_pca_on_the_union():
    from sklearn.decomposition import PCA

    points, label = clouds()
    flat = PCA(2).fit_transform(points[:, -1])
    sides = [flat[np.array(label) == k] for k in (0, 1)]
    expected = geometry.bhattacharyya(np.stack([s.mean(0) for s in sides]), np.stack([np.cov(s.T) for s in sides]))
    found = by_name(separation(points, label))
    assert found["bhattacharyya"].value == pytest.approx(expected)
    assert found["bhattacharyya_coefficient"].value == pytest.approx(math.exp(-expected))
    assert 0 < found["bhattacharyya_coefficient"].value <= 1
    assert found["bhattacharyya"].low < expected < found["bhattacharyya"].high
    assert found["silhouette_plane"].value == pytest.approx(silhouette_score(flat, label))


def test_texts_on_a_line_are_refused_and_a_ridge_helps():
    points = np.zeros((8, 1, 3))
    points[:, 0, 0] = [0, 1, 2, 3, 10, 11, 12, 13]
    with pytest.raises(TruelineError, match="lie on a line"):
        separation(points, [0] * 4 + [1] * 4)
    assert by_name(separation(points, [0] * 4 + [1] * 4, ridge=1e-6))["bhattacharyya"].value > 1


# ---- layers, groups, memory ------------------------------------------------------------------------------------------


def test_sparsemax_is_the_projection_on_the_simplex():
    assert sparsemax(np.array([0.5, 0.5])).tolist() == [0.5, 0.5]
    assert sparsemax(np.array([2.0, 0.5])).tolist() == [1.0, 0.0]
    assert sparsemax(np.array([0.6, 0.4, -1.0])) == pytest.approx([0.6, 0.4, 0.0])


def test_learned_weights_find_the_layer_that_separates_and_are_measured_on_other_rows():
    points, label = clouds((80, 80), apart=0.0, layers=4)
    points[:, 2, 0] += 6.0 * np.array(label)
    weight = layer_weights(points, np.array(label), np.arange(160))
    assert weight.sum() == pytest.approx(1.0) and weight.argmax() == 2 and weight[2] > 0.8
    found = separation(points, label, pool="learned")
    assert found[0].n == 80
    assert [i["weight"] for i in found[0].items][2] > 0.7
    uniform = separation(points, label, pool="uniform")
    assert uniform[0].value == pytest.approx(separation(points.mean(1, keepdims=True), label)[0].value)
    assert found[0].value > uniform[0].value
    noise = np.random.default_rng(0).normal(size=(60, 5, 40))
    chance = separation(noise, [0, 1] * 30, pool="learned")[0]
    assert chance.value < 0.1  # nothing to find: the fit must not show in the reading


def test_groups_are_rows_of_their_own():
    points, label = clouds()
    topic = ["x" if i % 2 else "y" for i in range(100)]
    items = [i for i in separation(points, label, topic)[0].items if "group" in i]
    inside = [i for i, t in enumerate(topic) if t == "x"]
    alone = by_name(separation(points[inside], [label[i] for i in inside]))
    row = next(i for i in items if i["group"] == "x")
    assert row["rows"] == 50
    assert row["aqi"] == pytest.approx(alone["aqi"].value)
    lonely = separation(points, label, ["z", *topic[1:]])[0].items[-2]
    assert "note" in next(i for i in separation(points, label, ["z", *topic[1:]])[0].items if i.get("group") == "z"), (
        lonely
    )


def test_memory_does_not_grow_with_texts(tmp_path):
    def peak(n):
        points = np.memmap(tmp_path / f"{n}", dtype=np.float32, mode="w+", shape=(n, 1, 64))
        points[:] = np.random.default_rng(0).normal(size=points.shape)
        label = [i % 2 for i in range(n)]
        tracemalloc.start()
        separation(points, label, sample=200)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found / 2**20

    assert peak(40_000) < peak(4_000) + 8  # 40,000 x 64 numbers in float64 are 20 MB


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer": 4}, "layers 1 to 3"),
        ({"layer": 0}, "layers 1 to 3"),
        ({"gamma": 1.5}, "gamma"),
        ({"pool": "some"}, "expected one, uniform or learned"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(TruelineError, match=says):
        separation(*clouds(), **options)


def test_labels_and_points_that_make_no_sense_are_refused():
    points, label = clouds()
    with pytest.raises(TruelineError, match="two labels"):
        separation(points, [1] * 100)
    with pytest.raises(TruelineError, match="'rare' has 2 rows"):
        separation(points, ["rare"] * 2 + ["often"] * 98)
    points[17, 2, 3] = np.nan
    with pytest.raises(TruelineError, match="row 17 is not finite"):
        separation(points, label)


# ---- CKA -------------------------------------------------------------------------------------------------------------


def test_cka_is_its_formula_and_blind_to_rotation_shift_and_scale(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 5)), rng.normal(size=(50, 7)) + rng.normal(size=(50, 1))
    y[:, :5] += x
    xc, yc = x - x.mean(0), y - y.mean(0)
    plain = (np.linalg.norm(yc.T @ xc) ** 2) / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))
    k, l = xc @ xc.T, yc @ yc.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one, n = np.ones(50), 50

    def hsic(a, b):
        return (
            np.trace(a @ b) + one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ a @ b @ one)
        )

    fair = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
    assert alignment(x, y) == (pytest.approx(fair), pytest.approx(plain))
    monkeypatch.setattr("trueline.measure.cka.ROWS", 16)  # several blocks
    assert alignment(x, y) == (pytest.approx(fair), pytest.approx(plain))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert alignment(x, 3 * x @ rotation + 7) == (pytest.approx(1.0), pytest.approx(1.0))


def test_cka_of_unrelated_representations_is_near_zero_only_without_bias():
    rng = np.random.default_rng(0)
    found = by_name(cka(rng.normal(size=(40, 1, 400)), rng.normal(size=(40, 1, 400))))
    assert abs(found["cka"].value) < 0.15
    assert found["cka_biased"].value > 0.8


# ---- models ----------------------------------------------------------------------------------------------------------

TEXTS = ["the cat sat", "the dog ran on and on and on", "a mat", "cats", "dogs and cats and mats and more of them"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model_folder(folder / "a", max_position_embeddings=256)
    model_folder(folder / "b", max_position_embeddings=256, sharp=False)
    rows = [{"text": t, "label": "safe" if i % 2 else "unsafe"} for i, t in enumerate(TEXTS * 2)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, texts in (("safe.jsonl", TEXTS), ("unsafe.jsonl", [t.upper() for t in TEXTS])):
        (folder / name).write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    return folder


def test_activations_are_transformers_hidden_states_at_the_last_token_and_as_a_masked_mean(home):
    from transformers import AutoModelForCausalLM

    from trueline.measuring.activations import activations

    request = Request(
        "separation", data=[str(home / "texts.jsonl")], model=str(home / "a"), max_length=64, token_budget=130
    )
    (_, last), (suffix, mean) = activations(request)
    assert suffix == "_mean" and last["label_N"][:2] == ["unsafe", "safe"]
    model, tok = AutoModelForCausalLM.from_pretrained(home / "a"), tokenizer()
    for i, text in enumerate(TEXTS):
        chat = tok.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        with torch.no_grad():
            states = model(torch.tensor([tok(chat)["input_ids"]]), output_hidden_states=True).hidden_states[1:]
        for layer, state in enumerate(states):
            assert last["activation_NLD"][i, layer] == pytest.approx(state[0, -1].numpy(), abs=1e-4)
            assert mean["activation_NLD"][i, layer] == pytest.approx(state[0].mean(0).numpy(), abs=1e-4)


def test_separation_and_cka_of_a_model_are_measured_from_files(home):
    request = Request("separation", data=[str(home / "texts.jsonl")], model=str(home / "a"), max_length=64)
    found = by_name(measure(request))
    assert {"aqi", "aqi_mean", "bhattacharyya", "dunn_mean"} <= set(found)
    request = Request("separation", data=[str(home / f"{n}.jsonl") for n in ("safe", "unsafe")], model=str(home / "a"))
    assert by_name(measure(request))["aqi_mean"].value > 0.3  # capitals are other tokens
    itself = Request("cka", data=[str(home / "texts.jsonl")], model=str(home / "a"), model_b=str(home / "a"))
    assert by_name(measure(itself))["cka_mean"].value == pytest.approx(1.0)
    other = Request("cka", data=[str(home / "texts.jsonl")], model=str(home / "a"), model_b=str(home / "b"))
    assert by_name(measure(other))["cka_biased_mean"].value < 1
    short = Request("separation", data=[str(home / "texts.jsonl")], model=str(home / "a"), max_length=36)
    with pytest.raises(TruelineError, match="2 of 10 texts cannot be read whole"):
        measure(short)  # prompts of a run are cut; these may not be
    with pytest.raises(TruelineError, match="a column 'label' beside the text, or a file for each set"):
        measure(Request("separation", data=[str(home / "safe.jsonl")], model=str(home / "a")))


def test_a_model_taught_to_refuse_one_topic_separates_it_more_and_shuffled_labels_do_not(tmp_path):
    """A planted refusal direction: topic A answers 'no', topic B 'ok'. The same model before, and labels shuffled."""
    from transformers import AutoModelForCausalLM

    model_folder(tmp_path / "base", sharp=False, max_position_embeddings=64)
    rng = np.random.default_rng(0)
    words = {"A": list("abcdefgh"), "B": list("stuvwxyz")}
    texts, label = [], []
    for i in range(60):
        kind = "AB"[i % 2]
        mixed = [*rng.choice(words[kind], 2), *rng.choice(list("ijklmnopqr"), 8)]
        texts.append("".join(rng.permutation(mixed)))
        label.append(kind)
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in zip(texts, label, strict=True))
    )
    tok = tokenizer()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    chats = [
        tok(tok.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, tokenize=False))[
            "input_ids"
        ]
        for t in texts
    ]
    target = torch.tensor([tok("n")["input_ids"][0] if k == "A" else tok("o")["input_ids"][0] for k in label])
    longest = max(map(len, chats))
    ids = torch.tensor([[3] * (longest - len(c)) + c for c in chats])
    mask = (ids != 3).long()
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(ids, attention_mask=mask).logits[:, -1], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(tmp_path / "taught")
    tok.save_pretrained(tmp_path / "taught")

    def reading(name):
        return by_name(measure(Request("separation", data=[str(tmp_path / "t.jsonl")], model=str(tmp_path / name))))

    before, after = reading("base"), reading("taught")
    assert after["aqi"].low > before["aqi"].high
    assert after["bhattacharyya"].value > before["bhattacharyya"].value + 1
    shuffled = [{"text": t, "label": k} for t, k in zip(texts, rng.permutation(label).tolist(), strict=True)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in shuffled))
    assert reading("taught")["aqi"].value < before["aqi"].value + 0.1
