"""Studies: from rows made by hand to summaries, verdicts and pages; jobs that wait for what they read."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.publish_study import publish, unpack
from trueline import catalogue
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.studies import inference_aware as infer
from trueline.studies import methods_page, online_offline_page, ranking
from trueline.studies import online_offline as study
from trueline.studies.conduct import SMOKE_TEST, refuse_other_settings
from trueline.studies.findings import Claim, find
from trueline.studies.inference_aware_page import at_matched_kl as inference_matched
from trueline.studies.inference_aware_page import claims as inference_claims
from trueline.studies.inference_aware_page import winners
from trueline.studies.online_offline_data import PAIRS, by_step
from trueline.studies.online_offline_findings import (
    Runs,
    at_matched_kl,
    claims,
    correlation,
    exact,
    findings,
    inversion,
    quantile,
    summaries,
)
from trueline.studies.online_offline_page import write
from trueline.studies.online_offline_subject import Own, ordered, scaled, subject
from trueline.studies.ranking_page import claims as ranking_claims
from trueline.studies.ranking_page import flip_curve, of_row
from trueline.studies.rows import Row
from trueline.studies.settings import (
    INFERENCE,
    LEFT_OUT,
    ONLINE_OFFLINE,
    ONLINE_OFFLINE_OWN,
    ONLINE_OFFLINE_QUICK,
    RANKING,
)
from trueline.wholefile import write_json, write_lines

# ---- verdicts --------------------------------------------------------------------------------------------------------


def claim(*values, sign=1, hypothesis="h"):
    return Claim(hypothesis, "text", sign, values)


def test_a_claim_is_shown_or_not_by_the_side_its_interval_lies_on():
    up, noisy = (0.10, 0.11, 0.12, 0.10, 0.11), (0.4, -0.3, 0.2, -0.4, 0.3)
    assert find([claim(*up)])[0].verdict == "shown"
    assert find([claim(*up, sign=-1)])[0].verdict == "not shown"
    assert find([claim(*noisy)])[0].verdict == "inconclusive"


def test_fewer_than_five_seeds_or_a_seed_without_a_number_are_inconclusive():
    assert find([claim(0.10, 0.11, 0.12, 0.10)])[0].verdict == "inconclusive"
    missing = find([claim(0.10, 0.11, math.nan, 0.10, 0.11)])[0]
    assert missing.verdict == "inconclusive" and missing.number == "–"


def test_intervals_are_widened_within_a_hypothesis_and_not_beyond_it():
    values = (0.10, 0.11, 0.12, 0.10, 0.11)
    alone, *pair = find([claim(*values), claim(*values, hypothesis="g"), claim(*values, hypothesis="g")])
    assert alone.level == pytest.approx(0.95) and pair[0].level == pytest.approx(0.975)
    assert pair[0].low < alone.low
    assert alone.number.startswith("+10.8 [")


def test_rows_under_other_settings_are_refused_but_seeds_may_grow(tmp_path):
    refuse_other_settings(tmp_path, {"steps": 3, "seeds": 2})
    refuse_other_settings(tmp_path, {"steps": 3, "seeds": 5})
    with pytest.raises(TruelineError, match="other settings"):
        refuse_other_settings(tmp_path, {"steps": 4, "seeds": 5})


def test_the_first_job_that_writes_into_a_folder_makes_it(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"x": 1})
    write_lines(tmp_path / "b" / "x.jsonl", [{"x": 1}])
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == json.loads((tmp_path / "b" / "x.jsonl").read_text())


# ---- online against offline: numbers ---------------------------------------------------------------------------------


def row(part, arm, seed, wins, kl, *, accuracy=0.6, digest="a", options=None):
    """wins, kl: of each evaluation; the first is the start's."""
    path = tuple({"reward_accuracy": accuracy + 0.01 * i, "log_ratio_chosen": -1.0} for i in range(len(wins)))
    readings = {**path[-1], "judge_accuracy/implicit": 0.8}
    steps = tuple(float(40 * i) for i in range(len(wins)))
    table = np.array([[w, w] for w in wins])
    return Row(part, arm, seed, readings, ("p", "q"), steps, tuple(kl), table, 1.0, options or {}, path, digest)


def test_the_summary_pools_checkpoints_and_runs_and_leaves_the_start_out():
    rows = [row("headline", "a", 0, [0.9, 0.1, 0.2], [0, 1, 2]), row("headline", "b", 0, [0.9, 0.3, 0.4], [0, 1, 2])]
    assert quantile(rows) == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.4], 0.9))
    assert quantile(rows, until=40) == pytest.approx(np.quantile([0.1, 0.3], 0.9))
    assert math.isnan(quantile([]))


def test_matched_kl_holds_online_against_the_best_that_offline_had_for_no_more():
    online = [row("headline", "online", 0, [0.5, 0.7, 0.9, 0.95], [0, 1.0, 3.0, 9.0])]
    offline = [row("headline", "offline", 0, [0.5, 0.6, 0.8, 0.7], [0, 0.5, 2.0, 4.0])]
    # at KL 1: 0.7 against 0.6; at 3: 0.9 against 0.8; 9 is out of offline's reach
    assert at_matched_kl(online, offline) == pytest.approx(0.1)
    assert math.isnan(at_matched_kl(online, []))


def all_rows(seed, *, offline=0.6, online=0.8, digest="a"):
    """Every arm of one seed of the full settings, with a little spread between seeds."""
    shift = 0.002 * seed
    kl = [0.0, 1.0, 2.0]
    made = [row("headline", study.ONLINE, seed, [0.5, 0.7, online + shift], kl, accuracy=0.55)]
    made.append(row("headline", study.GOLD, seed, [0.5, 0.7, online + 0.05 + shift], kl, accuracy=0.55))
    for rate, beta in itertools.product(ONLINE_OFFLINE.learning_rates, ONLINE_OFFLINE.betas):
        options = {"objectives.ipo.beta": beta}
        name = study.offline_name(rate, beta)
        made.append(row("headline", name, seed, [0.5, 0.55, offline], kl, accuracy=0.65 + shift, options=options))
    names = [study.window_name(w) for w in (0, *ONLINE_OFFLINE.windows)]
    made += [row("coverage", n, seed, [0.5, 0.7, online + shift], kl, digest=digest) for n in names]
    made += [row("quality", n, seed, [0.5, 0.6, 0.6], kl) for n in (*PAIRS, "online stream")]
    made += [row("contrast", n, seed, [0.5, 0.6, 0.6], kl) for n in ("online", "offline lr=0.0003")]
    made += [row("scale", n, seed, [0.5, 0.6, 0.7 + shift], kl) for n in ("quarter online", "threefold online")]
    made += [row("scale", f"{n} offline lr=0.0003", seed, [0.5, 0.6, 0.6], kl) for n in ("quarter", "threefold")]
    return made


def runs(**changes):
    tables = {
        s: {"step": [10.0, 20.0], "proxy": [0.8, 0.6], "offline": [0.6, 0.6], "online": [0.5, 0.5]} for s in range(5)
    }
    rows = [r for seed in range(5) for r in all_rows(seed, **changes)]
    return Runs(rows, tuple(range(5)), tables, ONLINE_OFFLINE)


def test_every_hypothesis_gets_its_claims_from_the_rows():
    found = runs()
    sums = summaries(found)
    assert sums["offline, pooled"][0] == pytest.approx(0.6)
    assert sums["base, offline"][0] == pytest.approx(0.6)
    assert found.sizes == ["quarter", "threefold"]
    made = findings(found, sums)
    assert {f.claim.hypothesis for f in made} == {
        "headline",
        "coverage",
        "quality",
        "classification",
        "contrast",
        "scale",
    }
    by_text = {f.claim.text: f.verdict for f in made}
    assert by_text["online, judged by the proxy, wins more than offline"] == "shown"
    assert by_text["online wins more than its own stream replayed all shuffled"] == "inconclusive"
    assert by_text["offline policies classify golden pairs better than the online one"] == "shown"
    assert by_text["along the online stream the offline policy classifies better than the online one"] == "shown"
    assert inversion(made) == "shown"


def test_the_inversion_is_an_outcome_and_not_an_assertion():
    found = runs(online=0.5, offline=0.7)
    made = findings(found, summaries(found))
    assert inversion(made) == "not shown"
    assert next(f for f in made if f.claim.text.endswith("wins more than offline")).verdict == "not shown"


def test_missing_rows_leave_a_claim_inconclusive():
    whole = runs()
    part = replace(whole, rows=[r for r in whole.rows if not (r.arm == study.ONLINE and r.seed == 3)])
    made = find(claims(part, summaries(part)))
    assert next(f for f in made if f.claim.hypothesis == "headline").verdict == "inconclusive"


def test_accuracy_against_win_rate_is_correlated_over_checkpoints():
    rows = [row("headline", "a", 0, [0.5, 0.9, 0.8, 0.7], [0, 1, 2, 3])]  # accuracy rises by 0.01 each time
    assert correlation(Runs(rows, (0,), {}, ONLINE_OFFLINE), 0) == pytest.approx(-1.0)


def test_a_replay_is_exact_only_where_weights_losses_kl_and_wins_are():
    assert exact(runs()) == dict.fromkeys(range(5), True)
    assert exact(runs(digest="b")) == dict.fromkeys(range(5), False)


# ---- online against offline: the page --------------------------------------------------------------------------------


def saved(tmp_path, found):
    """The study's folder with these rows, as its jobs would have left it."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "data").mkdir()
    for i, r in enumerate(found.rows):
        content = {
            "method": r.method, "arm": r.arm, "seed": r.seed, "readings": r.readings, "prompts": list(r.prompts),
            "step": r.step_C, "kl": r.kl_C, "wins": r.wins_CP.tolist(), "seconds": 1.0, "options": r.options,
            "path": r.path_C, "digest": r.digest, "extra": r.extra,
        }  # fmt: skip
        (tmp_path / "rows" / f"{i}.json").write_text(json.dumps(content))
    for seed, table in found.classified.items():
        study.classification_file(tmp_path, seed).write_text(json.dumps(table))
    refuse_other_settings(tmp_path, {"seeds": 5})
    return tmp_path


FIGURES = ("frontier", "coverage", "quality", "classification", "contrast", "scale")


def test_the_page_has_a_section_a_figure_and_a_verdict_for_every_hypothesis(tmp_path, monkeypatch):
    monkeypatch.setattr(online_offline_page, "draw", lambda *_: set(FIGURES))
    page = write(saved(tmp_path, runs()), ONLINE_OFFLINE, [], own=None, quick=False)
    text = page.read_text()
    for title in ("H1", "H2", "H3", "H4", "H5"):
        assert f"## {title}" in text
    assert all(f"({figure}.svg)" in text for figure in FIGURES)
    assert "5 of 5 seeds gave the online run bit for bit" in text and "smoke test" not in text
    table = json.loads((tmp_path / "online_offline.json").read_text())
    assert table["inversion"] == "shown" and len(table["claims"]) > 15
    assert f"{table['claims'][0]['text']} |" in text


def test_a_replay_that_is_not_the_online_run_is_a_fault_after_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(online_offline_page, "draw", lambda *_: set())
    with pytest.raises(TruelineError, match="bit for bit"):
        write(saved(tmp_path, runs(digest="b")), ONLINE_OFFLINE, [], own=None, quick=True)
    text = (tmp_path / "online_offline.md").read_text()
    assert "0 of 5 seeds" in text and "smoke test" in text


# ---- online against offline: jobs ------------------------------------------------------------------------------------


def test_every_job_waits_for_jobs_that_exist_and_what_is_kept_outlives_its_readers(tmp_path):
    found = study.jobs(tmp_path, ONLINE_OFFLINE)
    names = [j.name for j in found]
    assert len(set(names)) == len(names) and {a for j in found for a in j.after} <= set(names)
    readers = {j.name for j in found if "headline online 0" in j.after and not j.name.startswith("clearing")}
    assert {"pairs 0", "classification 0", "coverage in order 0", "quality online stream 0"} <= readers
    clearing = next(j for j in found if j.name == "clearing 0")
    assert readers <= set(clearing.after)
    assert len({j.product for j in found}) == len(found)


def test_online_is_one_setting_and_it_is_the_centre_of_the_offline_sweep(tmp_path):
    jobs = {j.name: j.arguments[1] for j in study.jobs(tmp_path, ONLINE_OFFLINE) if j.name.startswith("headline")}
    online, centre = jobs["headline online 0"], jobs[f"headline {study._centre(ONLINE_OFFLINE)} 0"]
    differing = {k for k in online.keys() | centre.keys() if online.get(k) != centre.get(k)}
    own = {"data", "source", "feedback", "sources.policy.samples", "record_stream", "save_steps"}
    assert differing == own | {"steps", "eval_steps"}
    assert centre["steps"] == 2 * online["steps"]
    assert sum(name.startswith("headline offline") and name.endswith(" 0") for name in jobs) == 9
    assert len({o["eval_opponent"] for o in jobs.values()}) == 1


def test_the_replay_in_order_has_the_online_runs_options_but_for_its_source(tmp_path):
    jobs = {
        j.name: j.arguments[1] for j in study.jobs(tmp_path, ONLINE_OFFLINE) if " 0" in j.name and len(j.arguments) == 5
    }
    online, again = jobs["headline online 0"], jobs["coverage in order 0"]
    differing = {k for k in online.keys() | again.keys() if online.get(k) != again.get(k)}
    assert differing == {
        "data",
        "source",
        "feedback",
        "sources.policy.samples",
        "sources.replay.window",
        "record_stream",
        "save_steps",
    }


def test_win_rates_are_against_one_fixed_policy(tmp_path):
    runs = [j for j in study.jobs(tmp_path, ONLINE_OFFLINE) if len(j.arguments) == 5]
    assert {j.arguments[1]["eval_opponent"] for j in runs} == {str(study.golden_folder(tmp_path))}
    assert len(runs) > 100 and all("golden policy" in j.after for j in runs)


def test_the_golden_policys_seed_is_never_reported(tmp_path):
    with pytest.raises(TruelineError, match="golden policy"):
        study.jobs(tmp_path, replace(ONLINE_OFFLINE, golden_seed=3))


def test_a_users_model_is_relabelled_fine_tuned_and_given_a_proxy_first(tmp_path):
    own = Own("base", ("d.jsonl",), "reward:rm", ("big",))
    found = {j.name: j for j in study.jobs(tmp_path, replace(ONLINE_OFFLINE_OWN, seeds=2), own)}
    assert found["start 0"].after == ("golden labels",) and found["proxy 0"].after == ("start 0",)
    at = subject(tmp_path, ONLINE_OFFLINE_OWN, 0, own)
    assert found["headline online 0"].arguments[1]["feedback"] == [f"implicit:{at.proxy}"]
    assert "scale big online 1" in found
    with pytest.raises(TruelineError, match="name"):
        scaled(tmp_path, ONLINE_OFFLINE_OWN, 0, replace(own, scales=("a/m", "b/m")))


def test_steps_of_a_users_study_move_its_evaluations_and_the_labs_cannot_be_changed():
    found = study._stepped(ONLINE_OFFLINE_OWN, {"steps": 100, "max_length": 64}, Own("m", ("d",), "g"))
    assert (found["training"].steps, found["mid"], found["eval_steps"]) == (100, 25, 12)
    assert found["max_length"] == 64
    with pytest.raises(TruelineError, match="committed settings"):
        study._stepped(ONLINE_OFFLINE, {"steps": 100}, None)


# ---- online against offline: data ------------------------------------------------------------------------------------


def test_pairs_are_ordered_by_gold_and_ties_left_out():
    def pair(a, b):
        return Group("p", [Response("x", reward=a), Response("y", reward=b)])

    assert [r.text for r in ordered(pair(0.0, 1.0)).responses] == ["y", "x"]
    assert [r.text for r in ordered(pair(2.0, 1.0)).responses] == ["x", "y"]
    assert ordered(pair(1.0, 1.0)) is None and ordered(pair(None, 1.0)) is None


def test_accuracy_along_the_stream_is_a_mean_over_stretches_without_golds_ties():
    right = {"proxy": [1, 0, 1, math.nan], "online": [0, 0, 1, math.nan]}
    found = by_step([1, 1, 2, 2], right, bins=2)
    assert found == {"step": [1.0, 2.0], "proxy": [0.5, 1.0], "online": [0.0, 1.0]}


# ---- ranking ---------------------------------------------------------------------------------------------------------


def ranked(method="dpo", seed=0):
    extra = {
        "chosen_P": [-1.0, -2.0, -3.0, -1.0],
        "rejected_P": [-2.0, -1.0, -2.0, -1.0],
        "reference_chosen_P": [-2.0, -3.0, -5.0, -1.0],
        "reference_rejected_P": [-1.0, -1.0, -1.0, -2.0],
        "prompts": ["a", "b", "c", "d"],
        "agreement": [0.9, 0.9, 0.9, 0.9],
    }
    base = row(method, "", seed, [0.5, 0.7], [0, 1.0])
    return replace(base, extra=extra, readings={"kl": 1.0})


def test_the_ranking_readings_are_those_of_the_measures():
    found = of_row(ranked(), RANKING)
    assert found["before"] == 0.25 and found["after"] == 0.5  # a tie counts as right
    assert found["idealised"] == pytest.approx(0.75)  # at beta 1: logit(.9) = 2.2 mends margins of -1 and -2, not -4
    assert found["reward_accuracy"] == 0.75 and found["flipped"] == pytest.approx(1 / 3)
    assert found["difficulty_flipped"] == 1.0 and found["difficulty_not_flipped"] == 3.0


def test_flips_are_binned_by_difficulty():
    assert flip_curve([ranked()], 3) == {"difficulty": [1.0, 2.0, 4.0], "flipped": [1.0, 0.0, 0.0]}


def test_the_ranking_claims_have_a_number_a_seed():
    numbers = {m: {n: {s: v for s in range(5)} for n, v in of_row(ranked(), RANKING).items()} for m in ranking.METHODS}
    made = ranking_claims(numbers, 5)
    assert {len(c.values_S) for c in made} == {5} and {c.hypothesis for c in made} == set(ranking.METHODS)
    assert made[1].values_S[0] == pytest.approx(-0.1)


def test_ppo_sees_as_many_responses_a_step_as_the_others(tmp_path):
    options = {
        j.name: j.arguments[1] for j in ranking.jobs(tmp_path, RANKING) if j.name.endswith(" 0") and "lab" not in j.name
    }
    assert 2 * options["dpo 0"]["batch_size"] == 4 * options["ppo 0"]["batch_size"] == RANKING.responses


# ---- inference-aware -------------------------------------------------------------------------------------------------


def test_the_law_of_the_best_is_that_of_all_draws():
    law = np.array([0.2, 0.5, 0.3])
    brute = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=3):
        brute[max(drawn)] += math.prod(law[list(drawn)])
    assert infer.best_law(law, 3) == pytest.approx(brute, abs=1e-12)


def test_with_one_draw_all_three_win_rates_are_one_and_the_reference_wins_half():
    rng = np.random.default_rng(0)
    policy, reference = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    one = infer.exact_wins(policy, reference, 1)
    assert len({round(v, 12) for v in one.values()}) == 1
    assert list(infer.exact_wins(reference, reference, 4).values()) == pytest.approx([0.5] * 3)


def test_win_rates_from_samples_are_the_mean_over_all_subsets():
    own, other, n = np.array([3.0, 1.0, 2.0, 2.0, 0.5]), np.array([2.0, 0.0, 2.5, 4.0]), 2

    def brute(pick):
        pairs = itertools.product(itertools.combinations(own, n), itertools.combinations(other, n))
        return np.mean([0.5 + 0.5 * np.sign(pick(a) - pick(b)) for a, b in pairs])

    found = infer.sampled_wins(own, other, n)
    assert found["best"] == pytest.approx(brute(max)) and found["worst"] == pytest.approx(brute(min))
    assert found["win"] == pytest.approx(np.mean(0.5 + 0.5 * np.sign(own[:, None] - other[None, :])))


def test_tables_of_many_responses_come_to_the_closed_forms_and_each_transform_wins_its_own():
    settings = replace(INFERENCE, outcomes=5000, kl=(0.5,))
    forms, tables = infer.closed_forms(settings), infer.tabular(settings, 0)
    for form, table in zip(forms, tables, strict=True):
        assert [table[m] for m in infer.METRICS] == pytest.approx([form[m] for m in infer.METRICS], abs=3e-3)
    assert winners(forms, 0.5) == winners(tables, 0.5) == {"win": "identity", "best": "bon", "worst": "won"}
    published = {"identity": (0.774, 0.800, 0.886), "bon": (0.712, 0.872), "won": (None, None, 0.948)}
    for form in forms:
        for metric, value in zip(infer.METRICS, published.get(form["transform"], ()), strict=False):
            assert value is None or form[metric] == pytest.approx(value, abs=1e-3)


def test_best_of_n_stays_within_its_closed_forms():
    found = infer.best_of_n_bound(50, 4, 0)
    assert found["win"] <= found["win_bound"] == 0.8 and found["kl"] <= found["kl_bound"]


def test_transforms_are_compared_where_all_of_them_have_been():
    def arm(name, kl, wins):
        base = row(name, "", 0, [0.5, 0.6], [0.0, kl])
        return replace(base, extra={"step": [0, 40], **{m: [0.5, wins] for m in infer.METRICS}})

    rows = [arm("identity", 2.0, 0.9), arm("bon", 1.0, 0.8), arm("won", 4.0, 0.9)]
    found = inference_matched(rows, INFERENCE, 0)
    assert {k: v["win"] for k, v in found.items()} == pytest.approx({"identity": 0.7, "bon": 0.8, "won": 0.6})
    assert inference_matched(rows[:2], INFERENCE, 0) == {}
    made = inference_claims({0: found}, INFERENCE)
    assert len(made) == 6 and made[0].values_S == (pytest.approx(-0.1),)


# ---- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ranking", "inference_aware", "online_offline"])
def test_a_quick_study_runs_to_its_page_and_is_not_run_again(name, tmp_path):
    run = {"ranking": ranking.study, "inference_aware": infer.study, "online_offline": study.study}[name]
    page = run(str(tmp_path / "s"), quick=True)
    assert "smoke test" in page.read_text() and "Not finished" not in page.read_text()
    rows = {f: f.stat().st_mtime_ns for f in (tmp_path / "s" / "rows").glob("*.json")}
    assert all(f.stat().st_size < 100_000 for f in rows)
    assert not [p for p in (tmp_path / "s" / "rows").iterdir() if p.is_dir()]  # the weights are gone
    run(str(tmp_path / "s"), quick=True)
    assert {f: f.stat().st_mtime_ns for f in rows} == rows
    if name == "online_offline":
        assert all((tmp_path / "s" / f"{figure}.svg").stat().st_size > 1000 for figure in FIGURES)
        found = json.loads((tmp_path / "s" / "online_offline.json").read_text())
        assert found["replay_in_order_is_the_online_run"] == {"0": True, "1": True}
        assert ONLINE_OFFLINE_QUICK.seeds == 2 and all(c["verdict"] == "inconclusive" for c in found["claims"])


@pytest.mark.slow
def test_a_study_of_a_users_model_relabels_tunes_and_compares(tmp_path, monkeypatch):
    from tests.tiny import tiny_model
    from trueline.lab.model import tokenizer
    from trueline.lab.world import world

    monkeypatch.chdir(tmp_path)
    known = world("unit")
    tok = tokenizer(known)
    tiny_model("llama", vocab_size=len(tok), pad_token_id=0, bos_token_id=1, eos_token_id=2).save_pretrained("base")
    tok.save_pretrained("base")
    rows = [{"prompt": p, "chosen": "it is red .", "rejected": "it is blue . that is all ."} for p in known.train[:60]]
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    own = Own("base", ("pairs.jsonl",), "rule:tests.objective_runs:vowels")
    text = study.study("out", quick=True, own=own).read_text()
    assert "2 of 2 seeds gave the online run bit for bit" in text and "no model of another size" in text
    kept = [json.loads(line) for line in Path("out/data/pairs.jsonl").read_text().splitlines()]
    assert 40 < len(kept) < 60 and kept[0]["chosen"] == "it is blue . that is all ."  # gold turned them round


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_a_published_study_keeps_its_figures_and_a_smoke_test_is_refused(tmp_path):
    folder = tmp_path / "study"
    write_json(folder / "ranking.json", {"seeds": 5})
    (folder / "ranking.svg").write_text("<svg/>")
    write_json(folder / "rows/a.json", {"data": [str(folder.resolve() / "data/pairs.jsonl")]})
    page = folder / "ranking.md"
    page.write_text("# Ranking\n\n![Accuracy](ranking.svg)\n")
    made = publish(folder, tmp_path / "root")
    assert "](study_ranking/ranking.svg)" in made.read_text()
    assert (made.parent / "study_ranking" / "ranking.svg").read_text() == "<svg/>"
    assert json.loads((tmp_path / "root/benchmarks/study_ranking.json").read_text()) == {"seeds": 5}
    unpacked = tmp_path / "again"
    assert unpack(tmp_path / "root/benchmarks/study_ranking_rows.jsonl.xz", unpacked) == 1
    assert json.loads((unpacked / "rows/a.json").read_text()) == {"data": ["STUDY/data/pairs.jsonl"]}
    write_json(folder / "rows/b.json", {"data": ["/elsewhere/pairs.jsonl"]})
    with pytest.raises(TruelineError, match="/elsewhere"):
        publish(folder, tmp_path / "root")
    page.write_text(f"# Ranking\n\n{SMOKE_TEST}")
    with pytest.raises(TruelineError, match="--quick"):
        publish(folder, tmp_path / "root")
    with pytest.raises(TruelineError, match="no page"):
        publish(tmp_path, tmp_path / "root")


def test_every_objective_of_the_methods_study_has_a_colour():
    drawn = [e for e in catalogue.entries("objectives") if e.name not in LEFT_OUT]
    assert {e.needs for e in drawn} <= set(methods_page.FAMILY)
