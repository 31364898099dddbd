"""The parts of a judge's audit, each from columns of verdicts: position, verbosity, self-preference, paraphrase, agreement.

Shapes: _P pairs of responses A and B. A share is that of A, except `backward`: that of whoever stood first there, B.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, logit

from trueline.errors import TruelineError
from trueline.intervals import wilson
from trueline.measure._agreement import cohen_kappa, krippendorff
from trueline.measure._judged import decision, units, weighted_limits
from trueline.measure.contract import Reading

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | None
LEAST_INFORMATION = 1e-4  # of a logistic fit: below it the maximum is not finite
FIT_ROUNDS = 100


def merged(forward: Array, backward: Array) -> Array:
    """A's share out of both orders: a tie where hard verdicts disagree, the mean of two probabilities."""
    hard = np.isin(forward, (0.0, 0.5, 1.0)) & np.isin(backward, (0.0, 0.5, 1.0))
    agreed = forward == 1 - backward
    return np.where(hard & ~agreed, 0.5, (forward + 1 - backward) / 2)


def position(forward: Array, backward: Array, clusters: Clusters, prefix: str = "") -> list[Reading]:
    """Consistency, the share of whoever stands first, preference for first, and the slope of the position."""
    known = ~np.isnan(forward + backward)
    missing = Reading(f"{prefix}no_verdict", float(1 - known.mean()), None, None, len(known), "share")
    if not known.any():
        raise TruelineError("The judge gave no verdict in both orders on any pair: there is nothing to measure.")
    f, b = forward[known], backward[known]
    own = None if clusters is None else [c for c, k in zip(clusters, known, strict=True) if k]
    consistent = decision(f) == -decision(b)
    found = [
        _mean(f"{prefix}consistency", consistent.astype(float), own),
        _mean(f"{prefix}first_share", (f + b) / 2, own),
    ]
    first = (decision(f) == 1) & (decision(b) == 1)
    second = (decision(f) == -1) & (decision(b) == -1)
    if not consistent.all():
        rate = wilson(int(first.sum()), int((~consistent).sum()))
        found.append(Reading.of_interval(f"{prefix}preference_for_first", rate, unit="share", scope="pairs"))
    found.append(_position_slope(int(first.sum()), int(second.sum()), prefix))
    return [*found, missing]


def _position_slope(first: int, second: int, prefix: str) -> Reading:
    """b of logit P(first wins) = d + b (A first) or -d + b (B first), whatever the quality difference d of a pair is.

    Given that both orders chose the same position, P(it was the first) = sigmoid(2 b): d cancels. Half a count is added to
    each side, and the interval is Jeffreys', which is finite without any such pair (then very wide).
    """
    n = first + second
    low, high = stats.beta.ppf([0.025, 0.975], first + 0.5, second + 0.5)
    value = float(logit((first + 0.5) / (n + 1))) / 2
    return Reading(
        f"{prefix}position_slope", value, float(logit(low)) / 2, float(logit(high)) / 2, n, "logits", "pairs"
    )


def verbosity(share: Array, length: Array, other: Array, human: Array | None, clusters: Clusters) -> list[Reading]:
    """The slope of the verdict on length, and how often the longer response wins, by the judge and by people.

        logit P(A) = s log2(L_A / L_B) + g (2 h - 1),   h the human share of A where it is given

    The model has no constant: exchanging A and B turns every term round.
    """
    if (bad := np.flatnonzero(~((length > 0) & (other > 0)))).size:
        raise TruelineError(
            f"judge_audit: a length of row {bad[0]} is not above 0. Lengths are of the two responses' texts."
        )
    doublings = np.log2(length / other)
    known = ~np.isnan(share) & (np.ones(len(share), dtype=bool) if human is None else ~np.isnan(human))
    features = doublings[:, None] if human is None else np.stack([doublings, 2 * human - 1], axis=1)

    def slope(weight: Array) -> float:
        return float(logistic_fit(features[known], share[known], weight[known])[0])

    value = slope(np.ones(len(share)))
    found = []
    if np.isfinite(value):
        low, high = weighted_limits(slope, clusters, len(share), resamples=500)
        name = "verbosity_slope" if human is not None else "verbosity_slope_unadjusted"
        found.append(Reading(name, value, low, high, int(known.sum()), "logits a doubling"))
    unequal = known & (doublings != 0)
    if unequal.any():
        turned = np.where(doublings > 0, share, 1 - share)[unequal]
        own = None if clusters is None else [c for c, k in zip(clusters, unequal, strict=True) if k]
        found.append(_mean("longer_preferred", turned, own))
        if human is not None:
            people = np.where(doublings > 0, human, 1 - human)[unequal]
            excess = _mean("longer_preferred_excess", turned - people, own, bounds=(-1.0, 1.0))
            found += [_mean("longer_preferred_by_people", people, own), excess]
    return found


def logistic_fit(features_NF: Array, share_N: Array, weight_N: Array | None = None) -> Array:
    """Coefficients [F] of P = sigmoid(features @ w) under soft labels by maximum likelihood; NaN where none is finite.

    Newton's method with steps of at most 3. Where the labels can be separated the information goes to 0 as w grows.
    """
    weight = np.ones(len(share_N)) if weight_N is None else weight_N
    w = np.zeros(features_NF.shape[1])
    for _ in range(FIT_ROUNDS):
        p = expit(features_NF @ w)
        gradient = features_NF.T @ (weight * (share_N - p))
        information = (features_NF * (weight * p * (1 - p))[:, None]).T @ features_NF
        if not len(share_N) or np.linalg.eigvalsh(information)[0] < LEAST_INFORMATION:
            break
        if np.abs(gradient).max() < 1e-9 * max(weight.sum(), 1.0):
            return w
        step = np.linalg.solve(information, gradient)
        w = w + step * min(1.0, 3.0 / np.abs(step).max())
    return np.full(len(w), np.nan)


def self_preference(share: Array, human: Array, own: Sequence[str], clusters: Clusters) -> list[Reading]:
    """P(judge prefers it | people prefer it, it is the judge's own) - P(the same | it is another's).

    Every pair of which one response is the judge's own and that people do not tie says one of the two probabilities.
    """
    bad = next((i for i, o in enumerate(own) if o not in ("first", "second", "both", "neither")), None)
    if bad is not None:
        raise TruelineError(
            f"judge_audit: 'own' of row {bad} is {own[bad]!r}; expected first, second, both or neither."
        )
    mine = np.array([{"first": 1, "second": -1}.get(o, 0) for o in own])
    people, known = decision(human), ~np.isnan(share + human)
    counted = known & (mine != 0) & np.isin(people, (1, -1))
    right = np.where(people == 1, share, 1 - share)  # the judge's share of what people prefer
    is_own = people == mine

    ours, others = counted & is_own, counted & ~is_own

    def difference(weight: Array) -> float:
        if not (weight[ours].sum() and weight[others].sum()):
            return math.nan
        return float(np.average(right[ours], weights=weight[ours]) - np.average(right[others], weights=weight[others]))

    value = difference(np.ones(len(share)))
    if np.isnan(value):
        return []
    low, high = weighted_limits(difference, clusters, len(share))
    return [Reading("self_preference", value, low, high, int(counted.sum()), "share")]


def dispersion(wordings: Sequence[Sequence[float]], clusters: Clusters) -> list[Reading]:
    """How verdicts on one pair vary over wordings that mean the same: disagreement, standard deviation, reliability.

    wordings: A's share under each wording, a list a pair. Reliability is ICC(1): (MSB - MSW) / (MSB + (k0 - 1) MSW), the
    share of the variance that is between pairs.
    """
    rows = [np.array([v for v in row if not np.isnan(v)], dtype=float) for row in wordings]
    used = [i for i, row in enumerate(rows) if len(row) > 1]
    if not used:
        raise TruelineError("judge_audit: no pair was judged under two wordings or more ('reworded' is a list a row).")
    kept = [rows[i] for i in used]
    own = None if clusters is None else [clusters[i] for i in used]
    differ = np.array([1 - _same(decision(row)) for row in kept])
    within = np.array([row.var(ddof=1) for row in kept])
    spread = float(np.sqrt(within.mean()))
    low, high = weighted_limits(lambda w: float(np.sqrt(np.average(within, weights=w))), own, len(kept))
    found = [
        _mean("paraphrase_disagreement", differ, own),
        Reading("paraphrase_deviation", spread, low, high, len(kept), "share"),
    ]
    parts = np.array([(len(row), row.mean(), ((row - row.mean()) ** 2).sum()) for row in kept])
    size, mean, squares = parts.T
    reliability = _icc(size, mean, squares, np.ones(len(kept)))
    if not np.isnan(reliability):
        low, high = weighted_limits(lambda w: _icc(size, mean, squares, w), own, len(kept))
        found.append(Reading("paraphrase_reliability", reliability, low, high, len(kept), "ICC(1)"))
    return found


def _same(decisions: Array) -> float:
    """Share of the pairs of wordings that decide alike."""
    k = len(decisions)
    counts = np.unique(decisions, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (k * (k - 1)))


def _icc(size: Array, mean: Array, squares: Array, weight: Array) -> float:
    """ICC(1) of pairs with so many wordings, their means and sums of squares about them, each counted `weight` times."""
    n, total = weight.sum(), (weight * size).sum()
    if n < 2:
        return math.nan
    grand = (weight * size * mean).sum() / total
    between = (weight * size * (mean - grand) ** 2).sum() / (n - 1)
    inside = (weight * squares).sum() / (total - n)
    k0 = (total - (weight * size**2).sum() / total) / (n - 1)
    scale = between + (k0 - 1) * inside
    return float((between - inside) / scale) if scale > 0 else math.nan


def agreement(share: Array, human: Array, clusters: Clusters, prefix: str = "") -> list[Reading]:
    """The judge's and people's decisions: agreement with and without people's ties, Cohen's kappa, Krippendorff's alpha.

    Without ties: pairs that people decided; a tie of the judge disagrees.
    """
    known = ~np.isnan(share + human)
    if not known.any():
        raise TruelineError("No pair has both a verdict of the judge and a human preference.")
    judge, people = decision(share[known]), decision(human[known])
    own = None if clusters is None else [c for c, k in zip(clusters, known, strict=True) if k]
    found = [_mean(f"{prefix}agreement", (judge == people).astype(float), own)]
    decided = people != 0
    if decided.any():
        inner = None if own is None else [c for c, k in zip(own, decided, strict=True) if k]
        found.append(_mean(f"{prefix}agreement_without_ties", (judge == people)[decided].astype(float), inner))

    cell = ((judge + 1) * 3 + people + 1).astype(int)

    def table(weight: Array) -> Array:
        """Decisions counted, the judge's by people's [3, 3]."""
        return np.bincount(cell, weight, minlength=9).astype(float).reshape(3, 3)

    def kappa(weight: Array) -> float:
        return cohen_kappa(table(weight))

    def alpha(weight: Array) -> float:
        return krippendorff(np.arange(3.0), table(weight) + table(weight).T, "nominal")

    for name, statistic, unit in (("cohen_kappa", kappa, "kappa"), ("krippendorff_alpha", alpha, "alpha")):
        value = statistic(np.ones(len(judge)))
        if not np.isnan(value):
            low, high = weighted_limits(statistic, own, len(judge))
            found.append(Reading(f"{prefix}{name}", value, low, high, int(units(own, len(judge)).max()) + 1, unit))
    return found


def _mean(name: str, values: Array, clusters: Clusters, bounds: tuple[float, float] = (0.0, 1.0)) -> Reading:
    return Reading.of_mean(name, values.tolist(), unit="share", clusters=clusters, bounds=bounds)
