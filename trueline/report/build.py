"""The page: gathers what each block needs and renders the template. One file, no request to anywhere.

report(folder)              -> the run's own page, trueline/report.html
page(records)               -> the page's HTML, for one run or for several
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trueline.alarm_rules import RULES
from trueline.report import figures, numbers, panels, samples, svg, trust
from trueline.report.outcome import Verdict, verdict
from trueline.report.record import Record, load
from trueline.wholefile import write_whole

SHOWN_RUNS = 8  # more are folded
PHASE_NAMES = {"sample": "sampling", "feedback": "feedback", "score": "scoring", "train": "training"}


def report(run_folder: str | os.PathLike[str]) -> Path:
    """Write one run's page into its folder and return its path."""
    record = load(run_folder)
    return write(page([record]), record.folder / "trueline" / "report.html")


def write(html: str, target: Path) -> Path:
    """Put the page in place at once: a reader never sees half of one."""
    return write_whole(target, html, errors="replace")


@dataclass
class Key:
    """How a run is recognised everywhere on the page."""

    record: Record
    index: int
    cells: list[figures.NumberCell]

    @property
    def mark(self) -> Markup:
        return run_mark(self.index)

    @property
    def state(self) -> str:
        """What a reader must know before believing the numbers; empty for a finished run."""
        step = numbers.plural(self.record.last_step, "step")
        words = {
            "finished": "",
            "interrupted": f"was interrupted after {step}",
            "failed": f"failed after {step}",
            "unfinished": f"has no summary: it is still going or was killed after {step}",
        }
        return words.get(self.record.status, f"ended as '{self.record.status}' after {step}")


@dataclass
class AlarmGroup:
    """One kind of alarm: the runs and steps it fired at. lead: the start of the message where one run fired it."""

    name: str
    looks_at: str
    fired: list[tuple[Key, int, str]]

    @property
    def lead(self) -> str:
        message = self.fired[0][2]
        cuts = [i for i in (message.find(end, 30) for end in (": ", "; ", ". ")) if i > 0]
        return message[: min(cuts)] if cuts else message.rstrip(".")


def _alarms(keys: Sequence[Key]) -> list[AlarmGroup]:
    """Fired alarms by kind, in order of the runs."""
    looks_at = {rule.name: rule.looks_at for rule in RULES}
    groups: dict[str, AlarmGroup] = {}
    for key in keys:
        for row in key.record.alarms:
            name = str(row.get("name", "alarm"))
            group = groups.setdefault(name, AlarmGroup(name.replace("_", " "), looks_at.get(name, ""), []))
            group.fired.append((key, int(row.get("step", 0)), str(row.get("message", ""))))
    return list(groups.values())


def run_mark(index: int) -> Markup:
    """A run's marker as an inline image, decorative: its name always stands beside it."""
    drawn = svg.marker(svg.marker_name(index), 8, 8, 5, "mark last")
    return Markup(
        f'<svg class="key" viewBox="0 0 16 16" aria-hidden="true" style="--run:{svg.colour(index)}">{drawn}</svg>'
    )


def page(runs: Sequence[Record]) -> str:
    """The whole page."""
    found = verdict(runs)
    keys = [Key(run, i, figures.four_numbers(run, found.judge, i)) for i, run in enumerate(runs)]
    if len(keys) > SHOWN_RUNS and found.judge:  # the best stand where they are not folded
        keys.sort(key=lambda key: -_final_rate(key.record, f"win_rate/{found.judge}"))
    drawn = panels.panels(runs)
    frontiers = _frontiers(runs, found)
    context = {
        "title": _title(runs),
        "date": max((str(r.documents["environment"].get("date", "")) for r in runs), default="")[:10],
        "verdict": found,
        "keys": keys,
        "shown_runs": SHOWN_RUNS,
        "alarms": _alarms(keys),
        "frontiers": frontiers,
        "lead_panel": None if frontiers else _lead_panel(drawn),
        "panels": drawn,
        "window": max((panels.window(len(r.metrics)) for r in runs), default=1),
        "thinned": _thinning(runs, drawn),
        "sample_sections": samples.sections(_reading_order(runs, found), runs, found.judge),
        "data": _data_blocks(runs),
        "trust": trust.build(runs, found, {rule.name: rule.looks_at for rule in RULES}),
        "differences": _config_differences(runs),
        "repeats": [_repeat(key) for key in keys],
        "tables": _json({f.identity: {"columns": f.table.columns, "rows": f.table.rows} for f in frontiers}),
        "panel_data": _json({p.identity: p.data for p in drawn}),
    }
    return _environment().get_template("page.html.j2").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trueline.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = Path(__file__).parent / "page"
    environment.globals["style"] = Markup((folder / "style.css").read_text(encoding="utf-8"))
    environment.globals["script"] = Markup((folder / "page.js").read_text(encoding="utf-8"))
    environment.globals["run_mark"] = run_mark
    environment.filters["short"] = numbers.short
    environment.filters["seconds"] = numbers.seconds
    environment.filters["plural"] = numbers.plural
    environment.filters["drawing"] = Markup  # our own SVG: every text in it is escaped where it is drawn
    return environment


def _json(content: Any) -> Markup:
    """JSON for a script element: '<' is escaped, so that no text can end the element."""
    return Markup(json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _final_rate(run: Record, name: str) -> float:
    reading = run.final(name)
    return reading.value if reading is not None and math.isfinite(reading.value) else -math.inf


def _title(runs: Sequence[Record]) -> str:
    return runs[0].name if len(runs) == 1 else numbers.listed([r.name for r in runs], 4)


def _frontiers(runs: Sequence[Record], found: Verdict) -> list[figures.Figure]:
    """A figure for each group of comparable runs: others do not share an axis."""
    if found.judge is None:
        return []
    grouped = [figures.paths(group, found.judge, runs) for group in found.comparable]
    drawn = [lines for lines in grouped if lines]
    draw = partial(figures.frontier, judge=found.judge, differences=found.differences)
    return [draw(lines, identity=f"frontier-{i}") for i, lines in enumerate(drawn, 1)]


def _lead_panel(drawn: Sequence[panels.Panel]) -> panels.Panel | None:
    """What carries a page without a frontier: held-out accuracy, else the loss."""
    wanted = ("reward-accuracy", "ranking-accuracy", "loss")
    return next((p for name in wanted for p in drawn if p.identity == name), drawn[0] if drawn else None)


def _thinning(runs: Sequence[Record], drawn: Sequence[panels.Panel]) -> str:
    longest = max((len(r.metrics) for r in runs), default=0)
    kept = max((len(line.steps) for p in drawn for line in p.lines), default=0)
    if longest <= kept:
        return ""
    return f"Only about {numbers.short(kept)} of {numbers.short(longest)} steps are drawn; all are in metrics.jsonl."


def _reading_order(runs: Sequence[Record], found: Verdict) -> list[Record]:
    """Runs in the order their samples are shown: the winner, its rivals, then the rest."""
    ranked = [found.differences[0].ahead, *(d.behind for d in found.differences)] if found.differences else []
    sampled = [r for r in runs if r.before and r.after]
    rest = [r for r in sampled if not any(r is other for other in ranked)]
    return ([r for r in ranked if any(r is s for s in sampled)] + rest) or list(runs[:1])


def _data_blocks(runs: Sequence[Record]) -> list[dict[str, Any]]:
    """What was read, once for all runs that read the same."""
    blocks: list[dict[str, Any]] = []
    for run in runs:
        data = run.documents["data"]
        same = next((b for b in blocks if b["data"] == data), None)
        if same is not None:
            same["runs"].append(run.name)
            continue
        sides = [_audit_rows(data, side, title) for side, title in (("train", "training"), ("eval", "held out"))]
        blocks.append({"runs": [run.name], "data": data, "sides": [s for s in sides if s]})
    return blocks


def _audit_rows(data: dict[str, Any], side: str, title: str) -> dict[str, Any] | None:
    audit = data.get(side)
    if not audit:
        return None
    reasons = [
        (reason, count, fate, audit.get("examples", {}).get(reason, []))
        for fate, counts in (("dropped", audit.get("dropped", {})), ("kept", audit.get("noted", {})))
        for reason, count in counts.items()
    ]
    return {"title": title, "read": audit.get("read", 0), "kept": audit.get("kept", 0), "reasons": reasons}


def _config_differences(runs: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Options in which the runs differ, with each run's value."""
    if len(runs) < 2:
        return []
    flat = [_flattened(run.config) for run in runs]
    names = sorted({name for options in flat for name in options} - {"output"})
    rows = [(name, [options.get(name, "–") for options in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flattened(options: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options under dotted names: 'method_options.objectives.ipo.beta'."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _value(value)
    return flat


def _value(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _repeat(key: Key) -> dict[str, Any]:
    """Everything needed to run it again, and what it took."""
    environment, summary = key.record.documents["environment"], key.record.summary
    phases = {k: v for k, v in (summary.get("phases") or {}).items() if v}
    total = summary.get("wall_seconds")
    return {
        "key": key,
        "command": environment.get("command") or "",
        "config": yaml.safe_dump(key.record.config, sort_keys=False, allow_unicode=True) if key.record.config else "",
        "versions": environment.get("versions") or {},
        "hardware": [
            (name, environment[name]) for name in ("cpu", "cores", "memory_gb", "gpu") if environment.get(name)
        ],
        "fingerprints": summary.get("fingerprints") or {},
        "seed": key.record.config.get("seed"),
        "wall": total,
        "phases": [(PHASE_NAMES.get(k, k), v, v / total if total else 0.0) for k, v in phases.items()],
        "parameters": summary.get("parameters"),
        "trained": summary.get("trained_parameters"),
    }
