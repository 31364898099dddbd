"""The page of the methods study: a table of every arm, two figures, the sweep, and a verdict for every claim.

Reads the rows and nothing else. The same numbers go to `methods.json`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline import catalogue
from trueline.environment import environment
from trueline.intervals import Interval, two_level_mean
from trueline.jobs import Failure
from trueline.studies.claims import CLAIMS
from trueline.studies.conduct import SMOKE_TEST, measured_on, pyplot, save_figure
from trueline.studies.rows import Row, read_rows
from trueline.studies.settings import LEFT_OUT, MethodsSettings
from trueline.studies.verdict import Verdict, judge_claims, over_seeds
from trueline.wholefile import write_json

COLUMNS = (
    ("kl", "KL, nats", 1.0),
    ("length", "length, tokens", 1.0),
    ("ranking_accuracy", "ranking acc. %", 100.0),
    ("reward_accuracy", "reward acc. %", 100.0),
    ("log_ratio_chosen", "log-ratio chosen", 1.0),
    ("log_ratio_rejected", "log-ratio rejected", 1.0),
)


@dataclass(frozen=True)
class Line:
    """One arm over its seeds: the win rate's two-level interval, means of the readings, difference to dpo's arm."""

    method: str
    arm: str
    seeds: int
    win: Interval | None
    means: dict[str, float]
    against: Interval | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        def plain(interval: Interval | None) -> dict[str, float] | None:
            return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}

        return {**vars(self), "win": plain(self.win), "against": plain(self.against)}


def write(root: Path, settings: MethodsSettings, failures: Sequence[Failure], *, quick: bool) -> Path:
    """Write methods.md, methods.json and the figures into the study's folder; returns the page."""
    rows = read_rows(root / "rows")
    main = [r for r in rows if not r.arm.startswith("sweep")]
    lines = table_lines(main)
    asked = [c for c in CLAIMS if any((r.method, r.arm) == (c.method, c.arm) for r in main)]
    verdicts = judge_claims(asked, main)
    spread = robustness(rows, settings)
    machine = environment()
    found = {
        "settings": json.loads((root / "settings.json").read_text(encoding="utf-8")),
        "seeds": settings.seeds,
        "environment": machine,
        "arms": [line.to_json() for line in lines],
        "claims": [v.to_json() for v in verdicts],
        "robustness": spread,
        "failures": [vars(f) for f in failures],
    }
    write_json(root / "methods.json", found)
    draw(lines, spread, root)
    page = root / "methods.md"
    page.write_text(markdown(lines, verdicts, spread, failures, settings, machine, quick=quick), encoding="utf-8")
    return page


def table_lines(rows: Sequence[Row]) -> list[Line]:
    """One line an arm, best win rate first; reward models, which write nothing, last."""
    grouped: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.method, row.arm].append(row)
    corrected = 1 - 0.05 / max(len(grouped), 1)
    lines = []
    for (method, arm), own in grouped.items():
        base = grouped.get(("dpo", arm), []) if method != "dpo" else []
        writes = all(len(r.wins_CP) for r in own)
        win = two_level_mean(np.stack([r.wins_CP[-1] for r in own])) if writes and len(own) > 1 else None
        gap = over_seeds(own, base, "win_rate", corrected) if writes and base else None
        means = {name: float(np.mean([r.reading(name) for r in own])) for name, _, _ in COLUMNS}
        lines.append(Line(method, arm, len(own), win, means, gap, float(np.mean([r.seconds for r in own]))))
    return sorted(lines, key=lambda n: (n.win is None, -(n.win.value if n.win else 0.0), n.method))


def robustness(rows: Sequence[Row], settings: MethodsSettings) -> list[dict[str, Any]]:
    """Best, median, mean and worst win rate of each method over its sweep (default included), on the sweep's seed."""
    found = []
    swept = [r for r in rows if r.arm.startswith("sweep") and len(r.wins_CP)]
    for method in sorted({r.method for r in swept}):
        own = [r for r in swept if r.method == method]
        arm = own[0].arm.split()[1]
        default = [r for r in rows if (r.method, r.arm, r.seed) == (method, arm, settings.sweep_seed)]
        wins = np.array([r.win_rate for r in own + default])
        found.append(
            {
                "method": method,
                "arm": arm,
                "runs": len(wins),
                "best": float(wins.max()),
                "mean": float(wins.mean()),
                "median": float(np.median(wins)),
                "worst": float(wins.min()),
                "spread": float(wins.max() - wins.min()),
                "kl_low": float(min(r.reading("kl") for r in own + default)),
                "kl_high": float(max(r.reading("kl") for r in own + default)),
            }
        )
    return sorted(found, key=lambda r: -r["median"])


# ---- the page --------------------------------------------------------------------------------------------------------


def markdown(
    lines: Sequence[Line],
    verdicts: Sequence[Verdict],
    spread: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
    settings: MethodsSettings,
    machine: dict[str, Any],
    *,
    quick: bool,
) -> str:
    training = settings.training
    counts = {v: sum(x.verdict == v for x in verdicts) for v in ("shown", "not shown", "inconclusive")}
    parts = ["# Every objective under one budget\n"]
    if quick:
        parts.append(SMOKE_TEST)
    parts += [
        f"The lab's world and start, {settings.seeds} seeds, {training.steps} steps of {settings.responses} responses, "
        f"AdamW at {training.learning_rate:g} falling to {training.final_learning_rate:g} of it, every method at its own "
        "defaults. `offline` learns from gold-labelled pairs of the start, `online` from fresh samples that gold judges "
        f"(two a prompt; {settings.group_samples} for objectives on groups), `noisy` from pairs of which "
        f"{settings.noise:.0%} are turned round. Settings: `trueline/studies/settings.py`, claims: "
        "`trueline/studies/claims.py`, both committed before these seeds were run. One common learning rate is a budget, "
        "not a tuning: a method that needs another one is at a disadvantage here, and the sweep below shows by how much.\n",
        measured_on(machine),
        "![Win rate against KL](methods_frontier.svg)\n",
        "## The table\n",
        "Win rate by gold against fixed samples of the start, in percent, with its 95 % two-level interval over seeds and "
        f"prompts. *Against dpo* is the paired difference to dpo in the same arm with an interval widened for all "
        f"{len(lines)} arms (Bonferroni): only where it excludes zero is a difference more than one of many looks. Of "
        "as many 95 % intervals one in twenty would miss by chance alone.\n",
        *_table(lines),
        "\n## Claims\n",
        f"{counts['shown']} shown, {counts['not shown']} not shown, {counts['inconclusive']} inconclusive, of "
        f"{len(verdicts)}. A claim is shown where the interval of its difference, widened for the number of claims, lies "
        "wholly on the claimed side; not shown where it lies wholly on the other; inconclusive where it holds zero. These "
        "are verdicts about a 0.4 M-parameter model in a small world at one budget, and about nothing else.\n",
        *_verdicts(verdicts),
        "\n## Robustness\n",
        *_robustness(spread, settings),
    ]
    missing = [f"- `{name}`: {reason}" for name, reason in LEFT_OUT.items()]
    missing += [f"- `{f.name}` did not finish: {f.reason}" for f in failures]
    return "\n".join([*parts, "\n## Not in the table\n", *missing, ""])


def _points(value: float, *, sign: bool = False) -> str:
    return "–" if math.isnan(value) else f"{100 * value:{'+' if sign else ''}.1f}"


def _table(lines: Sequence[Line]) -> list[str]:
    head = ["method", "arm", "win rate", "against dpo", *(title for _, title, _ in COLUMNS), "s a run"]
    found = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in lines:
        win = f"**{_points(line.win.value)}** [{_points(line.win.low)}, {_points(line.win.high)}]" if line.win else "–"
        gap = line.against
        against = f"{_points(gap.value, sign=True)} [{_points(gap.low)}, {_points(gap.high)}]" if gap else "–"
        numbers = [
            "–" if math.isnan(line.means[name]) else f"{scale * line.means[name]:.3g}" for name, _, scale in COLUMNS
        ]
        found.append("| " + " | ".join([line.method, line.arm, win, against, *numbers, f"{line.seconds:.0f}"]) + " |")
    return found


def _verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    found = ["| claim | difference | verdict |", "|---|---|---|"]
    for v in sorted(verdicts, key=lambda v: ("shown", "not shown", "inconclusive").index(v.verdict)):
        c = v.claim
        rate = c.statistic in ("win_rate", "ranking_accuracy", "reward_accuracy")
        values = [_points(x, sign=i == 0) if rate else f"{x:.3g}" for i, x in enumerate((v.difference, v.low, v.high))]
        other = c.versus if c.versus_arm == c.arm else f"{c.versus}, {c.versus_arm}"
        what = f"**{c.method}**, {c.arm}: {c.text} ({c.statistic} {'above' if c.sign > 0 else 'below'} {other})"
        number = f"{values[0]} [{values[1]}, {values[2]}]" if math.isfinite(v.difference) else "–"
        found.append(f"| {what} | {number} | {v.verdict} |")
    return found


def _robustness(spread: Sequence[dict[str, Any]], settings: MethodsSettings) -> list[str]:
    if not spread:
        return ["The sweep has not been run: `trueline study methods` runs it last.\n"]
    return [
        f"Win rate on seed {settings.sweep_seed} at the default and with the learning rate and the method's strength each "
        f"times {', '.join(f'{f:.3g}' for f in settings.sweep)}, one at a time.\n",
        "![Spread of the sweep](methods_sweep.svg)\n",
        *_sweep(spread),
    ]


def _sweep(spread: Sequence[dict[str, Any]]) -> list[str]:
    found = ["| method | arm | runs | best | mean | median | worst | spread | KL |", "|" + "---|" * 9]
    for row in spread:
        shares = " | ".join(_points(row[k]) for k in ("best", "mean", "median", "worst", "spread"))
        kl = f"{row['kl_low']:.2g} to {row['kl_high']:.2g}"
        found.append(f"| {row['method']} | {row['arm']} | {row['runs']} | {shares} | {kl} |")
    return found


# ---- figures ---------------------------------------------------------------------------------------------------------

FAMILY = {
    "PAIRS": "pairs",
    "DEMONSTRATIONS": "demonstrations",
    "THUMBS": "thumbs",
    "GROUPS": "scored groups",
    "PREFERENCES": "preferences",
    "EXPLORATION": "exploration",
    "DISTILLATION": "distillation",
}


def draw(lines: Sequence[Line], spread: Sequence[dict[str, Any]], root: Path) -> None:
    """Win rate against KL of every arm, and the range of every sweep."""
    plt = pyplot()
    _frontier(lines, root / "methods_frontier.svg", plt)
    if spread:
        _ranges(spread, root / "methods_sweep.svg", plt)


def _frontier(lines: Sequence[Line], target: Path, plt: Any) -> None:
    needs = {e.name: e.needs for e in catalogue.entries("objectives")}
    colours = dict(
        zip(FAMILY, ("#0072B2", "#000000", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9"), strict=True)
    )
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True)
    for panel, arm in zip(panels, ("offline", "online"), strict=True):
        for line in [n for n in lines if n.arm == arm and n.win is not None]:
            family = str(needs.get(line.method, "PAIRS"))
            error = [[100 * (line.win.value - line.win.low)], [100 * (line.win.high - line.win.value)]]  # type: ignore[union-attr]
            x, y = line.means["kl"], 100 * line.win.value  # type: ignore[union-attr]
            panel.errorbar(x, y, error, fmt="o", ms=4, lw=0.7, color=colours[family], alpha=0.8)
            panel.annotate(line.method, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5)
        panel.axhline(50, color="#999999", lw=0.8, ls=":")
        panel.set(title=arm, xlabel="KL to the start, nats a reply")
    panels[0].set_ylabel("gold win rate against the start, %")
    marks = [plt.Line2D([], [], marker="o", ls="", color=c, label=FAMILY[f]) for f, c in colours.items()]
    panels[1].legend(handles=marks, loc="lower right", fontsize=7, frameon=False)
    save_figure(figure, target)


def _ranges(spread: Sequence[dict[str, Any]], target: Path, plt: Any) -> None:
    figure, panel = plt.subplots(figsize=(8, 0.6 + 0.17 * len(spread)))
    for place, row in enumerate(reversed(spread)):
        panel.plot([100 * row["worst"], 100 * row["best"]], [place, place], color="#0072B2", lw=1.2)
        panel.plot(100 * row["median"], place, "o", ms=3.5, color="#D55E00")
    panel.set_yticks(range(len(spread)), [f"{r['method']} ({r['arm']})" for r in reversed(spread)], fontsize=6.5)
    panel.set(xlabel="gold win rate over the sweep, %: worst to best, dot at the median")
    panel.axvline(50, color="#999999", lw=0.8, ls=":")
    save_figure(figure, target)
