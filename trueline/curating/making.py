"""propose -> answer -> check -> filter: rows that a maker yields, checked once more and written with what was refused.

The maker decides about each row and says why it refuses one. Here rows that are empty, that were made before or whose
prompt stands in an evaluation file are refused as well, and a budget takes the best by the maker's score (or the first).
What models said is on disk under `work/`, so a killed run is given again and asks only for what is missing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueline.curate.contract import Made
from trueline.curating import manifest, page
from trueline.curating.pool import LEAKED, LEAST_WORDS, EvaluationPrompts, FilePool
from trueline.curating.rows import REASON, SCORE
from trueline.curating.selecting import OVER, budget_rows
from trueline.curating.text import text_key, words
from trueline.errors import TruelineError
from trueline.registry import Method

if TYPE_CHECKING:
    from trueline.curating import Curated, Request

REPEATED = "made before"


def make(method: Method, request: Request, pool: FilePool, leaks: EvaluationPrompts | None) -> Curated:
    """Run a maker and write data.jsonl, refused.jsonl, manifest and page."""
    from trueline.curating import Curated

    made = [*method.call(pool, **request.options)]
    if not made:
        raise TruelineError(f"{request.name} proposed no row at all.")
    _check(made, leaks, request.keep_overlap)
    _within_budget(made, request.budget)
    kept, refused = [m for m in made if m.reason is None], [m for m in made if m.reason is not None]
    counts: dict[str, int] = {}
    for m in refused:
        counts[str(m.reason)] = counts.get(str(m.reason), 0) + 1
    if not kept:
        why = ", ".join(f"{reason} ({count})" for reason, count in counts.items())
        raise TruelineError(f"{request.name} proposed {len(made)} rows and every one was refused: {why}.")
    carried = manifest.Carried([])
    carried.learn([m.row for m in kept])
    files = [_write(request.output / "data.jsonl", kept, f"made by {request.name}")]
    if refused:
        files.append(_write(request.output / "refused.jsonl", refused, ""))
    told = {"read": pool.n, "proposed": len(made), "taken": len(kept)}
    reasons = dict(sorted(counts.items(), key=lambda item: -item[1]))
    document = manifest.common(request, pool, files, carried, leaks, told, reasons)
    notes = list(getattr(method.call, "notes", ()))
    document["notes"] = [*notes, *_overlap(leaks, counts), *carried.warnings(), *_survival(told)]
    written = page.save(_page(request, made, document), request.output)
    return Curated(files, written, manifest.save(document, request.output), {**told, **reasons}, document["notes"])


def _check(made: list[Made], leaks: EvaluationPrompts | None, keep_overlap: bool) -> None:
    seen: set[str] = set()
    for m in made:
        if m.reason is not None:
            continue
        key = hashlib.sha256(
            json.dumps(m.row, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        ).hexdigest()
        if key in seen:
            m.reason = REPEATED
        seen.add(key)
        if leaks is not None and not keep_overlap and m.prompt:
            question = text_key(m.prompt)
            if leaks.holds(question, question if len(words(m.prompt)) >= LEAST_WORDS else 0):
                m.reason = m.reason or LEAKED


def _within_budget(made: list[Made], budget: str | None) -> None:
    kept = [m for m in made if m.reason is None]
    most = budget_rows(budget, len(kept)) if kept else None
    if most is None:
        return
    for m in sorted(kept, key=lambda m: -(m.score if m.score is not None else 0.0))[most:]:
        m.reason = OVER


def _write(path: Path, rows: list[Made], reason: str) -> Path:
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for m in rows:
            full = {**m.row, SCORE: m.score, REASON: m.reason or reason}
            file.write(json.dumps(full, ensure_ascii=False, default=str) + "\n")
    beside.replace(path)
    return path


def _overlap(leaks: EvaluationPrompts | None, counts: dict[str, int]) -> list[str]:
    if leaks is None:
        return ["No evaluation file was given (--eval-data), so overlap of prompts with one was not checked."]
    return [
        f"{counts.get(LEAKED, 0)} proposals have a prompt of the {leaks.count} evaluation rows given and were refused."
    ]


def _survival(counts: dict[str, int]) -> list[str]:
    return [
        f"{counts['taken']} of {counts['proposed']} proposals survived ({counts['taken'] / counts['proposed']:.1%})."
    ]


def _page(request: Request, made: list[Made], document: dict[str, Any]) -> str:
    taken = np.array([m.reason is None for m in made])
    lead = f"{int(taken.sum()):,} of {len(made):,} rows that {request.name.replace('_', ' ')} proposed were kept."
    length = np.array([len(json.dumps(m.row, ensure_ascii=False, default=str)) for m in made], dtype=np.float64)
    score = np.array([np.nan if m.score is None else m.score for m in made], dtype=np.float64)
    drawn = [
        page.histogram(name, values, taken) for name, values in (("score", score), ("characters of a row", length))
    ]
    key = '<p class="quiet"><span class="key before"></span>proposed <span class="key after"></span>kept</p>'
    parts = "".join(d for d in drawn if d)
    figures = f'<h2>Proposed and kept</h2>{key}<div class="figures">{parts}</div>' if parts else ""
    examples: dict[str, list[dict[str, Any]]] = {}
    for i, m in enumerate(made):
        found = examples.setdefault(m.reason or "taken", [])
        if len(found) < 3:
            found.append({"origin": f"proposal {i + 1}", "row": m.row, "score": m.score})
    sections = [
        f"<h2>Kept: some of them</h2>{page.texts(examples.get('taken', []))}",
        page.reasons_section(document["left_out"], examples, len(made)),
    ]
    return page.render(request.name, lead, document, figures, sections)
