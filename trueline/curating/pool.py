"""The usable rows of files: one scan that notes a few numbers a row, and walks that read the texts again.

The scan keeps about sixty bytes a row (place, hashes, lengths, language), whatever the texts' length, so a million rows
fit beside any method that is itself compact. A row the reader refuses, an exact duplicate and a row whose prompt stands
in an evaluation file are out before a method sees them, each with its reason.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Workshop, pairs_of
from trueline.curating.language import language
from trueline.curating.rows import RowFile, open_rows
from trueline.curating.text import last_question, plain_prompt, text_key, words
from trueline.errors import TruelineError
from trueline.groups import Audit, Group, response_text
from trueline.readers.contract import Row, Unusable
from trueline.readers.files import parse_weight

DUPLICATE, LEAKED = "duplicate row", "prompt stands in evaluation data"
LEAST_WORDS = 8  # a shorter last question (a 'yes', a 'go on') is no evidence that an evaluation leaked
FACTS = ("prompt", "chosen", "rejected", "language")


@dataclass
class EvaluationPrompts:
    """Prompts of evaluation files by hash: whole ones, and last questions that are long enough to tell."""

    paths: list[str]
    whole: set[int] = field(default_factory=set)
    questions: set[int] = field(default_factory=set)
    count: int = 0

    @classmethod
    def read(cls, paths: list[str], *, offline: bool) -> EvaluationPrompts:
        found = cls(paths)
        for path in paths:
            pool = FilePool.open([path], offline=offline, seed=0)
            for batch in pool.batches():
                for group in batch:
                    whole, question = prompt_keys(group)
                    found.whole.add(whole)
                    found.questions.add(question)
                    found.count += 1
        found.whole.discard(0)
        found.questions.discard(0)
        return found

    def holds(self, whole: int, question: int) -> bool:
        return whole in self.whole or (question != 0 and question in self.questions)


def prompt_keys(group: Group) -> tuple[int, int]:
    """Hash of what the prompt says, and of its last question where that has at least eight words (else 0)."""
    question = last_question(group.prompt)
    return text_key(plain_prompt(group.prompt)), text_key(question) if len(words(question)) >= LEAST_WORDS else 0


class FilePool:
    """`contract.Pool` over files. reason_R: 0 where row R of all files is usable, else an index into `reasons`."""

    def __init__(self, files: list[RowFile], seed: int):
        self.files, self.seed = files, seed
        self.workshop: Workshop = _NoModels()
        self.audit = Audit()
        self.reasons: list[str] = [""]
        self.reason_R: NDArray[np.int16] = np.zeros(0, dtype=np.int16)
        self.number_R: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.ends: list[int] = []  # rows up to and with each file
        self.place_N: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.languages: list[str] = []
        self._facts: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, paths: list[str], *, seed: int, offline: bool = False, leaks: EvaluationPrompts | None = None, drop_leaks: bool = True) -> FilePool:  # fmt: skip
        """Open and scan. leaks: evaluation prompts to look for; rows that hold one are dropped, or noted."""
        if not paths:
            raise TruelineError("There are no data: --data FILE. `trueline curate --list` says what each method reads.")
        for path in paths:
            if parse_weight(path).weight != 1:
                raise TruelineError(
                    f"'{path}' has a weight. A curator chooses rows itself: give the path alone and a --budget."
                )
        files = [row_file for path in paths for row_file in open_rows(path, offline=offline)]
        pool = cls(files, seed)
        pool._scan(leaks, drop_leaks)
        return pool

    @classmethod
    def empty(cls, seed: int) -> FilePool:
        """No rows: for makers that start from a model alone."""
        pool = cls([], seed)
        pool._facts = {name: np.zeros(0, dtype=np.int64) for name in FACTS}
        return pool

    @property
    def n(self) -> int:
        return len(self.place_N)

    def batches(self, size: int = 512) -> Iterator[list[Group]]:
        batch: list[Group] = []
        for _, group in self._usable():
            batch.append(group)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def groups(self) -> list[Group]:
        """Every usable row at once: for methods that train on them."""
        return [group for batch in self.batches() for group in batch]

    def values(self, column: str) -> list[Any]:
        found = []
        for place, (file, number, row) in enumerate(self.raw()):
            if self.reason_R[place] == 0:
                if column not in row:
                    raise TruelineError(
                        f"{file.path}:{number}: there is no column '{column}'; it has {', '.join(map(repr, row))}."
                    )
                found.append(row[column])
        return found

    def fact(self, name: str) -> NDArray[Any]:
        return self._facts[name]

    def raw(self) -> Iterator[tuple[RowFile, int, dict[str, Any]]]:
        """Every row of every file as written, with its file and its line."""
        for file in self.files:
            for number, row in file.rows():
                yield file, number, row

    def origin(self, row: int) -> str:
        place = int(self.place_N[row])
        return f"{self.files[next(i for i, end in enumerate(self.ends) if place < end)].name}:{self.number_R[place]}"

    def _usable(self) -> Iterator[tuple[int, Group]]:
        quiet = Audit()
        for place, (file, number, values) in enumerate(self.raw()):
            if place < len(self.reason_R) and self.reason_R[place] == 0:
                yield place, _group(file, number, values, quiet)

    # -- the scan ----------------------------------------------------------------------------------------------------

    def _scan(self, leaks: EvaluationPrompts | None, drop_leaks: bool) -> None:
        code, number_R = array("h"), array("q")
        place, content, prompt = array("q"), array("Q"), array("Q")
        chosen, rejected, tongue = array("i"), array("i"), array("h")
        known: dict[str, int] = {}
        for file in self.files:
            for number, values in file.rows():
                number_R.append(number)
                code.append(0)
                try:
                    group = _group(file, number, values, self.audit)
                except Unusable as trouble:
                    code[-1] = self._code(trouble.reason)
                    self.audit.drop(trouble.reason, f"{file.name}:{number}", trouble.detail)
                    continue
                keys = prompt_keys(group)
                if leaks is not None and leaks.holds(*keys):
                    origin = f"{file.name}:{number}"
                    if drop_leaks:
                        code[-1] = self._code(LEAKED)
                        self.audit.drop(LEAKED, origin, last_question(group.prompt))
                        continue
                    self.audit.note(LEAKED, origin, last_question(group.prompt))
                place.append(len(code) - 1)
                content.append(_content(group) if not file.form.sampled else _unique(len(code)))
                prompt.append(keys[0])
                better, worse = _lengths(group)
                chosen.append(better)
                rejected.append(worse)
                told = language(
                    plain_prompt(group.prompt) + "\n" + (group.responses[0].text if group.responses else "")
                )
                tongue.append(known.setdefault(told, len(known)))
            self.ends.append(len(code))
        self.number_R, self.reason_R = np.array(number_R, dtype=np.int64), np.array(code, dtype=np.int16)
        place_N = np.array(place, dtype=np.int64)
        _, first = np.unique(np.array(content, dtype=np.uint64), return_index=True)
        keep = np.zeros(len(place_N), dtype=bool)
        keep[first] = True
        if not keep.all():
            self.reason_R[place_N[~keep]] = self._code(DUPLICATE)
            self.audit.dropped[DUPLICATE] = int((~keep).sum())
        self.place_N = place_N[keep]
        self.languages = list(known)
        columns: tuple[NDArray[Any], ...] = (
            np.array(prompt, dtype=np.uint64),
            np.array(chosen, dtype=np.int32),
            np.array(rejected, dtype=np.int32),
            np.array(tongue, dtype=np.int16),
        )
        self._facts = {name: values[keep] for name, values in zip(FACTS, columns, strict=True)}
        self.audit.read, self.audit.kept = len(self.number_R), self.n
        if not self.n:
            told = ", ".join(f"{reason} ({count})" for reason, count in self.audit.dropped.items())
            raise TruelineError(f"None of {len(self.number_R)} rows can be used: {told}.")

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)


def _group(file: RowFile, number: int, values: dict[str, Any], audit: Audit) -> Group:
    row = Row(values, f"{file.path}:{number}", f"{file.name}:{number}", file.form, audit)
    return file.form.read(row)


def _content(group: Group) -> int:
    """Hash of what a row teaches: prompt, responses, their order, labels and scores."""
    body = [group.prompt, *([r.text, r.messages, r.label, r.rank, r.reward, r.judgment] for r in group.responses)]
    text = json.dumps(body, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _unique(number: int) -> int:
    """No duplicate of anything: repeated samples are data, not mistakes."""
    return int.from_bytes(hashlib.blake2b(f"row {number}".encode(), digest_size=8).digest(), "big")


def _lengths(group: Group) -> tuple[int, int]:
    """Characters of the best response and of the worst; -1 where there is none."""
    pair = pairs_of(group)
    if pair is not None:
        return len(response_text(pair[0])), len(response_text(pair[1]))
    return (len(response_text(group.responses[0])) if group.responses else -1), -1


class _NoModels:
    """Stands where no model was given; whoever asks it for anything is told what is missing."""

    given = False

    def facts(self) -> dict[str, Any]:
        return {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TruelineError("This method needs a model here: give --model FOLDER (or, for makers, MODEL@URL).")
