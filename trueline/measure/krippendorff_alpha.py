"""Krippendorff's alpha: how far any number of raters agree beyond chance, some values missing.

    alpha = 1 - D_o / D_e
    D_o = sum_ck o_ck d(c, k) / n,   D_e = sum_ck n_c n_k d(c, k) / (n (n - 1))
    o_ck = sum over units of (ordered pairs of its values that are c and k) / (m_u - 1),   n_c = sum_k o_ck

Krippendorff (Content Analysis, 2004). Distances d of two values: nominal 1[c != k]; interval (c - k)^2; ordinal the
squared number of values from c to k, both ends by half. 1 is full agreement, 0 what chance gives, and less is possible.
A unit that only one rater judged says nothing and is left out; how many were used is `n`.

Rows: `rating`, `item` (the unit), and `rater`, which only serves to refuse a rater's second value for an item. For verdicts
in A, B and tie take nominal; for ratings of 1 to 10 ordinal or interval. The interval resamples items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from trueline.errors import TruelineError
from trueline.measure._agreement import coincidences, krippendorff
from trueline.measure._judged import limits
from trueline.measure.aggregated_ratings import one_length
from trueline.measure.contract import Reading, columns, measure


@measure(takes="table", paper="Krippendorff: Content Analysis (2004)")
def krippendorff_alpha(
    rating_R: Sequence[float],
    item_R: Sequence[str],
    rater_R: Sequence[str] | None = None,
    *,
    level: Literal["nominal", "ordinal", "interval"] = "nominal",
    resamples: int = 1000,
) -> Reading:
    """rating_R: a number a row (labels as numbers); item_R: what was rated; rater_R: by whom."""
    name = "krippendorff_alpha"
    (rating,) = columns(name, rating=rating_R)
    one_length(name, rating=rating_R, item=item_R, rater=rating_R if rater_R is None else rater_R)
    if level not in ("nominal", "ordinal", "interval"):
        raise TruelineError(f"{name}: level is '{level}'; expected nominal, ordinal or interval.")
    if rater_R is not None:
        (item, rater), times = Counter(zip(item_R, rater_R, strict=True)).most_common(1)[0]
        if times > 1:
            raise TruelineError(f"{name}: '{rater}' rated '{item}' {times} times. One value a rater and item.")
    rows: dict[Hashable, list[int]] = {}
    for i, item in enumerate(item_R):
        rows.setdefault(item, []).append(i)
    own = [r for r in rows.values() if len(r) > 1]
    if not own:
        raise TruelineError(f"{name}: no item has two ratings, so there is nothing that could agree.")
    labels = np.unique(rating)
    # The coincidences of each item alone, so that a resample only adds them up.
    table_UVV = np.zeros((len(own), len(labels), len(labels)))
    for u, r in enumerate(own):
        seen, table = coincidences(rating[r], [0] * len(r))
        at = np.searchsorted(labels, seen)
        table_UVV[u][np.ix_(at, at)] = table
    value = krippendorff(labels, table_UVV.sum(axis=0), level)
    if np.isnan(value):
        raise TruelineError(
            f"{name}: every rating is {labels[0]:g}; agreement beyond chance is not defined without variety."
        )
    if len(own) < 2 or not resamples:
        return Reading(name, value, None, None, len(own), "alpha", "items")
    flat_UC = table_UVV.reshape(len(own), -1)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples).astype(float) @ flat_UC
    low, high = limits([krippendorff(labels, t.reshape(len(labels), -1), level) for t in drawn])
    return Reading(name, value, low, high, len(own), "alpha", "items")
