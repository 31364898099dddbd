"""Factual consistency of a claim with its context, after AlignScore: every sentence against the chunk that supports it
best.

    score = mean over sentences j of the claim of max over chunks i of the context of p(aligned | chunk_i, sentence_j)

arXiv 2305.16739. The context is cut into n = floor(words / 350) + 1 chunks of max(floor(sentences / n), 1) sentences;
p is the probability of "aligned" (entailment) of any NLI model by path. The mean is over the sentences of the claim
and the maximum over the chunks of the context, not the other way round, and a claim aligned with a context says
nothing of the reverse. A chunk that does not fit the model is an error, never cut on its own side. `label` (1
consistent, 0 not), where rows have it, adds the AUROC.

From a model: rows with `context` and `claim`, `--model` an NLI classifier (three labels, one of them called
entailment or aligned; or two for a binary one). `trueline.measuring.nli.train_nli` trains a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, measure


@measure(
    takes="entailment",
    arxiv="2305.16739",
    paper="AlignScore: Evaluating Factual Consistency with a Unified Alignment Function",
)
def factual_consistency(
    aligned_RSC: Sequence[Sequence[Sequence[float]]], label_R: Sequence[float] | None = None
) -> list[Reading]:
    """aligned_RSC: for each row a table of p(aligned), a line a sentence of the claim, with an entry a chunk."""
    scores = [score(table, i) for i, table in enumerate(aligned_RSC)]
    if not scores:
        raise TruelineError("factual_consistency needs a row at least; found none.")
    found = [replace(Reading.of_mean("consistency", scores, unit="score", bounds=(0.0, 1.0)), scope="rows")]
    items = [{"score": s, "sentences": len(t), "chunks": len(t[0])} for s, t in zip(scores, aligned_RSC, strict=True)]
    if label_R is not None:
        from sklearn.metrics import roc_auc_score

        if len(label_R) != len(scores) or {float(x) for x in label_R} != {0.0, 1.0}:
            raise TruelineError("'label' must be 1 or 0 in every row, and both must occur, for an AUROC.")
        found.append(Reading("auroc", float(roc_auc_score(label_R, scores)), None, None, len(scores), "area", "rows"))
        items = [{**row, "label": float(x)} for row, x in zip(items, label_R, strict=True)]
    return [replace(found[0], items=tuple(items)), *found[1:]]


def score(aligned_SC: Sequence[Sequence[float]], row: int = 0) -> float:
    """One claim. An empty one has no score: it is an error, never NaN."""
    if not len(aligned_SC) or not all(len(line) for line in aligned_SC):
        raise TruelineError(f"Row {row}: the claim has no sentence or the context no chunk. Leave empty rows out.")
    if len({len(line) for line in aligned_SC}) != 1:
        raise TruelineError(f"Row {row}: the sentences of the claim were compared with different numbers of chunks.")
    table = np.asarray(aligned_SC, dtype=float)
    if not (np.isfinite(table).all() and table.min() >= 0 and table.max() <= 1):
        raise TruelineError(f"Row {row}: a probability is not within 0 and 1.")
    return float(table.max(1).mean())
