"""One table for any set of runs: detection, quality, efficiency, robustness, and no weighted sum of them.

    detection    judge_accuracy/J, reward_accuracy of the run's evaluations; what `trueline measure detection` wrote
    quality      win_rate/J, reward/J, ranking accuracy, KL and length, with the change since the run's own start
    efficiency   wall seconds, tokens a second, trained parameters, judge calls and tokens, generated tokens a response
    robustness   what `trueline measure robustness` (and `refusal`, `separation`) wrote into RUN/measured

Methods of very different cost are only comparable with their costs beside them: training time and what a response costs at
inference stand in one block. Rows are metrics and columns are runs by name, so the order in which runs are given changes nothing. Where a run
has no number the cell is empty; nothing is estimated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

from trueline import __version__
from trueline.errors import TruelineError
from trueline.measuring.page import PAGE, table
from trueline.report.build import write
from trueline.report.record import Reading, Record, load_all

BLOCKS = ("detection", "quality", "efficiency", "robustness")
QUALITY = ("win_rate/", "reward/", "ranking_accuracy", "kl", "length", "entropy")
DETECTION = ("judge_accuracy/", "reward_accuracy")
MEASURED = {"detection": "detection", "robustness": "robustness", "refusal": "robustness", "separation": "robustness"}


@dataclass(frozen=True)
class Cell:
    """A number of one run; change: against the run's own start, where it was measured there."""

    value: float
    low: float | None = None
    high: float | None = None
    change: float | None = None


Table = dict[str, dict[str, dict[str, Cell]]]  # block, metric, run name


def framework(folders: Sequence[str | Path]) -> tuple[list[str], Table]:
    """Names of the runs in order, and their numbers by block and metric."""
    runs = sorted(load_all(folders), key=lambda r: r.name)
    names = [r.name for r in runs]
    if len(set(names)) != len(names):
        raise TruelineError(f"Two runs have the same name: {', '.join(names)}. Rename a folder, or leave one out.")
    found: Table = {block: {} for block in BLOCKS}
    for run in runs:
        for block, metric, cell in [*_evaluated(run), *_costs(run), *_measured(run)]:
            found[block].setdefault(metric, {})[run.name] = cell
    return names, found


def _evaluated(run: Record) -> list[tuple[str, str, Cell]]:
    rows = []
    for name in sorted(run.reading_names()):
        block = "detection" if name.startswith(DETECTION) else "quality" if name.startswith(QUALITY) else None
        final, first = run.final(name), run.first(name)
        if block is not None and final is not None:
            rows.append((block, name, _cell(final, first)))
    return rows


def _cell(final: Reading, first: Reading | None) -> Cell:
    return Cell(final.value, final.low, final.high, None if first is None else final.value - first.value)


def _costs(run: Record) -> list[tuple[str, str, Cell]]:
    """Of training, and of a response; a rate is the median of steps."""
    summary = run.summary
    rows = [
        ("efficiency", name, Cell(float(summary[key])))
        for name, key in (
            ("wall seconds", "wall_seconds"),
            ("steps", "steps"),
            ("trained parameters", "trained_parameters"),
        )
        if isinstance(summary.get(key), int | float)
    ]
    speeds = [float(r["tokens_per_second"]) for r in run.timing if isinstance(r.get("tokens_per_second"), int | float)]
    if speeds:
        rows.append(("efficiency", "tokens a second", Cell(median(speeds))))
    if run.timing:
        rows += [
            ("efficiency", f"judge {name}", Cell(float(total)))
            for name, total in sorted(run.timing[-1].items())
            if "/" in name and isinstance(total, int | float)
        ]
    lengths = [s.length for said in run.after.values() for s in said if s.length is not None]
    if lengths:
        rows.append(("efficiency", "tokens a response", Cell(fmean(lengths))))
    return rows


def _measured(run: Record) -> list[tuple[str, str, Cell]]:
    """Readings that `trueline measure NAME --output RUN/measured` left in the run's folder."""
    rows = []
    for name, block in MEASURED.items():
        file = run.folder / "measured" / f"{name}.json"
        if file.exists():
            try:
                readings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["readings"]
                rows += [
                    (block, f"{name}: {metric}", Cell(float(r["value"]), r.get("low"), r.get("high")))
                    for metric, r in readings.items()
                ]
            except (ValueError, KeyError, TypeError) as error:
                raise TruelineError(f"'{file}' is not what `trueline measure {name}` writes: {error!r}.") from error
    return rows


def save(folders: Sequence[str | Path], output: Path) -> Path:
    """Write framework.json and framework.html; returns the page."""
    names, found = framework(folders)
    output.mkdir(parents=True, exist_ok=True)
    document = {"runs": names, "blocks": {b: {m: {n: vars(c) for n, c in row.items()} for m, row in rows.items()} for b, rows in found.items()}, "version": __version__}  # fmt: skip
    (output / "framework.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    parts = []
    for block, rows in found.items():
        parts.append(f"<h2>{block.capitalize()}</h2>")
        lines = [(metric, *(shown(row.get(n)) for n in names)) for metric, row in rows.items()]
        empty = {
            "detection": "No run was evaluated with held-out pairs or a judge's labels.",
            "quality": "No run was evaluated.",
            "efficiency": "No run says what it cost.",
            "robustness": "Nothing was measured: trueline measure robustness --model RUN --output RUN/measured.",
        }[block]
        parts.append(table(("Metric", *names), lines) if lines else f"<p>{escape(empty)}</p>")
    page = PAGE.format(
        title="Framework table",
        summary=f"{len(names)} runs. In brackets the 95 % interval; after the arrow the change since the run's own start.",
        measured_on=escape(", ".join(str(f) for f in folders)),
        readings="\n".join(parts),
        items="",
        doc=escape(__doc__ or ""),
        version=__version__,
    )
    return write(page, output / "framework.html")


def shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.3g}, {cell.high:.3g}]"
    change = "" if cell.change is None else f" → {cell.change:+.3g}"
    return f"{cell.value:.4g}{interval}{change}"
