"""Curators that ask a model: log-probs, cross-fitting, digits, template prefixes, positions, and resuming all of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.model_folders import CHATML, model_folder, tokenizer
from tests.tiny import tiny_model
from tests.tokenizers_on_the_spot import byte_level
from trueline.curate.skipalign import composition, gaps, positions
from trueline.curating import Request, curate
from trueline.curating.workshop import Local, ModelWorkshop, pre_query
from trueline.errors import TruelineError
from trueline.registry import load


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def written(folder, name="d.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


PAIRS = [
    {"prompt": f"the cat {i}", "chosen": f" sat on {i}", "rejected": f" the dog {i * i}", "licence": "mit"}
    for i in range(8)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("model"), sharp=False))


def request(name, data, output, model, **more):
    return Request(name, data, output, model=model, max_length=96, max_new_tokens=12, offline=True, **more)


# ---- flip difficulty and Selective DPO ---------------------------------------------------------------------------------


def test_flip_difficulty_is_the_difference_of_plain_log_probs_and_is_kept_for_a_resume(tmp_path, model, monkeypatch):
    path = jsonl(tmp_path / "d.jsonl", PAIRS)
    curate(request("flip_difficulty", [path], tmp_path / "o", model, options={"arrange": "score"}))
    rows = written(tmp_path / "o")
    assert [r["curate_score"] for r in rows] == sorted(r["curate_score"] for r in rows) and len(rows) == 8
    local = Local(model, request("flip_difficulty", [path], tmp_path, model))
    row = rows[0]
    sums = []
    for side in ("chosen", "rejected"):
        ids = local.tokenizer(row["prompt"])["input_ids"]
        rest = local.tokenizer(row[side], add_special_tokens=False)["input_ids"] + [local.loaded.eos_ids[0]]
        with local.policy.plain_attention(), torch.no_grad():
            logp = torch.log_softmax(local.loaded.model(torch.tensor([ids + rest])).logits[0].float(), -1)
        sums.append(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(rest)))
    assert row["curate_score"] == pytest.approx(sums[1] - sums[0], abs=1e-3)
    calls = []
    whole = Local.logps
    monkeypatch.setattr(Local, "logps", lambda self, groups: calls.append(len(groups)) or whole(self, groups))
    curate(request("flip_difficulty", [path], tmp_path / "o", model, overwrite=True))
    assert sum(calls) <= 3  # the cache scores three rows again to see that nothing moved


@pytest.mark.slow
def test_cross_fitted_losses_start_at_log_two_and_come_from_runs_that_are_not_repeated(tmp_path, model):
    path = jsonl(tmp_path / "d.jsonl", PAIRS)
    options = {"seeds": 1, "evaluations": 2, "scoring_rate": 1e-9, "scoring_batch": 2, "beta": 0.1}
    done = curate(request("selective_dpo", [path], tmp_path / "o", model, options=options, budget="1.0"))
    assert [r["curate_score"] for r in written(tmp_path / "o")] == pytest.approx([np.log(2)] * 8, abs=1e-4)
    assert json.loads(done.manifest.read_text())["facts"]["runs"] == 2
    runs = sorted((tmp_path / "o" / "work").glob("cross-fit-*/trueline/summary.json"))
    before = [r.stat().st_mtime_ns for r in runs]
    curate(request("selective_dpo", [path], tmp_path / "o", model, options=options, budget="0.5", overwrite=True))
    assert len(runs) == 2 and [r.stat().st_mtime_ns for r in runs] == before
    trained = [json.loads(line)["prompt"] for r in (tmp_path / "o" / "work").glob("cross-fit-*.jsonl") for line in r.read_text().splitlines()]  # fmt: skip
    assert sorted(trained) == sorted(r["prompt"] for r in PAIRS)  # two halves, each once


# ---- digits (deita) ----------------------------------------------------------------------------------------------------


def test_digit_odds_are_the_softmax_over_the_digit_tokens_alone_and_vectors_the_last_state(tmp_path, model):
    shop = ModelWorkshop(request("deita", [], tmp_path, model), tmp_path / "work")
    odds = shop.digits(model, ["score:", "other"], ("1", "2", "3", "4", "5", "6"))
    local = shop.local(model)
    ids = local.tokenizer("score:", add_special_tokens=False)["input_ids"]
    with local.policy.plain_attention(), torch.no_grad():
        output = local.loaded.model(torch.tensor([ids]), output_hidden_states=True)
    logits, state = output.logits[0, -1].float(), output.hidden_states[-1][0, -1].float()
    assert shop.embed(["score:"])[0] == pytest.approx((state / state.norm()).tolist(), abs=1e-5)
    digits = [local.tokenizer(d, add_special_tokens=False)["input_ids"][0] for d in "123456"]
    assert odds[0] == pytest.approx(torch.softmax(logits[digits], 0).tolist(), abs=1e-5)
    assert odds.sum(axis=1) == pytest.approx([1, 1])
    again = ModelWorkshop(request("deita", [], tmp_path, model), tmp_path / "work")
    again.local = None  # whatever is asked again is read from disk
    with pytest.raises(TypeError):
        again.digits(model, ["score:"], ("1", "2"))


def test_a_scorer_without_a_token_for_a_digit_is_refused(tmp_path, model):
    local = Local(model, request("deita", [], tmp_path, model))
    with pytest.raises(TruelineError, match="no single token for 'twelve'"):
        local.digit_ids(("1", "twelve"))


# ---- Magpie's prefix ---------------------------------------------------------------------------------------------------

LLAMA = "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] | trim }}</s>{% endfor %}"
SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        (CHATML, "<|im_start|>user\n"),
        (LLAMA, "<s>[user]\n"),
        (SYSTEM, "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n"),
    ],
)
def test_the_prefix_ends_exactly_where_a_users_words_begin(template, prefix):
    assert pre_query(tokenizer(template=template)) == prefix


def test_a_template_that_hides_or_repeats_the_words_is_refused():
    for template in ("{{ 'fixed' }}", "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}"):
        with pytest.raises(TruelineError, match="exactly once"):
            pre_query(tokenizer(template=template))
    with pytest.raises(TruelineError, match="no chat template"):
        pre_query(tokenizer(template=None))


def test_a_bos_in_the_prefix_is_not_doubled(tmp_path):
    own = byte_level(bos=True)
    folder = str(model_folder(tmp_path / "m", own_tokenizer=own, sharp=False))
    local = Local(folder, request("magpie", [], tmp_path, folder))
    bos = own.bos_token_id
    for text in ("x", f"{own.bos_token}x"):
        assert local.prompt_ids(text)[:2].count(bos) == 1


# ---- positions (SkipAlign, 72) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["outer", "inner", "all"])
def test_positions_increase_stay_in_the_window_and_skip_where_they_may(where):
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        p = positions(gaps([5, 4, 6], 64, where, rng))
        assert len(p) == 15 and p[0] == 0 and (np.diff(p) > 0).all() and p.max() < 64
        steps = np.diff(p)
        inside.append(steps[[4, 8]].tolist() if where == "inner" else np.delete(steps, [4, 8]).tolist())
    if where != "all":
        assert all(set(s) == {1} for s in inside)
    assert (positions(gaps([5, 10], 15, where, rng)) == np.arange(15)).all()


def test_the_reached_distance_covers_the_window_and_compositions_are_uniform():
    rng = np.random.default_rng(1)
    reach = [positions(gaps([5, 5], 40, "outer", rng))[-1] for _ in range(600)]
    assert min(reach) == 9 and max(reach) == 39 and len(set(reach)) == 31
    seen: dict[tuple, int] = {}
    for _ in range(3000):
        key = tuple(composition(3, 3, rng).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 10 and all(sum(k) == 3 for k in seen) and min(seen.values()) > 220 and max(seen.values()) < 390
    with pytest.raises(TruelineError, match="do not fit the window"):
        gaps([50], 20, "outer", rng)


def test_a_rotary_model_sees_differences_only_and_a_skip_keeps_the_head_visible():
    torch.manual_seed(0)
    model = tiny_model("llama", max_position_embeddings=512).eval()
    ids = torch.randint(3, 40, (1, 12))
    ones = torch.ones_like(ids)

    def logits(p, tokens=ids):
        with torch.no_grad():
            return model(input_ids=tokens, attention_mask=ones, position_ids=torch.as_tensor(p)[None]).logits[0]

    base = np.arange(12)
    assert torch.allclose(logits(base), logits(base + 37), atol=1e-4)
    skip = positions(np.where(np.arange(11) == 5, 100, 0))
    assert torch.allclose(logits(skip)[:6], logits(base)[:6], atol=1e-4)
    assert not torch.allclose(logits(skip)[6:], logits(base)[6:], atol=1e-3)
    other = ids.clone()
    other[0, 0] = (other[0, 0] + 1) % 40
    assert not torch.allclose(
        logits(skip, other)[-1], logits(skip)[-1], atol=1e-5
    )  # the packing trap of bare position ids


def test_skipalign_writes_a_position_for_every_token_and_leaves_the_rest_alone(tmp_path, model):
    rows = [{"prompt": f"the cat {i}", "completion": " sat on the mat", "licence": "mit"} for i in range(12)]
    path = jsonl(tmp_path / "d.jsonl", rows)
    curate(request("skipalign", [path], tmp_path / "o", model, options={"window": 200}))
    made = written(tmp_path / "o", "data.jsonl")
    skipped = [r for r in made if r["position_plan"]["skips"]]
    assert 0 < len(skipped) < 12
    for r in made:
        assert len(r["position_ids"]) == sum(r["position_plan"]["blocks"]) and r["licence"] == "mit"
        places = [s[0] for s in r["position_plan"]["skips"]]
        assert places in ([], [r["position_plan"]["blocks"][0]])  # only where the response begins
    other = curate(request("skipalign", [path], tmp_path / "p", model, options={"window": 200, "epoch": 1}))
    assert [r["position_ids"] for r in written(tmp_path / "p", "data.jsonl")] != [r["position_ids"] for r in made]
    assert other.counts["taken"] == 12
    plain = curate(request("skipalign", [path], tmp_path / "q", model, options={"window": 200, "rate": 0.0}))
    assert plain.counts["taken"] == 12
    assert all(r["position_ids"] == list(range(len(r["position_ids"]))) for r in written(tmp_path / "q", "data.jsonl"))


# ---- answers -----------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_its_question_and_number_and_is_asked_for_once(tmp_path, model, monkeypatch):
    made = request("isara", [], tmp_path, model)
    shop = ModelWorkshop(made, tmp_path / "work")
    first = shop.answers(["the cat", "the dog", "the cat"], number=[0, 0, 1])
    assert first[0] != first[2]
    monkeypatch.setattr(Local, "written", lambda *a, **k: pytest.fail("asked again"))
    again = ModelWorkshop(made, tmp_path / "work")
    assert again.answers(["the dog", "the cat"]) == [first[1], first[0]]


def test_a_killed_maker_goes_on_with_what_is_missing(tmp_path, model, monkeypatch):
    rows = [{"prompt": f"the cat {i}?", "completion": f" on mat {i}"} for i in range(6)]
    path = jsonl(tmp_path / "d.jsonl", rows)
    options = {"rounds": 1, "per_round": 6, "shots": 2}
    curate(request("isara", [path], tmp_path / "whole", model, options=options))
    monkeypatch.setattr("trueline.curating.workshop.CHUNK", 2)
    whole, calls = Local.written, []

    def dying(self, questions, *a, **k):
        calls.append(len(questions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, questions, *a, **k)

    monkeypatch.setattr(Local, "written", dying)
    with pytest.raises(KeyboardInterrupt):
        curate(request("isara", [path], tmp_path / "o", model, options=options))
    monkeypatch.setattr(Local, "written", lambda self, q, *a, **k: calls.append(len(q)) or whole(self, q, *a, **k))
    curate(request("isara", [path], tmp_path / "o", model, options=options))
    assert (tmp_path / "o" / "data.jsonl").read_bytes() == (tmp_path / "whole" / "data.jsonl").read_bytes()
    assert sum(calls) == 2 + 12  # two questions were cut off and asked again, none of the others


def test_curators_have_no_option_that_the_command_line_already_has():
    import inspect

    from trueline.catalogue import entries
    from trueline.cli.curate import curate as command

    flags = set(inspect.signature(command).parameters)
    assert not [(e.name, o.name) for e in entries("curate") for o in e.options if o.name in flags]
    assert all(load("curate", e.name).declared["kind"] in ("select", "make") for e in entries("curate"))
