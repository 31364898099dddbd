"""Scores of rows by models that never saw them: `cross_fit(n, clusters, train, score, folds, seeds)`.

Each seed permutes the clusters (rows of one prompt are never parted) and cuts them into folds; for each fold a model is
trained on the others and scores that fold. Every row is scored exactly once a seed. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Floats
from trueline.errors import TruelineError
from trueline.randomness import permutation

Fitted = TypeVar("Fitted")
Rows = NDArray[np.int64]


def folds_of(clusters: Sequence[Hashable], folds: int, seed: int) -> list[Rows]:
    """Rows of each fold: whole clusters, permuted by the seed, in folds of as equal a number of rows as whole clusters allow."""
    members: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    if folds < 2 or len(members) < folds:
        raise TruelineError(
            f"Cross-fitting needs at least 2 folds and as many prompts; found {folds} folds, {len(members)} prompts."
        )
    names = list(members)
    found: list[list[int]] = [[] for _ in range(folds)]
    for place in permutation(len(names), seed, "cross-fit"):
        min(found, key=len).extend(members[names[place]])
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in found]


def cross_fit(
    clusters: Sequence[Hashable],
    train: Callable[[Rows, int, int], Fitted],
    score: Callable[[Fitted, Rows], Floats],
    *,
    folds: int = 2,
    seeds: int = 3,
) -> Floats:
    """[seeds x E, rows]: E columns a seed, as many as `score` gives for each row ([E, rows of the fold]).

    train(rows, seed, fold) fits on those rows; score(fitted, rows) sees rows of none of its prompts.
    """
    n = len(clusters)
    blocks = []
    for seed in range(seeds):
        parts = folds_of(clusters, folds, seed)
        block: Floats | None = None
        for fold, held_out in enumerate(parts):
            inside = np.sort(np.concatenate([p for i, p in enumerate(parts) if i != fold]))
            values = np.atleast_2d(score(train(inside, seed, fold), held_out))
            if values.shape[1] != len(held_out):
                raise ValueError(f"{values.shape[1]} scores for {len(held_out)} rows")
            if block is None:
                block = np.full((len(values), n), np.nan)
            block[:, held_out] = values
        assert block is not None
        blocks.append(block)
    return np.concatenate(blocks)


def consistency(scores_SN: Floats) -> float:
    """Mean Spearman correlation between the seeds' scores; NaN for one seed."""
    from scipy.stats import spearmanr

    pairs = [(i, j) for i in range(len(scores_SN)) for j in range(i)]
    found = [float(spearmanr(scores_SN[i], scores_SN[j]).statistic) for i, j in pairs]
    return float(np.mean(found)) if found else float("nan")


def learning_step(margin_EN: Floats) -> NDArray[np.int64]:
    """First evaluation (from 1) from which on a pair is ranked rightly at every later one; E + 1 where it never is."""
    right_EN = margin_EN > 0
    stays_EN = np.flip(np.logical_and.accumulate(np.flip(right_EN, 0), axis=0), 0)
    return np.where(stays_EN.any(axis=0), stays_EN.argmax(axis=0) + 1, len(margin_EN) + 1).astype(np.int64)
