"""`trueline curate`: rows chosen from data, or made by models and checked, with the reason for every one.

rows.py, pool.py   files walked row by row; the usable ones with what one scan noted of each
text.py, language.py, embedding.py     hashes of words, MinHash, languages, vectors of texts without a model
selecting.py       select(score, order, gate, budget): engine one
making.py          propose -> answer -> check -> filter: engine two
workshop.py, crossfit.py   models for curators: log-probs, digits, embeddings, answers; held-out losses
manifest.py, page.py       what repeats a curation; what a person reads
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Scored
from trueline.curating import manifest, page
from trueline.curating.pool import EvaluationPrompts, FilePool
from trueline.curating.rows import RowFile, Writer
from trueline.curating.selecting import Selection, select
from trueline.errors import TruelineError
from trueline.registry import Method, load

__all__ = ["Curated", "Request", "curate"]

EXAMPLES = 2  # texts shown for each reason
WORK = "work"  # in the output folder: what models said, kept for a resume


@dataclass
class Request:
    """One curation. options: the method's own. budget: rows or a share; threshold: the worst score that may be taken.

    eval_data: files whose prompts must not be learned from; rows that hold one are dropped, or with keep_overlap noted.
    model: a folder, a run, a hub id, or for makers MODEL@URL. max_length, max_new_tokens, token_budget: of that model.
    """

    name: str
    data: list[str]
    output: Path
    model: str | None = None
    eval_data: list[str] = field(default_factory=list)
    keep_overlap: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None
    threshold: float | None = None
    seed: int = 0
    max_length: int = 1024
    max_new_tokens: int = 512
    temperature: float | None = None
    token_budget: int = 4096
    offline: bool = False
    overwrite: bool = False


@dataclass
class Curated:
    """What was written. counts: read, usable, taken and every reason of being left out."""

    files: list[Path]
    page: Path
    manifest: Path
    counts: dict[str, int]
    notes: list[str]


def curate(request: Request) -> Curated:
    """Run one curator and write its folder: the rows, the table of decisions, the manifest and the page.

    Raises TruelineError for data, options or models that cannot work, where no row is left, and where the folder
    already holds a finished curation.
    """
    method = load("curate", request.name)
    _check_request(method, request)
    _check_output(request)
    leaks = EvaluationPrompts.read(request.eval_data, offline=request.offline) if request.eval_data else None
    if method.declared["reads"] == "nothing":
        pool = FilePool.empty(request.seed)
    else:
        given = leaks if method.declared["kind"] == "select" else None  # what is made is looked at when it is there
        pool = FilePool.open(
            request.data, seed=request.seed, offline=request.offline, leaks=given, drop_leaks=not request.keep_overlap
        )
    if request.model:
        from trueline.curating.workshop import ModelWorkshop

        pool.workshop = ModelWorkshop(request, request.output / WORK)
    if method.declared["kind"] == "make":
        from trueline.curating.making import make

        return make(method, request, pool, leaks)
    scored = method.call(pool, **request.options)
    selection = select(scored, budget=request.budget, threshold=request.threshold)
    return _write(request, pool, scored, selection, leaks)


def _check_request(method: Method, request: Request) -> None:
    wants, kind = method.declared["model"], method.declared["kind"]
    if method.declared["reads"] == "nothing" and request.data:
        raise TruelineError(f"{request.name} starts from the model alone: --data has no effect, leave it out.")
    if wants == "none" and request.model:
        raise TruelineError(f"{request.name} asks no model: --model has no effect, leave it out.")
    if wants == "needed" and not request.model:
        raise TruelineError(f"{request.name} needs a model: --model FOLDER{' or MODEL@URL' if kind == 'make' else ''}.")
    if kind == "select" and request.temperature is not None:
        raise TruelineError(f"{request.name} samples nothing: --temperature has no effect, leave it out.")
    if kind == "make" and request.threshold is not None:
        raise TruelineError(f"{request.name} makes rows; its filters are its own options. Leave --threshold out.")
    if request.keep_overlap and not request.eval_data:
        raise TruelineError(
            "--keep-overlap has no effect without --eval-data. Give the evaluation files, or leave it out."
        )
    unknown = set(request.options) - set(method.options())
    if unknown:
        raise TruelineError(
            f"{request.name} has no option '{sorted(unknown)[0]}'. It has {', '.join(method.options()) or 'none'}."
        )


def _check_output(request: Request) -> None:
    """An existing folder is taken up where its curation did not finish, and never written over unasked."""
    finished = request.output / manifest.NAME
    if finished.exists():
        if not request.overwrite:
            raise TruelineError(f"'{request.output}' holds a finished curation. Give another --output, or --overwrite.")
        manifest.remove(finished)
    request.output.mkdir(parents=True, exist_ok=True)
    inside = [p for p in request.data if Path(p).resolve().is_relative_to(request.output.resolve())]
    if inside:
        raise TruelineError(f"'{inside[0]}' lies in the output folder, which is written to. Give another --output.")


def _write(request: Request, pool: FilePool, scored: Scored, selection: Selection, leaks: EvaluationPrompts | None) -> Curated:  # fmt: skip
    """One more walk over the files: chosen rows to their files, a line a row to the table of decisions, examples."""
    taken = np.zeros(pool.n, dtype=bool)
    taken[selection.taken_K] = True
    carried = manifest.Carried(pool.files)
    _distinct(pool.files)
    writers = [Writer(file, request.output) for file in pool.files]
    examples: dict[str, list[dict[str, Any]]] = {}
    walked = int(selection.rank_N.max(initial=0))
    spool = _Spool(request.output) if scored.arrange == "score" else None
    decisions = request.output / "decisions.csv"
    with (beside := decisions.with_name(".decisions.csv.tmp")).open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:  # fmt: skip
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "row", "taken", "rank", "score", "reason", *scored.columns])
        usable = 0
        which = 0
        for place, (source, number, row) in enumerate(pool.raw()):
            while place >= pool.ends[which]:
                which += 1
            if pool.reason_R[place]:
                reason = pool.reasons[pool.reason_R[place]]
                table.writerow([source.name, number, 0, "", "", reason, *("" for _ in scored.columns)])
                _example(examples, reason, source.name, number, row, None)
                continue
            i, usable = usable, usable + 1
            score = float(scored.score_N[i])
            rank = int(selection.rank_N[i])
            told = {name: _cell(column[i]) for name, column in scored.columns.items()}
            if taken[i]:
                reason = f"rank {rank} of {walked} by {request.name}"
                carried.add(row)
                if spool is None:
                    writers[which].add(row, score, reason)
                else:
                    spool.add(i, which, row, score, reason)
                _example(examples, "taken", source.name, number, row, score, told)
            else:
                reason = selection.reasons[selection.reason_N[i]]
                _example(examples, reason, source.name, number, row, None if np.isnan(score) else score, told)
            table.writerow([source.name, number, int(taken[i]), rank or "", _cell(score), reason, *told.values()])
    beside.replace(decisions)
    if spool is not None:
        spool.drain(selection.taken_K, writers)
    files = [writer.close() for writer in writers]
    counts = {"read": len(pool.reason_R), "usable": pool.n, "taken": len(selection.taken_K)}
    reasons = {**{r: c for r, c in pool.audit.dropped.items()}, **selection.counts()}
    document = manifest.of_selection(request, pool, scored, selection, files, carried, leaks, counts, reasons)
    html = page.of_selection(request, pool, scored, selection, taken, examples, document)
    written = page.save(html, request.output)
    return Curated(files, written, manifest.save(document, request.output), {**counts, **reasons}, document["notes"])


def _distinct(files: list[RowFile]) -> None:
    names = [file.name for file in files]
    if again := next((name for i, name in enumerate(names) if names.index(name) != i), None):
        raise TruelineError(f"Two data files are called '{again}'. Curate them one by one, or rename one.")


def _cell(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{float(value):.10g}"
    return value


def _example(
    found: dict[str, list[dict[str, Any]]],
    reason: str,
    file: str,
    number: int,
    row: dict[str, Any],
    score: float | None,
    columns: dict[str, Any] | None = None,
) -> None:
    kept = found.setdefault(reason, [])
    if len(kept) < EXAMPLES:
        kept.append({"origin": f"{file}:{number}", "row": row, "score": score, "columns": columns or {}})


class _Spool:
    """Chosen rows on disk in file order, given back in another: an order by score without the texts in memory."""

    def __init__(self, folder: Path):
        import tempfile

        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by drain, or with the process
        self.at: dict[int, int] = {}

    def add(self, row: int, which: int, values: dict[str, Any], score: float, reason: str) -> None:
        import pickle

        self.at[row] = self.file.tell()
        pickle.dump((which, values, score, reason), self.file, protocol=pickle.HIGHEST_PROTOCOL)

    def drain(self, taken_K: NDArray[np.int64], writers: list[Writer]) -> None:
        import pickle

        for row in taken_K:
            self.file.seek(self.at[int(row)])
            which, values, score, reason = pickle.load(self.file)  # written by this process a moment ago
            writers[which].add(values, score, reason)
        self.file.close()
