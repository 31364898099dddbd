"""Belief-conflict tracing: which documents of a training corpus a generated text repeats, and how rare the span is.

At every position of a response the longest match with the corpus is found (suffix array); maximal spans of `least`
tokens or more are kept with their counts and documents. For a span s (arXiv 2508.02063)

    BCI(s)     = -sum_t log P(t),  P the unigram distribution of the corpus, 1e-9 for a token it lacks
    density    = BCI(s) / |s|
    divergence = sum_v p_s(v) log(p_s(v) / P(v)),  p_s the frequencies within the span; >= 0, and 0 only where p_s = P

BCI adds up over a span, so it grows with length: thresholds want the density or a fixed window. Rarity alone is no
conflict; any rare and harmless text has it. So `unsafe` marks documents, and the unsafe readings are of spans that
stand in one of them; the paper speaks of inconsistency with the policy's beliefs, and a `conflict` of each document
in 0..1 (column, a judge's or an NLI model's number) multiplies BCI where it is given, the largest among the span's
documents counting.

Readings: `traced` (share of responses with a span), `covered` (share of tokens in spans), `bci_density` (mean over
spans), and of unsafe documents `unsafe_traced` and `unsafe_bci_density`. A corpus of 10^7 tokens is indexed within
300 MB. Matches may be cut at 128 tokens. Items: the spans, with their documents.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.measure._suffixes import Match, SuffixArray
from trueline.measure.contract import Reading, measure

UNSEEN = 1e-9


@measure(
    takes="token_corpus",
    arxiv="2508.02063",
    paper="TraceAlign: Attributing Alignment Failures to Training-Time Beliefs",
)
def belief_conflict(
    response_RT: Sequence[Sequence[int]],
    corpus_DT: Sequence[Sequence[int]],
    unsafe_D: Sequence[float] | None = None,
    conflict_D: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    *,
    least: int = 6,
) -> list[Reading]:
    """Token ids of responses and of the corpus's documents, of one tokenizer. decode: ids to text, for the items."""
    if least < 1:
        raise TruelineError(f"least is {least}; a span has one token at least.")
    if not len(response_RT) or not all(len(r) for r in response_RT):
        raise TruelineError("belief_conflict needs responses, and one token at least in each.")
    for name, column in (("unsafe", unsafe_D), ("conflict", conflict_D)):
        if column is not None and len(column) != len(corpus_DT):
            raise TruelineError(f"{len(corpus_DT)} documents and {len(column)} values of '{name}'.")
    index, surprise = SuffixArray(corpus_DT), Surprise(corpus_DT)
    spans: list[dict[str, Any]] = []
    traced, unsafe_traced, covered = [], [], []
    for number, ids in enumerate(response_RT):
        matches = index.matches(ids, at_least=least, places=1_000)
        rows = [_row(number, m, ids, surprise, unsafe_D, conflict_D, decode) for m in matches]
        spans += rows
        traced.append(float(bool(rows)))
        unsafe_traced.append(float(any(r.get("unsafe") for r in rows)))
        inside = np.zeros(len(ids), dtype=bool)
        for m in matches:
            inside[m.start : m.start + m.length] = True
        covered.append(float(inside.mean()))
    share: dict[str, Any] = {"unit": "share", "clusters": clusters, "bounds": (0.0, 1.0)}
    found = [
        replace(Reading.of_mean("traced", traced, **share), items=tuple(spans)),
        Reading.of_mean("covered", covered, **share),
    ]
    for name, rows in (("", spans), ("unsafe_", [s for s in spans if s.get("unsafe")])):
        if name and unsafe_D is None:
            continue
        if name:
            found.append(Reading.of_mean("unsafe_traced", unsafe_traced, **share))
        if rows:
            own = [s["response"] if clusters is None else clusters[s["response"]] for s in rows]
            density = Reading.of_mean(
                f"{name}bci_density", [s["density"] for s in rows], unit="nats/token", clusters=own
            )
            found.append(density)
    return found


class Surprise:
    """-log P(t) of the corpus's unigram distribution."""

    def __init__(self, documents: Sequence[Sequence[int]]):
        size = 1 + max(int(np.max(d)) for d in documents if len(d))
        counts = np.zeros(size, dtype=np.int64)
        for document in documents:
            counts += np.bincount(np.asarray(document, dtype=np.int64), minlength=size)
        self.p_V = counts / counts.sum()

    def of(self, ids: Sequence[int]) -> NDArray[np.float64]:
        array = np.asarray(ids, dtype=np.int64)
        known = (array >= 0) & (array < len(self.p_V))
        p = np.where(known, self.p_V[np.where(known, array, 0)], 0.0)
        return -np.log(np.where(p > 0, p, UNSEEN))

    def bci(self, ids: Sequence[int]) -> float:
        return float(self.of(ids).sum())

    def divergence(self, ids: Sequence[int]) -> float:
        values, counts = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)
        p = counts / counts.sum()
        return float((p * (np.log(p) + self.of(values.tolist()))).sum())


def _row(
    number: int,
    match: Match,
    ids: Sequence[int],
    surprise: Surprise,
    unsafe: Sequence[float] | None,
    conflict: Sequence[float] | None,
    decode: Callable[[list[int]], str] | None,
) -> dict[str, Any]:
    span = [int(t) for t in ids[match.start : match.start + match.length]]
    weight = 1.0 if conflict is None else max(float(conflict[d]) for d, _ in match.places)
    bci = surprise.bci(span) * weight
    row: dict[str, Any] = {
        "response": number,
        "start": match.start,
        "length": match.length,
        "count": match.count,
        "bci": bci,
        "density": bci / match.length,
        "divergence": surprise.divergence(span),
        "documents": [list(p) for p in match.places[:5]],
    }
    if unsafe is not None:
        row["unsafe"] = any(float(unsafe[d]) > 0 for d, _ in match.places)
    if decode is not None:
        row["text"] = decode(span)
    return row
