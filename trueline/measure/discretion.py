"""Discretion: how an annotator uses the latitude that several principles leave, and how two annotators differ in it.

Every item has two options, K principles that each prefer one (+1 or -1) or neither (0), and the annotator's vote
(arXiv 2502.10441). Items are of one of three kinds: indifference (no principle prefers any), conflict (both signs
occur), consensus.

    arbitrariness DA  = share of consensus items with a vote where the vote goes against the consensus
    supremacy PS(i>j) = share of items on which i and j conflict and there is a vote, where the vote goes with i
    priority w        = Bradley-Terry strengths of (PS, n): the least sum_ij n_ij BCE(sigmoid(w_i - w_j), PS_ij), centred
    discrepancy DD    = (1 - tau_b(w of one annotator, w of the other)) / 2, Kendall's distance, 0 to 1

A vote or preference of 0 stands for "none": nobody is counted as disagreeing who did not vote. Where both orders of
presentation were asked, give their mean sign, so that a flip is 0. A principle that wins (or loses) every conflict
has an infinite strength: it is named in the items, ranks first (or last) and is left out of the fit. Intervals
resample items, 1000 times for DA and 100 for DD. Items of the first reading hold w and the votes behind it, and PS
with its counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.special import expit

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, measure

Signs = NDArray[np.int64]


@measure(takes="table", arxiv="2502.10441", paper="AI Alignment at Your Discretion")
def discretion(
    principles_NK: Sequence[Sequence[float]],
    vote_N: Sequence[float],
    other_vote_N: Sequence[float] | None = None,
    *,
    resamples: int = 100,
) -> list[Reading]:
    """principles_NK: each principle's preference, by sign. vote_N, other_vote_N: of the annotators, by sign.

    resamples: of the items, for the interval of DD (ten times as many for DA).
    """
    table = _signs("principles", principles_NK)
    vote = _signs("vote", vote_N)
    if table.ndim != 2 or len(vote) != len(table) or not table.size:
        raise TruelineError(
            f"Principles have shape {table.shape} and there are {vote.shape} votes; expected items by K."
        )
    if resamples < 2:
        raise TruelineError(f"resamples is {resamples}; an interval needs two at least.")
    kind = kinds(table)
    found = [
        Reading.of_mean(name, (kind == name).astype(float).tolist(), unit="share", bounds=(0.0, 1.0))
        for name in ("consensus", "conflict", "indifference")
    ]
    found = [replace(r, scope="items") for r in found]
    found[0] = replace(found[0], items=tuple(_rows(table, vote)))
    found += _arbitrariness("arbitrariness", table, vote, 10 * resamples)
    if other_vote_N is not None:
        other = _signs("other_vote", other_vote_N)
        if len(other) != len(table):
            raise TruelineError(f"{len(table)} items and {len(other)} votes of the other annotator.")
        found += _arbitrariness("arbitrariness/other", table, other, 10 * resamples)
        found.append(_discrepancy(table, vote, other, resamples))
    return found


def kinds(table_NK: Signs) -> NDArray[np.str_]:
    """consensus, conflict or indifference of every item."""
    plus, minus = (table_NK > 0).any(1), (table_NK < 0).any(1)
    return np.where(plus & minus, "conflict", np.where(plus | minus, "consensus", "indifference"))


def arbitrariness(table_NK: Signs, vote_N: Signs) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Whether each counted vote goes against the consensus, and which items count."""
    counted = (kinds(table_NK) == "consensus") & (vote_N != 0)
    sign = np.sign(table_NK.sum(1))
    return (sign * vote_N < 0)[counted].astype(float), counted


def supremacy(table_NK: Signs, vote_N: Signs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PS [K, K], NaN where two principles never conflict, and the counts n [K, K]."""
    voted = vote_N != 0
    plus, minus = (table_NK[voted] > 0).astype(float), (table_NK[voted] < 0).astype(float)
    up, down = plus * (vote_N[voted, None] > 0), minus * (vote_N[voted, None] < 0)
    count = plus.T @ minus + minus.T @ plus
    wins = up.T @ minus + down.T @ plus  # i voted with, j on the other side
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, wins / count, np.nan), count


def priority(table_NK: Signs, vote_N: Signs) -> NDArray[np.float64]:
    """w [K], centred over the finite ones; +-inf for a principle that always won or lost, NaN for one without conflict."""
    share, count = supremacy(table_NK, vote_N)
    wins = np.where(count > 0, share, 0.0) * count
    w = np.full(len(count), np.nan)
    left = np.flatnonzero(count.sum(1) > 0)
    while len(left):  # without those that always win or lose, others may do so, too
        total, won = count[np.ix_(left, left)].sum(1), wins[np.ix_(left, left)].sum(1)
        alone, best, worst = total == 0, (won == total) & (total > 0), (won == 0) & (total > 0)
        if not (alone | best | worst).any():
            break
        w[left[best]], w[left[worst]], w[left[alone]] = np.inf, -np.inf, 0.0
        left = left[~(alone | best | worst)]
    if len(left):
        w[left] = _bradley_terry(wins[np.ix_(left, left)])
    return w


def _bradley_terry(wins_KK: NDArray) -> NDArray[np.float64]:
    """Maximum-likelihood strengths, centred."""
    upper = np.triu_indices(len(wins_KK), 1)
    a, b = wins_KK[upper], wins_KK.T[upper]

    def loss(w: NDArray) -> tuple[float, NDArray]:
        d = w[upper[0]] - w[upper[1]]
        slope = (a + b) * expit(d) - a
        gradient = np.bincount(upper[0], slope, len(w)) - np.bincount(upper[1], slope, len(w))
        return float((a * np.logaddexp(0, -d) + b * np.logaddexp(0, d)).sum()), gradient

    found = optimize.minimize(loss, np.zeros(len(wins_KK)), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    return found - found.mean()


def discrepancy(w_K: NDArray, other_K: NDArray) -> float:
    """Normalised Kendall distance of two priority vectors, over the principles that both have."""
    both = ~(np.isnan(w_K) | np.isnan(other_K))
    if both.sum() < 2:
        raise TruelineError(
            "Fewer than two principles conflict in both annotators' votes, so they have no order to compare."
        )
    tau = stats.kendalltau(w_K[both], other_K[both], variant="b").statistic
    return float((1 - tau) / 2)


def _discrepancy(table: Signs, vote: Signs, other: Signs, resamples: int) -> Reading:
    value = discrepancy(priority(table, vote), priority(table, other))
    if np.isnan(value):
        raise TruelineError(
            "All principles of an annotator are tied in priority, so the two orders cannot be compared."
        )
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(len(table), size=len(table))
        try:
            drawn.append(discrepancy(priority(table[rows], vote[rows]), priority(table[rows], other[rows])))
        except TruelineError:
            continue
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if len(drawn) > resamples / 2 else (None, None)
    return Reading("discrepancy", value, low, high, len(table), "share", "items")


def _arbitrariness(name: str, table: Signs, vote: Signs, resamples: int) -> list[Reading]:
    against, _ = arbitrariness(table, vote)
    if not len(against):
        return []
    reading = Reading.of_mean(name, against.tolist(), unit="share", bounds=(0.0, 1.0))
    if len(against) < 2:
        return [replace(reading, scope="items")]
    drawn = np.random.default_rng(0).binomial(len(against), against.mean(), size=resamples) / len(against)
    spread = 0.0 < against.mean() < 1.0
    low, high = np.quantile(drawn, [0.025, 0.975]) if spread else (reading.low, reading.high)
    return [replace(reading, low=float(low), high=float(high), scope="items")]  # type: ignore[arg-type]


def _rows(table: Signs, vote: Signs) -> list[dict[str, Any]]:
    share, count = supremacy(table, vote)
    w = priority(table, vote)
    rows: list[dict[str, Any]] = [
        {"principle": i, "priority": None if np.isnan(x) else float(x), "conflicts": int(count[i].sum())}
        for i, x in enumerate(w)
    ]
    pairs = [(i, j) for i in range(len(w)) for j in range(i + 1, len(w)) if count[i, j]]
    return rows + [{"over": i, "under": j, "supremacy": float(share[i, j]), "n": int(count[i, j])} for i, j in pairs]


def _signs(name: str, values: Any) -> Signs:
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise TruelineError(f"discretion: '{name}' at {place} is not finite. Write 0 where nobody prefers or votes.")
    return np.sign(array).astype(np.int64)
