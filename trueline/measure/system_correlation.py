"""System correlation: a metric's ratings of systems against people's, over all systems and among neighbours.

    Pearson's r and Spearman's rho of ratings r_i and human ratings h_i, i = 1 ... M

For ratings that are published as such (SEEDA's human Expected Wins and TrueSkill; a leaderboard). Where single outputs
were judged, metric_meta_evaluation makes both sides' ratings and gives intervals over prompts. The items hold the window
analysis of arXiv 2502.09416: both correlations among each `window` systems that are neighbours by people's ratings, best
first; they are None where one side is constant there. Intervals are Fisher's (normal, standard error 1 / sqrt(M - 3)), for
other systems of this kind; with fewer than four systems, or a correlation of exactly one, there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, columns, measure


@measure(takes="table", arxiv="2502.09416", paper="Rethinking Evaluation Metrics for Grammatical Error Correction")
def system_correlation(rating_M: Sequence[float], human_M: Sequence[float], *, window: int = 4) -> list[Reading]:
    """rating_M, human_M: one row a system; higher is better in both."""
    rating, human = columns("system_correlation", rating=rating_M, human=human_M)
    if len(rating) < 2:
        raise TruelineError("system_correlation compares systems with each other; found one row.")
    pearson, spearman = correlations(rating, human)
    if np.isnan(pearson):
        side = "rating" if np.ptp(rating) == 0 else "human"
        raise TruelineError(f"system_correlation: every {side} is {rating[0] if side == 'rating' else human[0]:g}.")
    made: list[Reading] = []
    for name, value in (("system_pearson", pearson), ("system_spearman", spearman)):
        low, high = _fisher(value, len(rating))
        items = tuple(windows(rating, human, window)) if not made else ()
        made.append(Reading(name, value, low, high, len(rating), "correlation", "systems", items=items))
    return made


def correlations(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Pearson and Spearman; NaN where they are not defined."""
    if len(a) < 2 or np.isnan([*a, *b]).any() or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan"), float("nan")
    return float(stats.pearsonr(a, b).statistic), float(stats.spearmanr(a, b).statistic)


def windows(rating_M: np.ndarray, human_M: np.ndarray, window: int) -> list[dict[str, Any]]:
    """Both correlations in each run of `window` systems in descending order of the human rating."""
    if not 2 <= window <= len(rating_M):
        raise TruelineError(f"window is {window}; expected 2 to the number of systems, {len(rating_M)}.")
    order = np.argsort(-human_M, kind="stable")
    rows = []
    for start in range(len(order) - window + 1):
        own = order[start : start + window]
        pearson, spearman = correlations(rating_M[own], human_M[own])
        found = {"pearson": pearson, "spearman": spearman}
        rows.append(
            {"from_rank": start + 1, "to_rank": start + window} | {k: None if v != v else v for k, v in found.items()}
        )
    return rows


def _fisher(r: float, n: int) -> tuple[float | None, float | None]:
    if n < 4 or abs(r) >= 1 - 1e-12:
        return None, None
    half = 1.959964 / np.sqrt(n - 3)
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))
