"""The page of the ranking study: observed against idealised ranking accuracy, flips by difficulty, verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.environment import environment
from trueline.jobs import Failure
from trueline.registry import load
from trueline.studies import conduct
from trueline.studies import findings as verdicts
from trueline.studies.findings import Claim
from trueline.studies.ranking import METHODS
from trueline.studies.rows import Row, read_rows
from trueline.studies.settings import RankingSettings
from trueline.studies.verdict import student
from trueline.wholefile import write_json

SIDES = ("chosen_P", "rejected_P")
REFERENCE = ("reference_chosen_P", "reference_rejected_P")
COLOURS = {"dpo": "#0072B2", "ipo": "#D55E00", "ppo": "#009E73"}
Numbers = dict[str, dict[str, dict[int, float]]]  # method, reading, seed


def write(root: Path, settings: RankingSettings, failures: Sequence[Failure], *, quick: bool) -> Path:
    """Write ranking.md, ranking.json and the figures; returns the page."""
    rows = [r for r in read_rows(root / "rows") if r.seed < settings.seeds]
    numbers = readings(rows, settings)
    flips = {m: flip_curve([r for r in rows if r.method == m], settings.bins) for m in METHODS}
    found = verdicts.find(claims(numbers, settings.seeds))
    machine = environment()
    content = {
        "settings": json.loads((root / "settings.json").read_text(encoding="utf-8")),
        "seeds": settings.seeds,
        "environment": machine,
        "readings": numbers,
        "flips_by_difficulty": flips,
        "claims": [f.to_json() for f in found],
        "failures": [vars(f) for f in failures],
    }
    write_json(root / "ranking.json", content)
    _draw(rows, flips, numbers, root)
    page = root / "ranking.md"
    s = settings
    parts = [
        "# Ranking accuracy, observed and idealised\n",
        *([conduct.SMOKE_TEST] if quick else []),
        f"Held-out pairs of the lab's start, labelled by gold; {s.seeds} seeds, {s.training.steps} steps of {s.responses} "
        f"responses, every method at its own defaults, learning rate {s.training.learning_rate:g}. Ranking accuracy: is the better "
        "response at least as likely. Idealised: the same for the exact optimum of the objective, whose raters agree as gold's "
        f"Bradley-Terry probability says; the beta with the median one of {', '.join(f'{b:g}' for b in s.idealised_betas)} "
        f"(arXiv 2405.19534). {conduct.FIXED}\n",
        conduct.measured_on(machine),
        f"{verdicts.counted(found)}, of {len(found)} claims.\n",
        "![Ranking accuracy and flips by difficulty](ranking.svg)\n",
        *_table(numbers),
        "\n## Claims\n",
        *verdicts.table(found),
        "\nStudent's intervals over seeds, widened for the claims of one method. Differences are in percentage points, "
        "difficulties in nats.\n",
    ]
    parts += ["## Not finished\n", *(f"- `{f.name}`: {f.reason}" for f in failures)] if failures else []
    page.write_text("\n".join([*parts, ""]), encoding="utf-8")
    return page


def readings(rows: Sequence[Row], settings: RankingSettings) -> Numbers:
    """Every reading by method and seed; what speaks of the start alone stands under each method as well."""
    found: Numbers = {m: {} for m in METHODS}
    for row in rows:
        for name, value in of_row(row, settings).items():
            found[row.method].setdefault(name, {})[row.seed] = value
    return found


def of_row(row: Row, settings: RankingSettings) -> dict[str, float]:
    """The measures of the family on one run's pairs."""
    x = row.extra
    own, start = [x[c] for c in SIDES], [x[c] for c in REFERENCE]
    prompts, agreement = x["prompts"], x["agreement"]

    def call(measure: str, *columns: Any, **options: Any) -> Any:
        return load("measure", measure).call(*columns, **options)

    ideal = [
        call("idealised_ranking_accuracy", *start, prompts, agreement, beta=b).value for b in settings.idealised_betas
    ]
    flips = {r.name: r.value for r in call("flip_difficulty", *own, *start, prompts)}
    return {
        "before": call("ranking_accuracy", *start, prompts).value,
        "after": call("ranking_accuracy", *own, prompts).value,
        "idealised": float(np.median(ideal)),
        "idealised_lowest": min(ideal),
        "idealised_highest": max(ideal),
        "gap": call("alignment_gap", *own, *start, prompts, agreement, betas=settings.idealised_betas).value,
        "reward_accuracy": float(np.mean(np.subtract(*own) > np.subtract(*start))),
        "win_rate": row.win_rate,
        "kl": row.reading("kl"),
        **{name: flips.get(name, float("nan")) for name in ("flipped", "difficulty_flipped", "difficulty_not_flipped")},
        "unlearned": flips["right_to_wrong"],
    }


def claims(numbers: Numbers, seeds: int) -> list[Claim]:
    """What the paper says, as a number a seed."""
    found = []

    def add(method: str, text: str, sign: int, of: Callable[[dict[str, float]], float], *, shares: bool = True) -> None:
        values = []
        for seed in range(seeds):
            row = {name: by_seed[seed] for name, by_seed in numbers[method].items() if seed in by_seed}
            values.append(of(row) if row else float("nan"))
        found.append(Claim(method, f"{method.upper()}: {text}", sign, tuple(values), shares))

    for method in METHODS:
        add(method, "the ranking accuracy it reaches stays below the idealised one", +1, lambda r: r["gap"])
        add(method, "it ranks fewer than 60 % of pairs rightly", -1, lambda r: r["after"] - 0.6)
        add(method, "it ranks more pairs rightly than the start does", +1, lambda r: r["after"] - r["before"])
        add(
            method,
            "it tells more pairs apart by log-ratio than it ranks rightly",
            +1,
            lambda r: r["reward_accuracy"] - r["after"],
        )
        add(method, "wrong pairs that flip are the easier ones (median difficulty, nats)", -1, lambda r: r["difficulty_flipped"] - r["difficulty_not_flipped"], shares=False)  # fmt: skip
    return found


def flip_curve(rows: Sequence[Row], bins: int) -> dict[str, list[float]]:
    """Share of the start's wrong pairs that flipped, in bins of equally many pairs by difficulty; all seeds pooled."""
    if not rows:
        return {"difficulty": [], "flipped": []}
    items = [
        item
        for r in rows
        for item in load("measure", "flip_difficulty").call(*(r.extra[c] for c in (*SIDES, *REFERENCE)))[0].items
        if not item["before"]
    ]
    items.sort(key=lambda item: item["difficulty"])
    parts = [p for p in np.array_split(np.arange(len(items)), bins) if len(p)]
    return {
        "difficulty": [float(np.median([items[i]["difficulty"] for i in p])) for p in parts],
        "flipped": [float(np.mean([items[i]["after"] for i in p])) for p in parts],
    }


def _table(numbers: Numbers) -> list[str]:
    shown = (
        ("before", "start", 100),
        ("after", "after", 100),
        ("idealised", "idealised", 100),
        ("gap", "gap", 100),
        ("reward_accuracy", "by log-ratio", 100),
        ("flipped", "wrong pairs flipped", 100),
        ("unlearned", "right pairs lost", 100),
        ("win_rate", "win rate", 100),
        ("kl", "KL, nats", 1),
    )
    lines = ["| method | " + " | ".join(title for _, title, _ in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for method, own in numbers.items():
        lines.append(f"| {method} | " + " | ".join(_cell(own.get(n, {}), scale) for n, _, scale in shown) + " |")
    return [*lines, "\nPer cent, means over seeds with Student's 95 % interval; win rate by gold against the start."]


def _cell(by_seed: dict[int, float], scale: float) -> str:
    values = scale * np.array(list(by_seed.values()))
    interval = student(values, 0.95)
    if interval is None:
        return "–"
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _draw(rows: Sequence[Row], flips: dict[str, dict[str, list[float]]], numbers: Numbers, root: Path) -> None:
    plt = conduct.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for method in METHODS:
        for i, row in enumerate(r for r in rows if r.method == method):
            path = [100 * p.get("ranking_accuracy", float("nan")) for p in row.path_C]
            left.plot(row.step_C, path, color=COLOURS[method], lw=1, alpha=0.8, label=method if i == 0 else None)
        curve = flips[method]
        right.plot(
            curve["difficulty"], [100 * v for v in curve["flipped"]], "o-", ms=4, color=COLOURS[method], label=method
        )
    ideal = [v for m in METHODS for v in numbers[m].get("idealised", {}).values()]
    if ideal:
        left.axhline(100 * float(np.mean(ideal)), color="#999999", ls="--", lw=1, label="idealised")
    left.axhline(50, color="#999999", lw=0.8, ls=":")
    left.set(xlabel="step", ylabel="held-out ranking accuracy, %")
    left.legend(frameon=False)
    right.set(
        xlabel="difficulty: how much likelier the start finds the worse one, nats", ylabel="wrong pairs that flipped, %"
    )
    conduct.save_figure(figure, root / "ranking.svg")
