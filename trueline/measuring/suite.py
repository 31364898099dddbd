"""Many measures at once: those of a suite that the inputs allow, and what was left out and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from trueline import __version__
from trueline.errors import TruelineError, nearest
from trueline.measure.contract import Reading
from trueline.measuring import measure
from trueline.measuring.contract import Request
from trueline.measuring.page import HEADINGS, PAGE, cells, table
from trueline.report.build import write

SUITES: dict[str, tuple[str, ...]] = {
    "safety": (
        "refusal",
        "compliance_gap",
        "separation",
        "detection",
        "robustness",
        "token_shift",
        "kl",
        "extraction",
        "belief_conflict",
        "honesty",
    ),
    "preference": (
        "ranking_accuracy",
        "reward_accuracy",
        "idealised_ranking_accuracy",
        "alignment_gap",
        "flip_difficulty",
        "rewardbench",
        "win_rate",
        "length_controlled_win_rate",
        "preference_win_rate",
        "best_of_n",
        "kl",
        "over_optimisation",
    ),
    "style": ("length_statistics", "diversity", "token_shift", "robustness", "ifeval", "alignment_tax"),
}
GREEDY = frozenset({"ifeval", "honesty", "token_shift"})  # answered at temperature 0 unless one is given


@dataclass(frozen=True)
class Suite:
    """What was measured, by measure in the suite's order, and why each other one was not."""

    name: str
    readings: dict[str, list[Reading]]
    skipped: dict[str, str]


def run(
    name: str, request: Request, *, temperature: float | None = None, note: Callable[[str], None] = lambda _: None
) -> Suite:
    """Every measure of a suite on one request. A measure that the inputs do not allow is skipped with its own words.

    temperature: of sampling; None is greedy for measures that are, 1 elsewhere. note: told what is measured next. Raises
    TruelineError for a suite that does not exist and where nothing at all could be measured.
    """
    if name not in SUITES:
        raise TruelineError(f"There is no suite '{name}'. {nearest(name, SUITES)} There are: {', '.join(SUITES)}.")
    found: dict[str, list[Reading]] = {}
    skipped: dict[str, str] = {}
    for one in SUITES[name]:
        note(one)
        warm = temperature if temperature is not None else 0.0 if one in GREEDY else 1.0
        try:
            found[one] = measure(replace(request, name=one, temperature=warm, options={}))
        except TruelineError as error:
            skipped[one] = str(error)
    if not found:
        reasons = "; ".join(f"{n}: {why}" for n, why in skipped.items())
        raise TruelineError(f"Nothing of the suite '{name}' can be measured on these inputs. {reasons}")
    return Suite(name, found, skipped)


def save(suite: Suite, folder: Path) -> Path:
    """Write all-SUITE.json and all-SUITE.html, with what was skipped; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "suite": suite.name,
        "readings": {m: {r.name: r.to_json() for r in rows} for m, rows in suite.readings.items()},
        "skipped": suite.skipped,
        "version": __version__,
    }
    (folder / f"all-{suite.name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = [(measured, *cells(r)) for measured, readings in suite.readings.items() for r in readings]
    on = sorted({r.measured_on for readings in suite.readings.values() for r in readings if r.measured_on})
    page = PAGE.format(
        title=escape(f"{suite.name} suite"),
        summary=f"{len(suite.readings)} of {len(suite.readings) + len(suite.skipped)} measures could be taken.",
        measured_on=escape("; ".join(on)),
        readings=table(("Measure", *HEADINGS), rows),
        items="<h2>Skipped</h2>" + table(("Measure", "Why"), list(suite.skipped.items())) if suite.skipped else "",
        doc=escape(_definitions(list(suite.readings))),
        version=__version__,
    )
    return write(page, folder / f"all-{suite.name}.html")


def _definitions(names: Sequence[str]) -> str:
    from trueline.catalogue import entry

    return "\n\n".join(f"{n}\n{entry('measure', n).doc}" for n in names)
