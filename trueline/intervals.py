"""Confidence intervals: how far a measured number may be from the truth. NumPy and SciPy only.

    bootstrap_mean       mean of values, resampling prompts (or any cluster): BCa
    paired_difference    mean of a - b on the same prompts: BCa on the differences
    two_level_difference / two_level_mean
                         several seeds on the same prompts: both are resampled
    wilson               a rate of independent yes/no outcomes

Why BCa (Efron 1987) and not the plain percentile interval: values here are skewed (rewards, sequence KL) and rates sit
near their ends, where the percentile interval is off-centre. Intervals of 95 % for the mean of 30 log-normal values
held the truth in 90 % of 600 simulations (BCa) and in 88 % (percentile); for smooth data they agree. What no resampling can do is see variation
that the sample lacks: values without any spread get the Wilson interval where they are declared bounded, and an
interval of width zero otherwise (the KL of a policy to itself, a difference of identical outcomes).

Shapes: _N values, _SP seeds by prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from trueline.errors import TruelineError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. n counts independent units (prompts, or seeds x prompts), not raw values."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values_N: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Mean of values with a BCa bootstrap interval.

    clusters: which unit each value belongs to (its prompt); units are resampled whole, because values of one prompt
    are not independent. Default: every value is its own unit. bounds: (0, 1) for shares; lets values without spread
    have an interval.
    """
    values = finite(values_N, "values")
    sums, counts = _by_cluster(values, clusters)
    mean = float(sums.sum() / counts.sum())
    n = len(sums)
    if n == 1:
        raise TruelineError("An interval needs at least two prompts (units); found one. Measure on more prompts.")
    if np.ptp(sums / counts) <= 1e-12 * np.abs(values).max():  # equal up to rounding
        return _without_spread(mean, n, level, bounds)

    def ratio(sums: NDArray, counts: NDArray, axis: int = -1) -> NDArray:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    drawn = stats.bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),  # bounds memory: resamples x units indices at a time
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = drawn.confidence_interval
    if not math.isfinite(low + high):  # all replicates on one side of the mean: no bias correction exists
        low, high = np.quantile(drawn.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


def paired_difference(
    a_N: ArrayLike,
    b_N: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of a - b where a[i] and b[i] were measured on the same prompt: what varies between prompts cancels."""
    a, b = finite(a_N, "first values"), finite(b_N, "second values")
    if a.shape != b.shape:
        raise TruelineError(f"Paired values must match one to one; found {len(a)} and {len(b)}.")
    return bootstrap_mean(a - b, clusters, level=level, resamples=resamples, seed=seed)


def two_level_mean(values_SP: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over seeds and prompts that are crossed (every seed is measured on the same prompts).

    Each replicate draws seeds and prompts, both with replacement, and averages the crossing (Owen 2007, the
    pigeonhole bootstrap). With a handful of seeds percentiles of the replicates are far too narrow, so the replicates
    only give the standard error: S - 1 of S seeds are drawn, which makes its seed part unbiased (Rao and Wu 1988), and
    the interval is Student's with S - 1 degrees of freedom. It errs on the wide side where prompts vary more than
    seeds. In simulations at S = 5, intervals of 95 % held the truth in 94 % of cases where seeds dominate,
    97 % where both vary alike, 99 % where prompts dominate.
    """
    values = np.asarray(values_SP, dtype=float)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 2:
        raise TruelineError(
            f"A two-level interval needs a table of at least 2 seeds by 2 prompts; found shape {values.shape}. "
            "For one seed use the interval over prompts, which holds for this seed only."
        )
    finite(values.ravel(), "values")
    seeds, prompts = values.shape
    rng = np.random.default_rng(seed)
    weight_BS = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)
    weight_BP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    replicate_B = np.einsum("bs,sp,bp->b", weight_BS, values, weight_BP, optimize=True)
    half = float(replicate_B.std(ddof=1) * stats.t.ppf((1 + level) / 2, seeds - 1))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, values.size)


def two_level_difference(
    a_SP: ArrayLike, b_SP: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of a - b over the same seeds and the same prompts."""
    a, b = np.asarray(a_SP, dtype=float), np.asarray(b_SP, dtype=float)
    if a.shape != b.shape:
        raise TruelineError(f"Paired tables must have one shape (seeds, prompts); found {a.shape} and {b.shape}.")
    return two_level_mean(a - b, level=level, resamples=resamples, seed=seed)


def wilson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a rate. Right also at 0 and n successes, where resampling finds no spread.

    A fractional count (ties as one half) is allowed: values in [0, 1] vary less than yes/no outcomes of the same
    mean, so the interval is then on the wide side.
    """
    if n < 1 or not 0 <= successes <= n:
        raise TruelineError(f"A rate needs 0 <= successes <= n and n >= 1; found {successes} of {n}.")
    z = float(stats.norm.ppf((1 + level) / 2))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), n)


def finite(values_N: ArrayLike, what: str) -> NDArray[np.float64]:
    """Values as a flat float array; an empty one or a non-finite number is an error that names its place."""
    values = np.asarray(values_N, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise TruelineError(f"Expected a flat, non-empty list of {what}; found shape {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise TruelineError(
            f"{bad.size} of {values.size} {what} are not finite; the first is number {bad[0]} ({values[bad[0]]}). "
            "Nothing was measured: find out why that row has no number."
        )
    return values


def _by_cluster(values: NDArray, clusters: Sequence[Hashable] | None) -> tuple[NDArray, NDArray]:
    """Sum and number of the values of each unit, in order of first appearance."""
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise TruelineError(f"Every value needs its prompt; found {len(values)} values and {len(clusters)} prompts.")
    place: dict[Hashable, int] = {}
    index = np.array([place.setdefault(c, len(place)) for c in clusters])
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


def _without_spread(mean: float, n: int, level: float, bounds: tuple[float, float] | None) -> Interval:
    if bounds is None:
        return Interval(mean, mean, mean, n)
    low, high = bounds
    rate = wilson((mean - low) / (high - low) * n, n, level=level)
    return Interval(mean, low + rate.low * (high - low), low + rate.high * (high - low), n)
