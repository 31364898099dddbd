"""Can it be trusted: what watched and stayed quiet, whether the judge was good enough, what was not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueline.report.numbers import interval, listed, points, short, with_unit
from trueline.report.outcome import Difference, Verdict, all_differences, final_wins
from trueline.report.record import Reading, Record, judge_name, number

ALL_PAIRS = 10  # with more runs a table of every pair says nothing

# What a reader may look for: reading, its name in words, how to get it.
EXPECTED = (
    ("win_rate/", "win rate", "--eval-steps and --eval-feedback"),
    ("kl", "KL to the start", "--eval-steps and an objective with a reference"),
    ("reward_accuracy", "held-out reward accuracy", "--eval-steps and held-out preference pairs"),
    ("entropy", "entropy of the samples", "--eval-steps and an objective with a reference"),
)


@dataclass
class Trust:
    """Sentences and tables of the block. quiet: (alarm, what it looks at, runs it watched)."""

    quiet: list[tuple[str, str, str]] = field(default_factory=list)
    judges: list[list[str]] = field(default_factory=list)
    pairs: list[Difference] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)


def build(runs: Sequence[Record], found: Verdict, looks_at: Mapping[str, str]) -> Trust:
    """Everything the block shows."""
    trust = Trust(quiet=_quiet(runs, looks_at), judges=_judges(runs))
    if found.judge and found.differences and len(runs) <= ALL_PAIRS:
        trust.pairs = [d for group in found.comparable for d in all_differences(group, found.judge)]
    for run in runs:
        trust.checks += _checks(run, found.judge)
        missing = [f"{words} (needs {how})" for name, words, how in EXPECTED if not _measured(run, name)]
        if missing:
            trust.unmeasured.append(f"{run.name}: no {'; no '.join(missing)}.")
    return trust


def _measured(run: Record, name: str) -> bool:
    return any(n == name or (name.endswith("/") and n.startswith(name)) for n in run.reading_names())


def _quiet(runs: Sequence[Record], looks_at: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Alarms that watched and did not fire, with the runs they watched."""
    watched: dict[str, list[str]] = {}
    for run in runs:
        fired = {a.get("name") for a in run.alarms}
        for name in run.summary.get("alarms_watched") or []:
            if name not in fired:
                watched.setdefault(name, []).append(run.name)
    return [
        (name.replace("_", " "), looks_at.get(name, ""), "all runs" if len(w) == len(runs) else listed(w, 3))
        for name, w in watched.items()
    ]


def _judges(runs: Sequence[Record]) -> list[list[str]]:
    """Run, judge, its accuracy on held-out pairs, the policy's own: a judge below its pupil has little to teach."""
    rows = []
    for run in runs:
        own = run.final("reward_accuracy")
        for name in sorted(n for n in run.reading_names() if n.startswith("judge_accuracy/")):
            label = name.partition("/")[2]
            judge = run.final(name)
            if judge is None or label == "lab":  # the lab's gold reward is the truth by definition
                continue
            rows.append(
                [
                    run.name,
                    judge_name(run, label),
                    f"{with_unit(judge.value, name)} {interval(judge, name)}",
                    f"{with_unit(own.value, 'reward_accuracy')} {interval(own, 'reward_accuracy')}"
                    if own
                    else "not measured",
                    _judge_against(judge, own) if own else "",
                ]
            )
    return rows


def _judge_against(judge: Reading, own: Reading) -> str:
    """Only intervals that do not touch are called a difference."""
    if judge.low is None or judge.high is None or own.low is None or own.high is None:
        return "no interval"
    if judge.low > own.high:
        return "the judge is better"
    return "the judge is worse" if judge.high < own.low else "no difference found"


def _checks(run: Record, judge: str | None) -> list[str]:
    """What this page verified or noticed by itself about one run."""
    said = [f"{run.name}: {note}" for note in run.notes]
    absent = [name for name in run.missing if name not in ("alarms.jsonl", "opponent.jsonl")]
    if absent:
        said.append(
            f"{run.name}: {listed(sorted(absent))} {'is' if len(absent) == 1 else 'are'} missing, and so is what they hold."
        )
    layout = run.summary.get("layout") or {}
    if layout.get("mode"):
        gap = layout.get("max_difference")
        measured = (
            f" (largest log-prob difference to the plain model: {short(gap)})" if isinstance(gap, int | float) else ""
        )
        why = f": {layout['reason']}" if layout.get("mode") == "padded" and layout.get("reason") else ""
        said.append(f"{run.name}: {layout['mode']} layout{measured}{why}.")
    bad = [int(r["step"]) for r in run.metrics if not all(math.isfinite(v) for v in _watched_values(run, r))]
    if bad:
        steps = f"{len(bad)} steps" if len(bad) > 1 else "one step"
        said.append(
            f"{run.name}: loss or gradient norm was not finite in {steps} (step {listed([str(s) for s in bad], 4)})."
        )
    if run.config.get("best_metric") and run.status == "finished":
        said.append(
            f"{run.name}: its model is the checkpoint of step {run.model_step}, picked by {run.config['best_metric']} on the "
            "held-out data shown here, which flatters that reading."
        )
    return [*said, *_recomputed(run, judge)]


def _watched_values(run: Record, row: dict) -> list[float]:
    return [number(row[name]) for name in ("loss", "grad_norm") if name in row]


def _recomputed(run: Record, judge: str | None) -> list[str]:
    """The win rate from the saved samples must be the one that the run recorded."""
    recorded = run.final(f"win_rate/{judge}") if judge else None
    shares = final_wins(run, judge) if judge else {}
    if recorded is None or not shares:
        return []
    again = float(np.mean(list(shares.values())))
    name = f"win_rate/{judge}"
    if abs(again - recorded.value) < 1e-6:
        return [
            f"{run.name}: its win rate, computed again from the saved samples, is the recorded {with_unit(again, name)}."
        ]
    return [
        f"{run.name}: the saved samples give a win rate of {with_unit(again, name)}, the run recorded "
        f"{with_unit(recorded.value, name)} ({points(again - recorded.value, sign=True)} points apart). "
        "Comparisons here stand on the samples; find out why they differ before citing either."
    ]
