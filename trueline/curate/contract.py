"""What a curator is: scores of rows with reasons (a selector), or new rows with their checks (a maker).

A selector reads a `Pool`, which walks the usable rows of the data as often as it is asked and never holds their texts, and
returns `Scored`: a number a row, who is refused whatever the budget, in which order the rest is taken, and a gate where
rows must differ. Budget, threshold and order are the engine's (`trueline/curating/selecting.py`), the same for all.

A maker reads the same pool and a `Workshop` of models, and yields `Made` rows; what it refuses carries its reason.

Models are named by the pool's `Workshop`: a curator asks it for log-probs, digits, embeddings, answers, cross-fitted
losses, and never loads one. Everything here is NumPy; shapes: N usable rows of the pool, D features, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.groups import Group, Message
from trueline.registry import method

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Order = Literal["descending", "ascending"]


class Gate(Protocol):
    """Who may be taken beside whom. rows: candidates, best first; wanted: how many at most."""

    reason: str

    def walk(self, rows: NDArray[np.int64], wanted: int) -> Flags:
        """True where a candidate is taken. The walk ends with the wanted number; later ones are False."""
        ...


@dataclass
class Scored:
    """What a selector says of every usable row.

    score_N: NaN where a row has none. order: which end is taken first; ties go by place in the file.
    dropped: reason -> rows refused whatever the budget. columns: further numbers or texts a row for the table of
    decisions. gate: whom a taken row excludes. arrange: the order rows are written in. budget and threshold: the method's
    own defaults, used where the caller gives neither. facts: what the manifest keeps. notes: sentences for a reader.
    """

    score_N: Floats
    order: Order = "descending"
    dropped: dict[str, Flags] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    gate: Gate | None = None
    arrange: Literal["file", "score"] = "file"
    budget: str | None = None
    threshold: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Made:
    """One row that a maker proposes. row: what is written. reason: why it is refused; None where it is kept.

    score: what a budget goes by, highest first, where the method has a preference. prompt: what is looked for in
    evaluation files.
    """

    row: dict[str, Any]
    reason: str | None = None
    score: float | None = None
    prompt: str = ""


class Workshop(Protocol):
    """Models for curators, each call kept on disk by content so that a killed run goes on where it stopped.

    given: whether --model was.
    """

    given: bool

    def facts(self) -> dict[str, Any]:
        """The models that were asked and their fingerprints, for the manifest."""
        ...

    def pair_logps(self, pool: Pool) -> tuple[Floats, Floats]:
        """Summed log-probs of the better and the worse response of each pair under --model; NaN where a row does not fit."""
        ...

    def cross_fitted(self, pool: Pool, *, seeds: int, evaluations: int, **training: Any) -> tuple[Floats, Floats]:
        """Held-out DPO losses [S x E, N] and the margins [S x E, N] behind them, of models that never saw the row's prompt."""
        ...

    def digits(self, path: str, questions: Sequence[str], digits: Sequence[str]) -> Floats:
        """The scorer's probability of each digit as its whole answer, among these: [questions, digits]."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """Unit vectors of texts: the last token's last hidden state of --model."""
        ...

    def answers(
        self,
        questions: Sequence[str | list[Message]],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        number: int | Sequence[int] = 0,
        by: str | None = None,
        must_end: bool = False,
    ) -> list[str | None]:
        """What --model (or `by`, a folder or MODEL@URL) writes after each question; None where nothing came.

        Text is continued as it is, messages go through the chat template. number: names one of several draws, for all or for each.
        must_end: an answer that was cut off by its limit is None.
        """
        ...

    def feedback(self, spec: str, groups: list[Group]) -> list[list[float | None]]:
        """Rewards of every response of every group, by a judge as `trueline align` names them (reward:PATH, rule:...)."""
        ...

    def prefix(self) -> str:
        """--model's chat template up to where a user's first words begin."""
        ...

    def token_blocks(self, groups: Sequence[tuple[int, Group]]) -> list[tuple[int, list[int]]]:
        """(row, tokens of its prompt and of its response) for each row that fits."""
        ...


class Pool(Protocol):
    """The usable rows of the data, in file order. Rows are numbered 0..n-1 here, whatever their place in the files."""

    n: int
    seed: int
    workshop: Workshop

    def batches(self, size: int = 512) -> Iterator[list[Group]]:
        """Every usable row, a batch at a time; reads the files again."""
        ...

    def values(self, column: str) -> list[Any]:
        """One column of the files as written, a value a row. Raises TruelineError where a row lacks it."""
        ...

    def origin(self, row: int) -> str:
        """Where a row stands, as 'file.jsonl:7'."""
        ...

    def fact(self, name: str) -> NDArray[Any]:
        """What the first pass noted of every row: 'prompt' (hash of the normalised prompt), 'chosen', 'rejected', 'words'."""
        ...


def curator(
    *,
    kind: Literal["select", "make"],
    reads: str,
    model: str,
    arxiv: str | None = None,
    paper: str | None = None,
) -> Callable[..., Any]:
    """Register a curator: `def name(pool, *, options) -> Scored`, or for kind "make" `-> Iterator[Made]`.

    reads: what rows must hold ("any", "pairs", "rewards", "demonstrations", "prompts"). model: whether --model is "none"
    (has no effect), "optional" or "needed".
    """
    return method("curate", kind=kind, reads=reads, model=model, arxiv=arxiv, paper=paper)


def pairs_of(group: Group) -> tuple[Any, Any] | None:
    """The best and the worst response of a group by rank, by reward where it has no ranks; None where nothing orders them."""
    if len(group.responses) < 2:
        return None
    if all(r.rank is not None for r in group.responses):
        ordered = sorted(group.responses, key=lambda r: r.rank or 0)
        return (ordered[0], ordered[-1]) if ordered[0].rank != ordered[-1].rank else None
    if all(r.reward is not None for r in group.responses):
        ordered = sorted(group.responses, key=lambda r: -(r.reward or 0.0))
        return (ordered[0], ordered[-1]) if ordered[0].reward != ordered[-1].reward else None
    return None


def numbers(values: Iterable[Any], what: str) -> Floats:
    """Values of a column as floats; text is parsed, because CSV knows nothing else. None and '' are NaN."""
    found = []
    for i, value in enumerate(values):
        if value is None or value == "":
            found.append(np.nan)
            continue
        try:
            if isinstance(value, bool):
                raise ValueError
            found.append(float(value))
        except (TypeError, ValueError):
            raise TruelineError(f"{what}: row {i + 1} holds {str(value)[:60]!r}; expected a number.") from None
    return np.array(found, dtype=np.float64)


def positive(name: str, **given: float) -> None:
    """Refuse options that must be above 0."""
    for option, value in given.items():
        if not value > 0:
            raise TruelineError(f"{name}.{option} is {value:g}; it must be above 0.")
