"""Robustness of a scorer to changes that should not matter: an inserted space, a line break, a typo, a paraphrase, a
language.

For every kind of change, over texts that it did change:

    shift      mean of |r(x') - r(x)| / std(r)      how far a score moves, in standard deviations of all scores
    bias       mean of (r(x') - r(x)) / std(r)      which way
    ratio      mean r(x') / mean r(x)               1 for the identity; only where all clean scores are positive
    evasion    share with r(x') < threshold among those with r(x) >= threshold, where a threshold is given

`noop` is the share of texts that the change left as they were: many tokenizers and detectors even out white space,
and then nothing was tested. With `threshold` there is also `false_positives`, the share of texts marked `human` that
are flagged before any change, as evasion alone says nothing about a detector that flags everything. One space can
fool detectors (arXiv 2307.02599), and reward models and judges are tested by the same harness.

From a judge (`--feedback`) the score is its reward of the response; from a model, its surprise, the mean negative
log-prob of a token: one very surprising token moves it by about that token's surprise over the length. The changes
`space`, `newline`, `case` and `typo` are made on the spot; columns `paraphrase` and `translation` of the data, where
they are, are used as they stand.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from trueline.errors import TruelineError
from trueline.intervals import wilson
from trueline.measure.contract import Reading, columns, measure


@measure(takes="perturbed", arxiv="2307.02599", paper="Evade ChatGPT Detectors via A Single Space")
def robustness(
    score_R: Sequence[float],
    perturbed_R: Sequence[float],
    kind_R: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
    unchanged_R: Sequence[float] | None = None,
    human_R: Sequence[float] | None = None,
    *,
    threshold: float | None = None,
) -> list[Reading]:
    """A row a text and kind of change: its score before and after, and whether the text stayed the same (1) or not (0)."""
    score, after = columns("robustness", score=score_R, perturbed=perturbed_R)
    for name, column in (("kind", kind_R), ("prompt", clusters), ("unchanged", unchanged_R), ("human", human_R)):
        if column is not None and len(column) != len(score):
            raise TruelineError(f"{len(score)} scores and {len(column)} values of '{name}': every row needs its own.")
    same = np.zeros(len(score), bool) if unchanged_R is None else np.asarray(unchanged_R, dtype=float) > 0
    kinds = np.array([str(k) for k in kind_R])
    spread = float(score.std())
    if spread <= 1e-12 * max(float(np.abs(score).max()), 1e-300):
        raise TruelineError(
            "All clean scores are the same, so there is no scale to compare a shift with. Vary the texts."
        )
    found = []
    for kind in dict.fromkeys(kinds):
        mine = kinds == kind
        found.append(
            Reading.of_mean(f"noop/{kind}", same[mine].astype(float).tolist(), unit="share", bounds=(0.0, 1.0))
        )
        changed = np.flatnonzero(mine & ~same)
        if not len(changed):
            continue
        own = None if clusters is None else [clusters[int(i)] for i in changed]
        moved = (after - score)[changed] / spread
        found.append(Reading.of_mean(f"shift/{kind}", np.abs(moved).tolist(), unit="std", clusters=own))
        found.append(Reading.of_mean(f"bias/{kind}", moved.tolist(), unit="std", clusters=own))
        if score.min() > 0:
            ratio = float(after[changed].mean() / score[changed].mean())
            found.append(Reading(f"ratio/{kind}", ratio, None, None, len(changed), "ratio"))
        if threshold is not None and (flagged := changed[score[changed] >= threshold]).size:
            evaded = int((after[flagged] < threshold).sum())
            found.append(Reading.of_interval(f"evasion/{kind}", wilson(evaded, len(flagged)), unit="share"))
    if human_R is not None:
        if threshold is None:
            raise TruelineError(
                "'human' marks texts that a detector should not flag: give the threshold it flags from."
            )
        human = (np.asarray(human_R, dtype=float) > 0) & (kinds == kinds[0])
        if human.any():
            wrong = int((score[human] >= threshold).sum())
            found.append(Reading.of_interval("false_positives", wilson(wrong, int(human.sum())), unit="share"))
    items = tuple(
        {"kind": str(k), "score": float(a), "perturbed": float(b), "unchanged": bool(s)}
        for k, a, b, s in zip(kinds, score, after, same, strict=True)
    )
    return [replace(found[0], items=items), *found[1:]]
