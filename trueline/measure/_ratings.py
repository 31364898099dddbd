"""Ratings as readings: one a system, with its rank and how often it was compared."""

from __future__ import annotations

import numpy as np

from trueline.measure.contract import Reading
from trueline.ratings import UNITS, Matches, Ratings


def readings(found: Ratings, prefix: str = "rating") -> list[Reading]:
    """A reading a system, best first. The first one's items are the whole table."""
    order = [int(i) for i in np.argsort(-found.rating_M, kind="stable")]
    rows = tuple(_row(found, i) for i in order)
    unit, prompts = UNITS[found.method], found.matches.prompts
    made = []
    for place, i in enumerate(order):
        low, high = _of(found.low_M, i), _of(found.high_M, i)
        name, value = f"{prefix}/{found.matches.systems[i]}", float(found.rating_M[i])
        made.append(Reading(name, value, low, high, prompts, unit, items=() if place else rows))
    return made


def _of(values_M: np.ndarray | None, i: int) -> float | None:
    return None if values_M is None else float(values_M[i])


def _row(found: Ratings, i: int) -> dict[str, object]:
    matches = found.matches

    row: dict[str, object] = {"system": matches.systems[i], "rating": float(found.rating_M[i])}
    row |= {"low": _of(found.low_M, i), "high": _of(found.high_M, i), "rank": float(found.rank_M[i])}
    row |= {"rank_low": _of(found.rank_low_M, i), "rank_high": _of(found.rank_high_M, i), **_counts(matches, i)}
    row |= {"unjudged_in_all": matches.unjudged}
    if found.separable:
        row["separable_resamples"] = found.separable
    if found.nu is not None:
        row["nu"] = found.nu
    return row


def _counts(matches: Matches, i: int) -> dict[str, float]:
    own, other = matches.first_K == i, matches.second_K == i
    share = np.concatenate([matches.share_K[own], 1 - matches.share_K[other]])
    return {"matches": len(share), "wins": int((share > 0.5).sum()), "ties": int((share == 0.5).sum())}
