"""What repeats a curation and what must not get lost on the way: inputs, options, versions, licences, origins, people.

`manifest.json` is written last, so a folder that has one is finished. Columns that name a licence, an origin or a person
are found by their names; rows are written with all their columns, and the manifest counts what the chosen ones hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueline.curate.contract import Scored
from trueline.curating.rows import RowFile
from trueline.curating.selecting import Selection
from trueline.environment import environment
from trueline.wholefile import write_json

if TYPE_CHECKING:
    from trueline.curating import Request
    from trueline.curating.pool import EvaluationPrompts, FilePool

NAME = "manifest.json"
KINDS = {
    "licence": re.compile(r"licen[cs]e|copyright|terms", re.I),
    "origin": re.compile(
        r"(^|_)(source|origin|dataset|url|provenance|generator|model|generator_\d|teacher)(_|$|\d)", re.I
    ),
    "personal": re.compile(
        r"(^|_)(name|username|user|author|annotator|worker|email|e_mail|phone|address|ip|birth\w*|gender|age|nationality|"
        r"ssn|pii|contains_pii)(_?id|_?hash)?(_|$)",
        re.I,
    ),
}
DISTINCT = 50  # values of a licence or origin column that are counted one by one


class Carried:
    """Licence, origin and personal columns of the chosen rows, counted as they are written."""

    def __init__(self, files: list[RowFile]):
        self._sort_out(list(dict.fromkeys(c for file in files for c in file.columns)))

    def learn(self, rows: list[dict[str, Any]]) -> None:
        """Rows that came from no file: their columns and what they hold."""
        self._sort_out(list(dict.fromkeys(c for row in rows for c in row)))
        for row in rows:
            self.add(row)

    def _sort_out(self, columns: list[str]) -> None:
        self.columns = {kind: [c for c in columns if pattern.search(c)] for kind, pattern in KINDS.items()}
        self.columns["personal"] = [
            c for c in self.columns["personal"] if c not in self.columns["origin"]
        ]  # model_name
        self.values: dict[str, Counter[str]] = {c: Counter() for k in ("licence", "origin") for c in self.columns[k]}
        self.filled: Counter[str] = Counter()
        self.rows = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        for column, counts in self.values.items():
            value = row.get(column)
            text = "(none)" if value in (None, "") else str(value)[:120]
            counts[text if text in counts or len(counts) < DISTINCT else "(others)"] += 1
        for column in self.columns["personal"]:
            self.filled[column] += row.get(column) not in (None, "")

    def to_json(self) -> dict[str, Any]:
        return {
            "licence": {c: dict(self.values[c].most_common()) for c in self.columns["licence"]},
            "origin": {c: dict(self.values[c].most_common()) for c in self.columns["origin"]},
            "personal": {c: f"{self.filled[c]} of {self.rows} rows hold a value" for c in self.columns["personal"]},
        }

    def warnings(self) -> list[str]:
        found = []
        if not self.columns["licence"]:
            found.append(
                "No column names a licence, so none is carried along. What the data may be used for is for whoever "
                "publishes the result to find out."
            )
        for column, counts in ((c, self.values[c]) for c in self.columns["licence"]):
            if counts.get("(none)"):
                found.append(f"{counts['(none)']} of {self.rows} chosen rows have no value in '{column}'.")
        if self.columns["personal"]:
            found.append(
                f"Columns that by their names may say something of a person: {', '.join(self.columns['personal'])}. They are "
                "written with the rows; remove them where they are not needed."
            )
        return found


def of_selection(request: Request, pool: FilePool, scored: Scored, selection: Selection, files: list[Path], carried: Carried, leaks: EvaluationPrompts | None, counts: dict[str, int], reasons: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    """The manifest of engine one."""
    finite = scored.score_N[np.isfinite(scored.score_N)]
    threshold = request.threshold if request.threshold is not None or request.budget is not None else scored.threshold
    budget = request.budget if request.budget is not None or request.threshold is not None else scored.budget
    how = {
        "order": scored.order,
        "budget": budget,
        "budget_rows": selection.wanted,
        "threshold": threshold,
        "gate": scored.gate.reason if scored.gate else None,
        "arranged_by": scored.arrange,
        "scores": {"finite": len(finite), "lowest": _number(finite.min(initial=np.inf)), "highest": _number(finite.max(initial=-np.inf))},
    }  # fmt: skip
    return common(request, pool, files, carried, leaks, counts, reasons) | {
        "selection": how,
        "facts": scored.facts,
        "notes": [*scored.notes, *overlap_notes(pool, leaks, request.keep_overlap), *carried.warnings()],
    }


def common(request: Request, pool: FilePool, files: list[Path], carried: Carried, leaks: EvaluationPrompts | None, counts: dict[str, int], reasons: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    from trueline.registry import load

    options = load("curate", request.name).options() | request.options
    asked = {k: v for k, v in asdict(request).items() if k not in ("name", "options", "output", "overwrite")}
    return {
        "method": request.name,
        "options": options,
        "request": asked,
        "inputs": [
            {"path": f.path, "sha256": f.fingerprint(), "kind": f.kind, "format": f.form.name, "rows": end - start}
            for f, start, end in zip(pool.files, [0, *pool.ends], pool.ends, strict=False)
        ],
        "evaluation_files": [{"path": p, "sha256": _sha256(Path(p)) if Path(p).is_file() else None} for p in request.eval_data],
        "outputs": [{"path": f.name, "sha256": _sha256(f)} for f in files],
        "counts": counts,
        "left_out": reasons,
        "noted": pool.audit.noted,
        "carried": carried.to_json(),
        "before": _history(pool.files),
        "models": pool.workshop.facts(),
        "environment": environment(),
    }  # fmt: skip


def overlap_notes(pool: FilePool, leaks: EvaluationPrompts | None, kept: bool) -> list[str]:
    from trueline.curating.pool import LEAKED

    if leaks is None:
        return ["No evaluation file was given (--eval-data), so overlap of prompts with one was not checked."]
    count = pool.audit.noted.get(LEAKED, 0) if kept else pool.audit.dropped.get(LEAKED, 0)
    what = "kept, as --keep-overlap asks" if kept and count else "dropped" if count else "nothing was dropped for it"
    return [f"{count} rows have a prompt of the {leaks.count} evaluation rows given: {what}."]


def save(document: dict[str, Any], folder: Path) -> Path:
    return write_json(folder / NAME, document)


def remove(finished: Path) -> None:
    """Take a finished curation's own files away: what its manifest names, the page and the table. Model answers stay."""
    try:
        named = [o["path"] for o in json.loads(finished.read_text(encoding="utf-8"))["outputs"]]
    except (ValueError, KeyError, TypeError):
        named = []
    for name in [*named, "decisions.csv", "report.html", NAME]:
        (finished.parent / Path(name).name).unlink(missing_ok=True)


def _history(files: list[RowFile]) -> list[dict[str, Any]]:
    """Manifests of earlier curations that made these very files, so that a chain of them can be followed."""
    found = []
    for file in files:
        beside = Path(file.path).parent / NAME
        if not beside.is_file():
            continue
        try:
            earlier = json.loads(beside.read_text(encoding="utf-8"))
            made = {o["sha256"] for o in earlier["outputs"]}
        except (ValueError, KeyError, TypeError, OSError):
            continue
        if file.fingerprint() in made:
            keys = ("method", "options", "inputs", "counts", "before")
            found.append({"file": file.name, **{k: earlier.get(k) for k in keys}})
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
