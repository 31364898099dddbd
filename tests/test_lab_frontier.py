"""Runs are compared where they spent the same KL, by a rule that does not look at who wins."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from trueline.errors import TruelineError
from trueline.lab.frontier import Frontier, at_end, at_matched_kl, over_seeds
from trueline.lab.verdict import sentences, summarise, write_table

PROMPTS = tuple(f"p{i}" for i in range(40))


def path(kls: list[float], means: list[float], prompts: tuple[str, ...] = PROMPTS) -> Frontier:
    spread = np.linspace(-0.1, 0.1, len(prompts))
    wins = np.array([m + spread for m in means])
    return Frontier(prompts, np.arange(len(kls)) * 30.0, np.array(kls), wins)


def test_matched_kl_is_the_smaller_end_and_wins_are_interpolated_there():
    arm, baseline = path([0, 3, 6], [0.5, 0.7, 0.9]), path([0, 2, 4], [0.5, 0.6, 0.8])
    found = at_matched_kl(0, arm, baseline)
    assert found.kl_arm == found.kl_baseline == 4
    assert found.arm_P.mean() == pytest.approx(0.7 + 0.2 / 3)
    assert found.baseline_P.mean() == pytest.approx(0.8)
    assert found.interval.value == pytest.approx(0.2 / 3 - 0.1)


def test_a_path_is_read_where_it_last_stood_at_the_kl():
    arm = path([0, 4, 2, 6], [0.5, 0.6, 0.9, 1.0])
    assert arm.at_kl(3.0).mean() == pytest.approx(0.925)
    assert arm.at_kl(1.0).mean() == pytest.approx(0.525)
    assert arm.at_kl(6.0).mean() == pytest.approx(1.0)
    overshot = path([0, 5, 4], [0.5, 0.6, 0.8])
    assert at_matched_kl(0, overshot, path([0, 8], [0.5, 0.9])).arm_P.mean() == pytest.approx(0.8)
    with pytest.raises(TruelineError, match="never stood"):
        arm.at_kl(7.0)


def test_the_end_is_the_last_evaluation_not_the_best():
    found = at_end(3, path([0, 3, 6], [0.5, 0.9, 0.6]), path([0, 1, 2], [0.5, 0.6, 0.7]))
    assert (found.seed, found.kl_arm, found.kl_baseline) == (3, 6, 2)
    assert found.interval.value == pytest.approx(-0.1)


def test_different_prompts_are_not_compared():
    with pytest.raises(TruelineError, match="same prompts"):
        at_end(0, path([0, 1], [0.5, 0.6]), path([0, 1], [0.5, 0.6], PROMPTS[:-1]))


def test_over_seeds_the_interval_grows_with_what_seeds_disagree_on():
    rng = np.random.default_rng(0)

    def table(spread: float):
        ends = []
        for seed, shift in enumerate(spread * np.array([-1, -0.5, 0, 0.5, 1])):
            a, b = path([0, 1], [0.5, 0.7 + shift]), path([0, 1], [0.5, 0.6])
            a.wins_CP[:] += 0.01 * rng.standard_normal(a.wins_CP.shape)
            ends.append(at_end(seed, a, b))
        return over_seeds(ends)

    calm, wild = table(0.0), table(0.2)
    assert calm.value == pytest.approx(0.1, abs=0.01)
    assert calm.low > 0.08
    assert wild.low < 0 < wild.high
    assert over_seeds([at_end(0, path([0, 1], [0.5, 0.6]), path([0, 1], [0.5, 0.6]))]) is None


# ---- run folders made by hand: the sentences and the table say what is in them -------------------------------------


def write_run(
    folder: Path, *, source: str, feedback: list[str], kl: list[float], wins: list[float], proxy: list[float]
):
    """A run folder whose win share on every prompt of evaluation c is wins[c] (of 20 opponents, gold 0..19 + 0.5)."""
    home = folder / "trueline"
    home.mkdir(parents=True)
    config = {
        "objective": {"ipo": 1.0},
        "source": source,
        "feedback": feedback,
        "eval_feedback": ["lab", "implicit:c/proxy"],
    }
    (home / "config.json").write_text(json.dumps(config))
    (home / "summary.json").write_text(json.dumps({"status": "finished", "fingerprints": {"model": "m", "data": "d"}}))
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))
    evals, samples = [], []
    for c, step in enumerate(range(0, 30 * len(kl), 30)):
        golds = {p: 20 * wins[c] + rng.choice([-1, 0, 1]) for p in PROMPTS}

        def reading(value: float) -> dict:
            return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": len(PROMPTS), "unit": ""}

        readings = {
            "kl": reading(kl[c]),
            "reward/lab": reading(float(np.mean(list(golds.values())))),
            "reward/implicit": reading(proxy[c]),
            "win_rate/lab": reading(wins[c]),
            "reward_accuracy": reading(0.6 + 0.01 * c),
            "attribute/well_formed": reading(0.8),
        }
        evals.append({"step": step, "readings": readings})
        for p in PROMPTS:
            rewards = {"lab": golds[p], "implicit": proxy[c]}
            samples.append({"step": step, "prompt_id": p, "prompt": p, "text": "x", "rewards": rewards})
    other = [{"prompt_id": p, "texts": ["y"] * 20, "rewards": {"lab": [i + 0.5 for i in range(20)]}} for p in PROMPTS]
    for name, rows in (
        ("evals", evals),
        ("samples", samples),
        ("opponent", other),
        ("metrics", [{"step": 1, "loss": 0.0}]),
    ):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def write_arms(folder: Path, gold_end: float = 0.9, offline_end: float = 0.7) -> Path:
    write_run(
        folder / "offline",
        source="data",
        feedback=["data"],
        kl=[0, 2, 4],
        wins=[0.5, 0.6, offline_end],
        proxy=[0, 1, 2],
    )
    write_run(
        folder / "online-gold",
        source="policy",
        feedback=["lab"],
        kl=[0, 3, 5],
        wins=[0.5, 0.7, gold_end],
        proxy=[0, 1, 2],
    )
    write_run(
        folder / "online-proxy",
        source="policy",
        feedback=["implicit:c/proxy"],
        kl=[0, 8, 16],
        wins=[0.5, 0.65, 0.45],
        proxy=[0, 3, 6],
    )
    return folder


def test_the_sentences_say_who_won_by_how_much_and_at_what_kl(tmp_path):
    gold, proxy, pairs = sentences(write_arms(tmp_path))
    assert gold.startswith("Online IPO judged by gold beats offline IPO by ")
    assert "this seed only" in gold
    assert "at KL 5 against 4" in gold
    assert "same KL of 4 the difference is +" in gold
    assert proxy.startswith("Offline IPO beats online IPO judged by proxy by ")
    assert "it over-optimised its proxy" in proxy
    assert "From step 30 to 60" in proxy
    assert pairs.count("62.0") == 3


def test_no_difference_is_called_none(tmp_path):
    gold, _, _ = sentences(write_arms(tmp_path, gold_end=0.7))
    assert gold.startswith("No difference was found between online IPO judged by gold and offline IPO")


def test_the_table_counts_seeds_and_gives_the_two_level_interval(tmp_path):
    folders = [write_arms(tmp_path / f"seed-{i}", gold_end=end) for i, end in enumerate((0.9, 0.85, 0.9, 0.6))]
    summary = summarise(folders)
    end = summary["against_offline"]["online-gold"]["end"]
    assert (end["higher"], end["clearly_higher"], end["clearly_lower"]) == (3, 3, 1)
    assert end["overall"]["value"] == pytest.approx(np.mean([r["difference"] for r in end["seeds"]]))
    assert end["overall"]["low"] < 0 < end["overall"]["high"]
    assert summary["seeds"][0]["online-proxy"]["proxy"] == [0, 3, 6]
    text = write_table(folders, tmp_path).read_text()
    assert "Higher in 3 of 4 seeds" in text
    assert json.loads((tmp_path / "seeds.json").read_text()) == summary
