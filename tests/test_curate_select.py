"""Engine one of `trueline curate`: what is taken, why the rest is not, and what is written."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trueline.curate.contract import Scored
from trueline.curating import Request, curate
from trueline.curating.conflict import hybrid_rates, interference, next_rates, without_dimensions
from trueline.curating.crossfit import consistency, cross_fit, folds_of, learning_step
from trueline.curating.pool import FilePool
from trueline.curating.rows import open_rows
from trueline.curating.selecting import CosineGate, budget_rows, gumbel_keys, select
from trueline.errors import TruelineError
from trueline.readers import load
from trueline.registry import load as method


def jsonl(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(n: int, **columns) -> list[dict]:
    rows = [{"prompt": f"question {i}?", "chosen": f" good {'x' * i}", "rejected": f" bad {i}"} for i in range(n)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def written(folder: Path, name: str = "d.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# ---- select ------------------------------------------------------------------------------------------------------------


def test_a_selection_takes_the_better_end_and_says_why_the_rest_is_not_there():
    score = np.array([3.0, 1.0, np.nan, 2.0, 5.0, 4.0])
    got = select(Scored(score, dropped={"ugly": np.array([0, 0, 0, 0, 1, 0], bool)}), budget="2")
    assert got.taken_K.tolist() == [0, 5]  # written in file order
    assert [got.reasons[c] for c in got.reason_N] == ["", "over the budget", "no score", "over the budget", "ugly", ""]
    assert got.rank_N.tolist() == [2, 4, 0, 3, 0, 1]
    easy = select(Scored(score, order="ascending", arrange="score"), budget="3")
    assert easy.taken_K.tolist() == [1, 3, 0]
    assert select(Scored(score), threshold=3.0).taken_K.tolist() == [0, 4, 5]
    assert select(Scored(score, order="ascending"), threshold=3.0).taken_K.tolist() == [0, 1, 3]


def test_equal_scores_go_by_place_in_the_file():
    assert select(Scored(np.zeros(50)), budget="3").taken_K.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("text", "rows"), [("7", 7), ("0.5", 5), ("50%", 5), ("0.55", 6), ("0.01", 1), ("1.0", 11), (None, None)])  # fmt: skip
def test_a_budget_is_rows_or_a_share_rounded_down(text, rows):
    assert budget_rows(text, 11) == rows


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "some", "0%", "200%", "nan"])
def test_a_budget_that_means_nothing_is_refused(text):
    with pytest.raises(TruelineError, match="budget is"):
        budget_rows(text, 10)


def test_nothing_left_is_an_error_with_its_reasons():
    with pytest.raises(TruelineError, match=r"of 2 rows, ugly \(2\)"):
        select(Scored(np.ones(2), dropped={"ugly": np.ones(2, bool)}))


# ---- diversity (deita, 129) --------------------------------------------------------------------------------------------


def one_by_one(vectors: np.ndarray, order: np.ndarray, most: float, wanted: int) -> list[int]:
    taken: list[int] = []
    for i in order:
        if len(taken) < wanted and all(vectors[i] @ vectors[j] <= most for j in taken):
            taken.append(int(i))
    return taken


def test_the_diversity_scan_in_blocks_equals_the_scan_one_by_one():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(700, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(700)
    for most, wanted in ((0.8, 700), (0.8, 20), (0.3, 50), (-2.0, 9)):
        kept = CosineGate(vectors, most).walk(order, wanted)
        assert order[kept].tolist() == one_by_one(vectors, order, most, wanted)
    taken = vectors[order[CosineGate(vectors, 0.8).walk(order, 700)]]
    assert (taken @ taken.T - 2 * np.eye(len(taken))).max() <= 0.8


def test_a_block_mate_that_was_itself_dropped_drops_nobody():
    angles = np.array([0.0, 0.4, 0.8])  # the second is like the first, the third like the second only
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    kept = CosineGate(vectors, 0.9).walk(np.arange(3), 3)
    assert kept.tolist() == [True, False, True]


def test_gate_limits_and_order_invariance():
    rng = np.random.default_rng(1)
    vectors, score = rng.normal(size=(60, 4)), rng.normal(size=60)
    loose = select(Scored(score, gate=CosineGate(vectors, 1.01)), budget="9")
    assert set(loose.taken_K) == set(np.argsort(-score)[:9])
    only = select(Scored(score, gate=CosineGate(vectors, -1.01)), budget="9")
    assert only.taken_K.tolist() == [int(score.argmax())]
    shuffle = rng.permutation(60)
    again = select(Scored(score[shuffle], gate=CosineGate(vectors[shuffle], 0.7)))
    assert sorted(shuffle[again.taken_K]) == select(Scored(score, gate=CosineGate(vectors, 0.7))).taken_K.tolist()
    assert "too like a better row" in select(Scored(score, gate=CosineGate(vectors, 0.5))).counts()
    with pytest.raises(TruelineError, match="row 2 is zero"):
        CosineGate(np.array([[1.0, 0.0], [0.0, 0.0]]), 0.9)


def test_deita_multiplies_sums_over_turns_and_reads_digits_as_an_expectation():
    from trueline.curate.deita import evol_score, expected_digit

    assert expected_digit(np.full((1, 6), 1 / 6))[0] == pytest.approx(3.5)
    for k in range(6):
        assert expected_digit(np.eye(6)[[k]])[0] == k + 1
    assert evol_score(np.array([2.0]), np.array([3.0])) == 6
    assert evol_score(np.array([2.0, 1.0]), np.array([3.0, 5.0])) == 11


def test_deita_takes_scores_from_columns_and_leaves_out_rows_without_one(tmp_path):
    rows = [
        {"prompt": f"p{i} {'abc'[i % 3]}", "completion": f" r{i}", "c": i, "q": 1 if i != 2 else ""} for i in range(6)
    ]
    rows.append({"prompt": "P5  c!", "completion": "R5", "c": 9, "q": 9})  # the words of row 5 again, and better
    done = curate(Request("deita", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o", options={"complexity_column": "c", "quality_column": "q"}, budget="3"))  # fmt: skip
    assert [r["c"] for r in written(tmp_path / "o")] == [3, 4, 9]
    assert done.counts["no score"] == 1 and done.counts["too like a better row"] == 1


# ---- cross-fitting (Selective DPO, 119) --------------------------------------------------------------------------------


def test_each_row_is_scored_once_a_seed_by_a_model_that_never_saw_its_prompt():
    prompts = [i // 3 for i in range(60)]
    seen: list[tuple[set, set]] = []

    def train(rows, seed, fold):
        return {prompts[r] for r in rows}

    def score(fitted, rows):
        seen.append((fitted, {prompts[r] for r in rows}))
        return rows.astype(float)

    found = cross_fit(prompts, train, score, seeds=3)
    assert found.shape == (3, 60) and (found == np.arange(60)).all()
    assert len(seen) == 6 and all(not inside & held for inside, held in seen)
    assert [sorted(f.tolist()) for f in folds_of(prompts, 2, 0)] != [
        sorted(f.tolist()) for f in folds_of(prompts, 2, 1)
    ]


def toy(n: int, d: int, flips: float, seed: int, labels: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    sign = np.where(x @ rng.normal(size=d) > 0, 1.0, -1.0) if labels else rng.choice([-1.0, 1.0], n)
    flipped = rng.random(n) < flips
    return x * (sign * np.where(flipped, -1, 1))[:, None], flipped


def linear_losses(x: np.ndarray, seeds: int) -> np.ndarray:
    from trueline.curating.conflict import descend

    def train(rows, seed, fold):
        return descend(x[rows], np.full(len(rows), 1 / len(rows)), np.zeros(x.shape[1]), 60)

    return cross_fit(list(range(len(x))), train, lambda w, rows: np.logaddexp(0, -(x[rows] @ w)), seeds=seeds)


def test_flipped_pairs_get_a_higher_loss_and_agreement_has_its_null_at_045():
    from sklearn.metrics import roc_auc_score

    x, flipped = toy(600, 20, 0.2, seed=3)
    loss = linear_losses(x, 3)
    assert roc_auc_score(flipped, loss.mean(axis=0)) > 0.9
    signal = consistency(loss)
    null = consistency(linear_losses(toy(600, 50, 0.0, seed=4, labels=False)[0], 3))
    assert 0.35 < null < 0.55 < signal


def test_learning_step_is_the_first_after_which_it_stays_right():
    margins = np.array([[-1.0, 1, 1, -1], [1, -1, 1, -1], [1, 1, 1, -1]])
    assert learning_step(margins).tolist() == [2, 3, 1, 4]


def test_selective_dpo_keeps_the_easiest_half_in_easy_to_hard_order(tmp_path):
    rows = pairs(6, a=[5, 1, 3, 2, 6, 4], b=[5, 1, 3, 2, 6, 4])
    curate(
        Request("selective_dpo", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o", options={"losses": ["a", "b"]})
    )
    assert [r["a"] for r in written(tmp_path / "o")] == [1, 2, 3]
    assert [r["curate_score"] for r in written(tmp_path / "o")] == [1, 2, 3]
    curate(
        Request("selective_dpo", [str(tmp_path / "d.jsonl")], tmp_path / "all", options={"losses": ["a"]}, budget="1.0")
    )
    assert len(written(tmp_path / "all")) == 6


# ---- information-theoretic subsets and the plateau (20) ----------------------------------------------------------------


def test_the_plateau_law_is_recovered_from_noiseless_points():
    n = np.array([50, 100, 200, 400, 800, 1600, 3200])
    found = {r.name: r for r in method("measure", "plateau").call(n, 0.8 - (0.8 - 0.3) * np.exp(-n / 350), share=0.9)}
    assert (found["plateau"].value, found["start"].value, found["scale"].value) == pytest.approx(
        (0.8, 0.3, 350), rel=1e-6
    )
    assert found["pairs_for_0.9"].value == pytest.approx(350 * np.log(10), rel=1e-6)
    assert found["r_squared"].value == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    noisy = {
        r.name: r for r in method("measure", "plateau").call(n, 0.8 - 0.5 * np.exp(-n / 350) + rng.normal(0, 0.01, 7))
    }
    assert noisy["plateau"].low < 0.8 < noisy["plateau"].high
    with pytest.raises(TruelineError, match="needs 4 different sizes; found 3"):
        method("measure", "plateau").call([1, 2, 3], [1, 2, 3])


def test_mixture_components_are_ordered_clear_clusters_have_no_entropy_and_em_climbs():
    from trueline.curate.isa import Mixture

    rng = np.random.default_rng(0)
    quality = np.concatenate([rng.normal(-5, 0.3, 80), rng.normal(5, 0.3, 40)])
    fit = Mixture.fit(quality[:, None], quality, 0)
    assert fit.qualities[0] < fit.qualities[1] and fit.sizes[1] == pytest.approx(1 / 3, abs=0.01)
    assert fit.high_K[80:].min() > 0.999 and fit.entropy_K.max() < 1e-3
    mixed = Mixture.fit(rng.normal(size=(200, 2)), rng.normal(size=200), 0)
    assert (np.diff(mixed.bounds) > -1e-9).all()


def test_isa_with_all_rows_gives_all_and_without_lambda_is_uniform_within_the_better_part(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": [{"role": "assistant", "content": f"a{i}"}], "rejected": [{"role": "assistant", "content": f"b{i}"}], "score_chosen": 10.0 + 0.01 * i if i % 2 else 1.0 + 0.01 * i, "score_rejected": 0.5} for i in range(80)]  # fmt: skip
    path = jsonl(tmp_path / "d.jsonl", rows)
    done = curate(Request("isa", [path], tmp_path / "all", budget="80"))
    assert done.counts["taken"] == 80
    taken = np.zeros(80)
    pool = FilePool.open([path], seed=0)
    for pool.seed in range(25):
        scored = method("curate", "isa").call(pool, weight=0.0)
        taken[select(scored, budget="10").taken_K] += 1
    assert taken[::2].sum() == 0  # the worse component
    assert abs(np.corrcoef(np.arange(40), taken[1::2])[0, 1]) < 0.5 and taken[1::2].min() > 0
    assert scored.columns["entropy"].max() < 1e-3


def test_gumbel_keys_draw_without_replacement_by_weight():
    rng = np.random.default_rng(0)
    weight = np.array([8.0, 1.0, 1.0])
    first = [int(gumbel_keys(np.log(weight), rng).argmax()) for _ in range(3000)]
    assert np.bincount(first, minlength=3) / 3000 == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


# ---- dimension conflict and hybrid sampling (Hummer, 76) ---------------------------------------------------------------


def directions(theta: float, n: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * n, 2))
    want = np.where(np.arange(2 * n)[:, None] < n, [1.0, 0.0], [np.cos(theta), np.sin(theta)])
    return x * np.sign((x * want).sum(axis=1))[:, None], ["a"] * n + ["b"] * n


def readings(found) -> dict[str, float]:
    return {r.name: r.value for r in method("measure", "alignment_dimension_conflict").call(**found.table())}


def test_conflict_grows_with_the_angle_and_is_a_quarter_for_opposites():
    values = [readings(interference(*directions(t, 1500), seeds=3))["adc"] for t in (0.0, 0.9, 1.8, np.pi)]
    assert values == sorted(values) and values[0] < 1e-4
    assert values[-1] == pytest.approx(0.25, abs=0.02)
    for theta, value in ((0.9, values[1]), (1.8, values[2])):
        assert value == pytest.approx((theta / (2 * np.pi)) ** 2, rel=0.15)


def test_identical_dimensions_conflict_no_more_than_shuffled_ones():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(360, 30))
    x *= np.sign(x[:, 0] + rng.normal(0, 1.0, 360))[:, None]
    names = [("a", "b", "c")[i % 3] for i in range(360)]
    found, shuffled = readings(interference(x, names, seeds=8)), readings(without_dimensions(x, names, seeds=8))
    assert 0.4 < found["adc"] / shuffled["adc"] < 2.5
    assert (
        found["adc"] > found["noise_floor"]
    )  # over-fitting to a third of the pairs is no conflict, but it is not noise
    apart = readings(interference(x * np.where(np.arange(360) % 3 == 0, -1, 1)[:, None], names, seeds=8))
    assert apart["adc"] > 1.8 * shuffled["adc"]


def test_adc_on_hand_computed_cells_and_constant_gains_cannot_raise_it():
    table = {"trained": ["a", "a", "b", "b"], "evaluated": ["a", "b", "a", "b"], "before": [0.7, 0.7, 0.7, 0.7], "after": [0.9, 0.4, 0.8, 0.9]}  # fmt: skip
    call = method("measure", "alignment_dimension_conflict").call
    assert call(**table)[0].value == pytest.approx(0.09 / 2)
    raised = {**table, "after": [v + 0.05 for v in table["after"]]}
    assert 0 <= call(**raised)[0].value < call(**table)[0].value
    two = {k: [*v, *v] for k, v in table.items()} | {"seed": [0.0] * 4 + [1.0] * 4}
    two["after"] = [0.9, 0.4, 0.8, 0.9, 0.9, 0.5, 0.8, 0.9]
    floor = {r.name: r.value for r in call(**two)}
    assert floor["adc"] == pytest.approx(0.25**2 / 2) and floor["noise_floor"] == pytest.approx(0.005 / 2 / 2 / 2)
    with pytest.raises(TruelineError, match="no row for trained 'b', evaluated 'a'"):
        call(["a", "b", "a"], ["b", "b", "a"], [0.5] * 3, [0.5] * 3)


def test_rates_stay_on_the_simplex_and_raise_what_lags():
    rates = next_rates([0.5, 0.5], [0.9, 0.6], 2.0)
    assert rates.sum() == pytest.approx(1) and rates[1] / rates[0] == pytest.approx(np.exp(2 * 0.3))
    x, names = directions(2.2, 600)
    three, called = (
        np.concatenate([directions(2.2, 600, 1)[0][:600], x]),
        [*["c"] * 600, *names],
    )  # c wants what a wants
    order, rates_TK, _ = hybrid_rates(three, called, rounds=10, eta=1.0)
    assert rates_TK.sum(axis=1) == pytest.approx(np.ones(11)) and (rates_TK > 0).all()
    drawn = rates_TK.mean(axis=0)
    assert drawn[order.index("b")] > 1 / 3 + 0.02
    uniform, hybrid = (interference(three, called, seeds=2, base=b).before_SK.mean(axis=0) for b in (None, drawn))
    assert hybrid.min() > uniform.min() + 0.02


def test_hummer_draws_dimensions_at_its_rates(tmp_path):
    rows = pairs(200, dimension=["a" if i < 150 else "b" for i in range(200)])
    options = {"accuracies": ["a=0.9", "b=0.5"]}
    done = curate(Request("hummer", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o", options=options, budget="40"))
    taken = [r["dimension"] for r in written(tmp_path / "o")]
    expected = next_rates([0.5, 0.5], [0.9, 0.5], 1.0)[1]
    assert taken.count("b") / 40 == pytest.approx(expected, abs=0.15)
    assert any("Alignment Dimension Conflict" in note for note in done.notes)
    with pytest.raises(TruelineError, match="lacks b"):
        curate(Request("hummer", [str(tmp_path / "d.jsonl")], tmp_path / "p", options={"accuracies": ["a=0.9"]}))


# ---- filters -----------------------------------------------------------------------------------------------------------


def test_reward_gap_and_length_filters_say_what_they_drop(tmp_path):
    rows = pairs(4, score_chosen=[1.0, 0.0, 2.0, 9.0], score_rejected=[0.0, 1.0, 1.9, 0.0])
    for row in rows:
        row.update(chosen=[{"role": "assistant", "content": row["chosen"]}], rejected=[{"role": "assistant", "content": row["rejected"]}])  # fmt: skip
    path = jsonl(tmp_path / "d.jsonl", rows)
    done = curate(Request("reward_gap", [path], tmp_path / "o", options={"minimum": 0.5, "maximum": 5.0}))
    assert [done.counts[r] for r in ("rewards contradict the label", "gap below the minimum", "gap above the maximum", "taken")] == [1, 1, 1, 1]  # fmt: skip
    ratio = curate(
        Request("length", [jsonl(tmp_path / "l.jsonl", pairs(30))], tmp_path / "l", options={"maximum_ratio": 3.0})
    )
    assert ratio.counts["one response much longer than another"] == sum(
        max(6 + i, 6) / (5 + len(str(i))) > 3 for i in range(30)
    )
    with pytest.raises(TruelineError, match="below minimum"):
        curate(Request("reward_gap", [path], tmp_path / "q", options={"minimum": 2.0, "maximum": 1.0}))


# ---- what is written ---------------------------------------------------------------------------------------------------


def test_rows_come_back_in_their_own_format_with_score_reason_and_a_manifest(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    rows = pairs(8, licence=["mit"] * 7 + [""], source=["web"] * 8, annotator_id=list(range(8)))
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.parquet"):
        out = tmp_path / f"out-{name}"
        done = curate(Request("length", [str(tmp_path / name)], out, budget="3", options={"order": "longest"}))
        (table_again,) = load(str(out / name))
        assert (table_again.format, table_again.rows) == ("preference", 3)
        assert [g.extras["curate_reason"] for g in table_again.groups] == [
            f"rank {k} of 8 by length" for k in (3, 2, 1)
        ]
        assert float(table_again.groups[0].extras["curate_score"]) == len(rows[5]["chosen"])
        assert {g.extras["licence"] for g in table_again.groups if "licence" in g.extras} <= {"mit", ""}
        manifest = json.loads(done.manifest.read_text())
        assert manifest["carried"]["licence"]["licence"] == {"mit": 2, "(none)": 1}
        assert (
            manifest["carried"]["origin"] == {"source": {"web": 3}}
            and "annotator_id" in manifest["carried"]["personal"]
        )
        assert manifest["counts"] == {"read": 8, "usable": 8, "taken": 3} and manifest["left_out"] == {
            "over the budget": 5
        }
        assert len(manifest["inputs"][0]["sha256"]) == 64 and manifest["environment"]["versions"]["trueline"]
        decisions = list(csv.DictReader((out / "decisions.csv").open()))
        assert len(decisions) == 8 and [d["taken"] for d in decisions] == ["0"] * 5 + ["1"] * 3


def test_the_same_request_writes_the_same_bytes_and_a_chain_can_be_followed(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", pairs(9))
    first = curate(Request("length", [path], tmp_path / "o", budget="6"))
    again = curate(Request("length", [path], tmp_path / "p", budget="6"))
    assert first.files[0].read_bytes() == again.files[0].read_bytes()
    chained = curate(Request("length", [str(first.files[0])], tmp_path / "q", budget="2"))
    (before,) = json.loads(chained.manifest.read_text())["before"]
    assert before["method"] == "length" and before["counts"]["taken"] == 6
    with pytest.raises(TruelineError, match="holds a finished curation"):
        curate(Request("length", [path], tmp_path / "o", budget="6"))
    curate(Request("length", [path], tmp_path / "o", budget="3", overwrite=True))
    assert len(written(tmp_path / "o")) == 3


def test_rows_with_an_evaluation_prompt_are_dropped_unless_asked_for(tmp_path):
    rows = pairs(5)
    rows[2]["prompt"] = "Explain to me in a few words how rain comes about, please."
    rows[4]["prompt"] = "yes"
    asked = "explain, to me, in a few words: how rain comes about please"
    turns = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "on?"},
        {"role": "user", "content": "yes"},
    ]
    held = [
        {"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": "x"}]},
        {"prompt": turns, "completion": [{"role": "assistant", "content": "x"}]},
    ]
    evaluation = jsonl(tmp_path / "eval.jsonl", held)
    path = jsonl(tmp_path / "d.jsonl", rows)
    done = curate(Request("length", [path], tmp_path / "o", eval_data=[evaluation]))
    assert done.counts["prompt stands in evaluation data"] == 1 and done.counts["taken"] == 4
    kept = curate(Request("length", [path], tmp_path / "p", eval_data=[evaluation], keep_overlap=True))
    assert kept.counts["taken"] == 5 and "1 rows have a prompt of the 2 evaluation rows given: kept" in kept.notes[0]
    unchecked = curate(Request("length", [path], tmp_path / "q"))
    assert "was not checked" in unchecked.notes[0]


def test_the_page_shows_before_and_after_and_examples_of_what_went(tmp_path):
    rows = pairs(40)
    rows[3]["chosen"] = rows[3]["rejected"]
    rows.append(rows[0])
    done = curate(
        Request("length", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o", options={"minimum": 7}, budget="9")
    )
    page = done.page.read_text()
    for words in ("Before and after", "<svg", "Left out, and why", "identical responses", "duplicate row", "over the budget", "d.jsonl:4", "question 3?", "Rank correlation"):  # fmt: skip
        assert words in page, words


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "lenght"}, "no curate method 'lenght'. Did you mean 'length'"),
        ({"model": "m"}, "asks no model"),
        ({"temperature": 1.0}, "samples nothing"),
        ({"options": {"minimun": 1}}, "no option 'minimun'"),
        ({"keep_overlap": True}, "no effect without --eval-data"),
        ({"data": []}, "There are no data"),
        ({"name": "flip_difficulty"}, "needs a model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(tmp_path, change, says):
    request = {"name": "length", "data": [jsonl(tmp_path / "d.jsonl", pairs(3))], "output": tmp_path / "o", **change}
    with pytest.raises(TruelineError, match=says):
        curate(Request(**request))


def test_broken_lines_are_named(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    with pytest.raises(TruelineError, match=r"d.jsonl:2: broken JSON"):
        open_rows(str(file))
    with pytest.raises(TruelineError, match="has a weight"):
        FilePool.open([f"{file}::0.5"], seed=0)


@pytest.mark.slow
def test_a_large_file_is_never_in_memory(tmp_path):
    file = tmp_path / "big.jsonl"
    with file.open("w") as out:
        for i in range(30_000):
            out.write(
                json.dumps({"prompt": f"question {i}", "chosen": f"{i} " + "yes " * 1500, "rejected": f"no {i}"}) + "\n"
            )
    assert file.stat().st_size > 180_000_000
    code = "import sys; from pathlib import Path; from trueline.curating import Request, curate; curate(Request('length', [sys.argv[1]], Path(sys.argv[2]), budget='0.5', options={'order': 'longest'})); print(open('/proc/self/status').read())"  # fmt: skip
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "o")]
    told = subprocess.run(command, check=True, env={**os.environ}, capture_output=True, text=True).stdout
    # Not getrusage: its maximum survives exec, so that a child of a large process starts with its parent's peak.
    assert int(told.split("VmHWM:")[1].split()[0]) < 600_000  # kB: libraries, not 180 MB of text twice
