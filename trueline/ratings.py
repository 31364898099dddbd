"""Ratings out of comparisons of two: one table of matches, several rating methods, intervals over prompts. No torch.

    bradley_terry    P(i beats j) = sigmoid(theta_i - theta_j), maximum likelihood; a tie is half a win for each side
    elo              the same on Elo's scale: 1000 + 400 / ln 10 * theta, mean 1000. The maximum, not a sequence of updates
    davidson         ties have a probability of their own: i : tie : j = e^(d/2) : nu : e^(-d/2), d = theta_i - theta_j
    elo_sequential   R += k * (share - expected) match by match: its value depends on the order of the matches
    trueskill        a normal belief a system, updated match by match (two-player TrueSkill): depends on the order as well
    expected_wins    mean over opponents j of wins(i, j) / (wins(i, j) + wins(j, i)), ties ignored

A comparison is a `share` of the first system: 1 won, 0 lost, 1/2 a tie. `bradley_terry`, `elo` and `elo_sequential` also
read shares between (a judge's probability); the others go by which side of 1/2 a share is on. Strengths are centred:
they sum to 0. Where one part of the systems never lost to the rest, no finite strengths maximise the likelihood (Ford
1957): that is an error that names them, and a `ridge` (precision of a normal prior around 0) makes them finite.

Intervals resample *prompts*: matches of one prompt are not independent, and systems play unequal numbers of matches.

Shapes: _K matches, _M systems, _R replicates.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import log_ndtr, ndtri
from scipy.stats import rankdata

from trueline.errors import TruelineError

Array = NDArray[np.float64]
Places = NDArray[np.int64]

SEQUENTIAL = ("elo_sequential", "trueskill")
LIKELIHOOD = ("bradley_terry", "elo", "davidson")
METHODS = (*LIKELIHOOD, *SEQUENTIAL, "expected_wins")
UNITS = dict.fromkeys(LIKELIHOOD, "logits") | {
    "elo": "Elo points",
    "elo_sequential": "Elo points",
    "trueskill": "mu",
    "expected_wins": "share",
}
ELO_SCALE, ELO_MEAN = 400 / np.log(10), 1000.0
WEAK_RIDGE = 0.01  # makes resamples finite in which some systems never lost to the others
SEPARABLE_ALLOWED = 0.02  # of the resamples: with more, the prior and not the data would set a 95 % limit
BATCH_CELLS = 4_000_000  # resamples x matches at a time: bounds memory
SETTLED, ROUNDS = 1e-9, 200  # of Newton's method: largest gradient component a comparison; most steps


@dataclass(frozen=True)
class Matches:
    """Comparisons of two systems on a prompt, in the order they were made.

    systems: names in order of first appearance. first_K, second_K, prompt_K: places. share_K: of the first system, in
    [0, 1]. prompts: how many different ones. unjudged: matches that were left out for want of a verdict.
    """

    systems: tuple[str, ...]
    first_K: Places
    second_K: Places
    share_K: Array
    prompt_K: Places
    prompts: int
    unjudged: int = 0

    @classmethod
    def of(
        cls,
        first: Sequence[str],
        second: Sequence[str],
        share: Sequence[float],
        prompts: Sequence[Hashable] | None = None,
        *,
        systems: Sequence[str] = (),
    ) -> Matches:
        """From columns; a share of NaN is a match without a verdict, which is counted and left out.

        prompts: what each match was about; without it every match is a unit of its own. systems: names in the order
        wanted, where it shall not be that of first appearance. Raises TruelineError for a share outside [0, 1], a
        system that meets itself, and columns of different lengths.
        """
        given = np.asarray(share, dtype=float)
        lengths = {len(first), len(second), len(given)} | ({len(prompts)} if prompts is not None else set())
        if len(lengths) != 1 or not len(given):
            raise TruelineError(
                f"Matches need columns of one length, and at least one match; found {len(first)} first, {len(second)} "
                f"second, {len(given)} share{f', {len(prompts)} prompt' if prompts is not None else ''}."
            )
        for k, (a, b, s) in enumerate(zip(first, second, given, strict=True)):
            if a == b:
                raise TruelineError(f"Match {k}: '{a}' meets itself. A match is between two systems.")
            if not (0 <= s <= 1 or np.isnan(s)):
                raise TruelineError(
                    f"Match {k}: the share of the first system is {s:g}; it lies in [0, 1] (1 won, 0.5 a tie, 0 lost), "
                    "nan for no verdict. AlpacaEval stores 1 + p: subtract 1."
                )
        names = list(dict.fromkeys([*systems, *(x for pair in zip(first, second, strict=True) for x in pair)]))
        place = {name: i for i, name in enumerate(names)}
        units: dict[Hashable, int] = {}
        about = range(len(given)) if prompts is None else prompts
        kept = [k for k, s in enumerate(given) if not np.isnan(s)]
        if not kept:
            raise TruelineError(f"None of {len(given)} matches has a verdict: there is nothing to rate.")
        prompt = [units.setdefault(about[k], len(units)) for k in kept]
        return cls(
            tuple(names),
            np.array([place[first[k]] for k in kept], dtype=np.int64),
            np.array([place[second[k]] for k in kept], dtype=np.int64),
            given[kept],
            np.array(prompt, dtype=np.int64),
            len(units),
            len(given) - len(kept),
        )

    @classmethod
    def from_scores(cls, score: Sequence[float], system: Sequence[str], prompts: Sequence[Hashable]) -> Matches:
        """Every two systems compared on every prompt by the sign of their scores' difference.

        Prompts in order of first appearance, pairs i < j in order: the order that TrueSkill goes by. A score of NaN is
        missing: its pairs are skipped and count for nobody.
        """
        rows: dict[Hashable, dict[str, float]] = {}
        for k, (s, name, prompt) in enumerate(zip(score, system, prompts, strict=True)):
            row = rows.setdefault(prompt, {})
            if name in row:
                raise TruelineError(
                    f"Row {k}: '{name}' has a score for '{prompt}' already. One score a system and prompt."
                )
            row[name] = float(s)
        names = list(dict.fromkeys(system))
        met = [
            (a, b, (1 + np.sign(row[a] - row[b])) / 2, prompt)
            for prompt, row in rows.items()
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            if a in row and b in row
        ]
        if not met:
            raise TruelineError("No prompt has scores of two systems, so none can be compared.")
        first, second, share, about = zip(*met, strict=True)
        return cls.of(first, second, share, about, systems=names)

    def wins(self, weight_RK: Array | None = None, *, decided: bool = False) -> Array:
        """wins[r, i, j]: weighted shares of i against j. decided: whole wins only, and ties for nobody."""
        share = np.where(self.share_K == 0.5, np.nan, self.share_K > 0.5) if decided else self.share_K
        weight_RK = np.ones((1, len(share))) if weight_RK is None else weight_RK
        m = len(self.systems)
        cells = np.concatenate([self.first_K * m + self.second_K, self.second_K * m + self.first_K])
        amounts = np.nan_to_num(np.concatenate([share, 1 - share]))
        rows = [np.bincount(cells, np.concatenate([w, w]) * amounts, minlength=m * m) for w in weight_RK]
        return np.array(rows, dtype=float).reshape(-1, m, m)

    def ties(self, weight_RK: Array | None = None) -> Array:
        """ties[r, i, j]: weighted ties of i and j, symmetric."""
        weight_RK = np.ones((1, len(self.share_K))) if weight_RK is None else weight_RK
        m, tied = len(self.systems), self.share_K == 0.5
        cells = (self.first_K * m + self.second_K)[tied]
        rows = [np.bincount(cells, w[tied], minlength=m * m) for w in weight_RK]
        table = np.array(rows, dtype=float).reshape(-1, m, m)
        return np.asarray(table + table.transpose(0, 2, 1), dtype=float)


@dataclass(frozen=True)
class Ratings:
    """Ratings of systems, [M] each, in the order of `matches.systems`; a higher rating is a better system.

    low_M, high_M: 95 % limits over prompts, None where there are none. rank_M: 1 is best, ties share the mean rank; with
    its 95 % limits. separable: share of the resamples in which some systems never lost to the others. nu: Davidson's.
    """

    method: str
    matches: Matches
    rating_M: Array
    rank_M: Array
    low_M: Array | None = None
    high_M: Array | None = None
    rank_low_M: Array | None = None
    rank_high_M: Array | None = None
    separable: float = 0.0
    nu: float | None = None

    def named(self) -> dict[str, float]:
        return dict(zip(self.matches.systems, self.rating_M.tolist(), strict=True))


def rate(
    matches: Matches,
    method: str = "bradley_terry",
    *,
    ridge: float = 0.0,
    shuffles: int = 0,
    resamples: int = 1000,
    seed: int = 0,
) -> Ratings:
    """Ratings by one method with percentile intervals over resampled prompts.

    ridge: of the methods that maximise a likelihood. shuffles: of the sequential ones: the mean over so many random
    orders of the prompts instead of the order given. resamples: 0 for no intervals; a single prompt has none.
    """
    _refuse(matches, method, ridge, shuffles, resamples)
    nu = None
    if method in SEQUENTIAL:
        rating = _replay(method, matches, _orders(matches, shuffles, seed)).mean(axis=0)
    else:
        whole = np.ones((1, len(matches.share_K)))
        if method != "expected_wins" and not ridge:
            _refuse_separable(matches, method)
        fitted, nus = _closed(method, matches, whole, ridge)
        rating, nu = fitted[0], nus[0] if method == "davidson" else None
    rank = rankdata(-rating)
    if not resamples or matches.prompts == 1:
        return Ratings(method, matches, rating, rank, nu=nu)
    rng = np.random.default_rng(seed)
    drawn_RP = rng.integers(matches.prompts, size=(resamples, matches.prompts))
    # In file order, so that a replicate differs from the estimate in its prompts and not also in their order.
    drawn_RP = rng.permuted(drawn_RP, axis=1) if shuffles else np.sort(drawn_RP, axis=1)
    drawn, separable = on_prompts(matches, method, drawn_RP, ridge=ridge)
    ranks = rankdata(-drawn, axis=1)
    low, high, best, worst = (np.quantile(x, q, axis=0) for x in (drawn, ranks) for q in (0.025, 0.975))
    if separable > SEPARABLE_ALLOWED:
        return Ratings(method, matches, rating, rank, rank_low_M=best, rank_high_M=worst, separable=separable, nu=nu)
    return Ratings(method, matches, rating, rank, low, high, best, worst, separable, nu)


def _refuse(matches: Matches, method: str, ridge: float, shuffles: int, resamples: int) -> None:
    """Options without an effect, and tables that a method cannot rate."""
    if method not in METHODS:
        raise TruelineError(f"There is no rating method '{method}'. Expected one of {', '.join(METHODS)}.")
    if ridge < 0 or (ridge and method not in LIKELIHOOD):
        raise TruelineError(
            f"ridge is {ridge:g} with {method}: it is 0 or more, and has an effect on {', '.join(LIKELIHOOD)} alone."
        )
    if shuffles < 0 or (shuffles and method not in SEQUENTIAL):
        raise TruelineError(
            f"shuffles is {shuffles} with {method}: it is 0 or more, and has an effect on {', '.join(SEQUENTIAL)} alone."
        )
    if resamples < 0 or resamples == 1:
        raise TruelineError(f"resamples is {resamples}; an interval needs many (1000), and 0 means none.")
    soft = np.flatnonzero(~np.isin(matches.share_K, (0.0, 0.5, 1.0)))
    if method == "davidson" and soft.size:
        raise TruelineError(
            f"davidson tells wins, ties and losses apart; match {soft[0]} has the share {matches.share_K[soft[0]]:g}. Use "
            "bradley_terry for shares between."
        )
    if method == "davidson" and bool((matches.share_K == 0.5).all()):
        raise TruelineError("davidson: every match is a tie, which leaves nothing to rate the systems by.")
    met = matches.wins()[0] + matches.wins()[0].T
    if method == "expected_wins" and (strangers := np.argwhere(np.triu(met == 0, 1))).size:
        a, b = (matches.systems[i] for i in strangers[0])
        raise TruelineError(
            f"expected_wins is a mean over all opponents; '{a}' and '{b}' never met. Compare every two, or use bradley_terry."
        )


def _refuse_separable(matches: Matches, method: str) -> None:
    """Without a prior: refuse systems that no chain of losses connects to the others."""
    wins = matches.wins()[0]
    if not _is_split(wins):
        return
    _, part_M = connected_components(wins > 0, directed=True, connection="strong")
    for part in np.argsort(np.bincount(part_M), kind="stable"):  # the fewest names first
        own = part_M == part
        lost, won = wins[~own][:, own].sum(), wins[own][:, ~own].sum()
        if not lost or not won:
            names = ", ".join(matches.systems[i] for i in np.flatnonzero(own)[:5])
            fate = "never met" if not lost and not won else "never lost to" if not lost else "never won against"
            raise TruelineError(
                f"{method}: {names} {fate} the other systems, so no finite ratings fit best. Give more matches, or "
                "a ridge such as 0.1, a prior that holds ratings near their mean."
            )


def _is_split(wins_MM: Array) -> bool:
    """Whether some systems never lost to the others: the graph of who beat whom is not strongly connected."""
    if ((wins_MM > 0) | np.eye(len(wins_MM), dtype=bool)).all():
        return False
    return bool(connected_components(wins_MM > 0, directed=True, connection="strong")[0] > 1)


def on_prompts(matches: Matches, method: str, drawn_RP: Places, *, ridge: float = 0.0) -> tuple[Array, float]:
    """Ratings [R, M] on resampled prompts, given as places in the order to go through, and the share that was separable."""
    if method in SEQUENTIAL:
        return _replay(method, matches, _expand(matches, drawn_RP)), 0.0
    batch = max(1, BATCH_CELLS // len(matches.share_K))
    rows, split = [], 0
    for start in range(0, len(drawn_RP), batch):
        count_RP = np.stack([np.bincount(d, minlength=matches.prompts) for d in drawn_RP[start : start + batch]])
        weight_RK = count_RP[:, matches.prompt_K].astype(float)
        if method == "expected_wins" or ridge:
            rows.append(_closed(method, matches, weight_RK, ridge)[0])
            continue
        wins = matches.wins(weight_RK)
        split_R = np.array([_is_split(w) for w in wins])
        found = np.empty((len(weight_RK), len(matches.systems)))
        for chosen, prior in ((~split_R, 0.0), (split_R, WEAK_RIDGE)):
            if chosen.any():
                found[chosen] = _closed(method, matches, weight_RK[chosen], prior)[0]
        rows.append(found)
        split += int(split_R.sum())
    return np.concatenate(rows), split / len(drawn_RP)


# ---- methods without an order ----------------------------------------------------------------------------------------


def _closed(method: str, matches: Matches, weight_RK: Array, ridge: float) -> tuple[Array, Array]:
    """Ratings [R, M] under weights of the matches, and Davidson's nu [R]."""
    if method == "expected_wins":
        return expected_wins(matches.wins(weight_RK, decided=True), met=matches.wins(weight_RK)), np.zeros(
            len(weight_RK)
        )
    ties = matches.ties(weight_RK) if method == "davidson" else None
    wins = matches.wins(weight_RK, decided=method == "davidson")
    theta, nu = strengths(wins, ties, ridge)
    return (ELO_MEAN + ELO_SCALE * theta if method == "elo" else theta), nu


def expected_wins(wins_RMM: Array, met: Array | None = None) -> Array:
    """Mean over opponents of the share of decided matches won, [R, M]. Only ties between two: one half.

    met: who met whom, where that is not everybody: opponents never met are left out of the mean.
    """
    total = wins_RMM + wins_RMM.transpose(0, 2, 1)
    share = np.where(total > 0, wins_RMM / np.where(total > 0, total, 1.0), 0.5)
    known = np.ones_like(share, dtype=bool) if met is None else met + met.transpose(0, 2, 1) > 0
    known = known & ~np.eye(share.shape[1], dtype=bool)
    count = known.sum(axis=2)
    return np.where(count > 0, (share * known).sum(axis=2) / np.maximum(count, 1), 0.5)


def strengths(wins_RMM: Array, ties_RMM: Array | None = None, ridge: float = 0.0) -> tuple[Array, Array]:
    """Strengths [R, M] that maximise the likelihood minus ridge / 2 * sum theta^2, sum 0; and nu [R] of Davidson's ties.

    Without ties_RMM the model is Bradley-Terry's (nu = 0). Newton's method on all replicates at once, steps halved where
    the objective would grow. Raises TruelineError where it does not settle: the maximum is then not finite.
    """
    r, m = wins_RMM.shape[:2]
    tied = np.zeros_like(wins_RMM) if ties_RMM is None else ties_RMM
    has_ties_R = tied.sum(axis=(1, 2)) > 0
    total = wins_RMM + wins_RMM.transpose(0, 2, 1) + tied  # [R, M, M], symmetric
    count_R = np.maximum(total.sum(axis=(1, 2)) / 2, 1.0)

    def parts(x: Array) -> tuple[Array, Array, Array]:
        """Differences d, log nu as [R, 1, 1] and log Z of every two systems."""
        d = x[:, :m, None] - x[:, None, :m]
        log_nu = np.where(has_ties_R, x[:, m], -np.inf)[:, None, None]
        return d, log_nu, np.logaddexp(np.logaddexp(d / 2, -d / 2), log_nu)

    def objective(x: Array) -> Array:
        d, log_nu, log_z = parts(x)
        both = total * log_z - np.where(tied > 0, tied * np.maximum(log_nu, -1e300), 0.0)
        return both.sum(axis=(1, 2)) / 2 - (wins_RMM * d / 2).sum(axis=(1, 2)) + ridge / 2 * (x[:, :m] ** 2).sum(axis=1)

    x = np.zeros((r, m + 1))
    value = objective(x)
    for _ in range(ROUNDS):
        d, log_nu, log_z = parts(x)
        p, q, tie = np.exp(d / 2 - log_z), np.exp(-d / 2 - log_z), np.exp(log_nu - log_z)
        gradient = np.zeros_like(x)
        # d and -d are both in the sum over (i, j), so each cell counts for its row once.
        slope = total * (p - q) / 2 - (wins_RMM - wins_RMM.transpose(0, 2, 1)) / 2
        gradient[:, :m] = slope.sum(axis=2) + ridge * x[:, :m]
        gradient[:, m] = np.where(has_ties_R, (total * tie - tied).sum(axis=(1, 2)) / 2, 0.0)
        if (np.abs(gradient).max(axis=1) <= SETTLED * count_R).all():
            theta = x[:, :m] - x[:, :m].mean(axis=1, keepdims=True)
            return theta, np.where(has_ties_R, np.exp(x[:, m]), 0.0)
        curvature = total * (p + q - (p - q) ** 2) / 4
        hessian = np.zeros((r, m + 1, m + 1))
        hessian[:, :m, :m] = -curvature
        # The constant direction is free: a one in every cell fixes the gauge and moves no difference.
        hessian[:, np.arange(m), np.arange(m)] += curvature.sum(axis=2) + ridge
        hessian[:, :m, :m] += (count_R / m**2)[:, None, None]
        cross = (-total * tie * (p - q) / 2).sum(axis=2)
        hessian[:, :m, m] = hessian[:, m, :m] = cross
        hessian[:, m, m] = np.where(has_ties_R, (total * tie * (1 - tie)).sum(axis=(1, 2)) / 2, 1.0)
        step = np.linalg.solve(hessian, -gradient[:, :, None])[:, :, 0]
        step *= np.minimum(1.0, 3.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        for _ in range(40):
            found = objective(x + step)
            worse = found > value + 1e-12 * np.abs(value)
            if not worse.any():
                break
            step[worse] /= 2
        x, value = x + step, objective(x + step)
    raise TruelineError(
        "The ratings did not settle: some system won (or lost) nearly every comparison. Give a ridge such as 0.1."
    )


# ---- methods that go match by match ----------------------------------------------------------------------------------


def _orders(matches: Matches, shuffles: int, seed: int) -> Places:
    """Orders of matches [R, T]: the order given, or prompts shuffled; the matches of a prompt stay in theirs."""
    if not shuffles:
        return np.arange(len(matches.share_K))[None, :]
    rng = np.random.default_rng(seed)
    return _expand(matches, rng.permuted(np.tile(np.arange(matches.prompts), (shuffles, 1)), axis=1))


def _expand(matches: Matches, prompt_RP: Places) -> Places:
    """Rows of prompts as rows of their matches, padded at the end with -1."""
    order = np.argsort(matches.prompt_K, kind="stable")
    own = np.split(order, np.cumsum(np.bincount(matches.prompt_K, minlength=matches.prompts))[:-1])
    rows = [np.concatenate([own[p] for p in row]) for row in prompt_RP]
    padded = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        padded[r, : len(row)] = row
    return padded


def _replay(method: str, matches: Matches, order_RT: Places) -> Array:
    """Final ratings [R, M] after the matches in each of these orders."""
    return elo_sequential(matches, order_RT) if method == "elo_sequential" else trueskill(matches, order_RT)[0]


def elo_sequential(matches: Matches, order_RT: Places, *, k: float = 4.0, start: float = ELO_MEAN) -> Array:
    """Elo's updates, [R, M]: R_a += k (share - 1 / (1 + 10^((R_b - R_a) / 400))), and R_b the opposite.

    k = 4 is small, so that the last matches do not decide; chess uses 10 to 40.
    """
    rating = np.full((len(order_RT), len(matches.systems)), start)
    row = np.arange(len(order_RT))
    for at in order_RT.T:
        a, b = matches.first_K[at], matches.second_K[at]
        expected = 1 / (1 + 10 ** ((rating[row, b] - rating[row, a]) / 400))
        change = np.where(at >= 0, k * (matches.share_K[at] - expected), 0.0)
        rating[row, a] += change
        rating[row, b] -= change
    return rating


def trueskill(
    matches: Matches,
    order_RT: Places | None = None,
    *,
    mu: float = 0.0,
    sigma: float = 0.5,
    beta: float = 0.25,
    draw_probability: float = 0.25,
) -> tuple[Array, Array]:
    """Means and deviations [R, M] of two-player TrueSkill without dynamics (tau = 0).

        c^2 = 2 beta^2 + sigma_a^2 + sigma_b^2,   t = (mu_a - mu_b) / c,   e = Phi^-1((draw_probability + 1) / 2) sqrt(2) beta / c
        win of a:  v = phi(t - e) / Phi(t - e),   w = v (v + t - e)
        tie:       v = (phi(-e - t) - phi(e - t)) / (Phi(e - t) - Phi(-e - t)),
                   w = v^2 + ((e - t) phi(e - t) + (e + t) phi(e + t)) / (Phi(e - t) - Phi(-e - t))
        mu_a += sigma_a^2 / c * v,   mu_b -= sigma_b^2 / c * v,   sigma^2 *= 1 - sigma^2 / c^2 * w   (both)

    The defaults are those of arXiv 2502.09416's code. A share is a win above 1/2 and a loss below.
    """
    if not 0 < draw_probability < 1:
        raise TruelineError(
            f"draw_probability is {draw_probability:g}; TrueSkill takes ties as possible: above 0, below 1."
        )
    order_RT = np.arange(len(matches.share_K))[None, :] if order_RT is None else order_RT
    mean = np.full((len(order_RT), len(matches.systems)), mu)
    variance = np.full_like(mean, sigma**2)
    margin = float(ndtri((draw_probability + 1) / 2)) * np.sqrt(2) * beta
    row = np.arange(len(order_RT))
    for at in order_RT.T:
        share = matches.share_K[at]
        swap = share < 0.5  # the winner first
        a = np.where(swap, matches.second_K[at], matches.first_K[at])
        b = np.where(swap, matches.first_K[at], matches.second_K[at])
        va, vb = variance[row, a], variance[row, b]
        c = np.sqrt(2 * beta**2 + va + vb)
        t, e = (mean[row, a] - mean[row, b]) / c, margin / c
        v_win, w_win = _truncated_win(t - e)
        v_tie, w_tie = _truncated_tie(t, e)
        v, w = np.where(share == 0.5, v_tie, v_win), np.where(share == 0.5, w_tie, w_win)
        v, w = np.where(at >= 0, v, 0.0), np.where(at >= 0, w, 0.0)
        mean[row, a] += va / c * v
        mean[row, b] -= vb / c * v
        variance[row, a] = va * (1 - va / c**2 * w)
        variance[row, b] = vb * (1 - vb / c**2 * w)
    return mean, np.sqrt(variance)


def _log_density(x: Array) -> Array:
    return -(x**2) / 2 - np.log(2 * np.pi) / 2


def _truncated_win(x: Array) -> tuple[Array, Array]:
    """v and w of a win, x = t - e. In logarithms: far below 0 both density and mass underflow, their ratio does not."""
    v = np.exp(_log_density(x) - log_ndtr(x))
    return v, v * (v + x)


def _truncated_tie(t: Array, e: Array) -> tuple[Array, Array]:
    """v and w of a tie. For t >= 0 (v is odd and w even in t), so that the larger of two tails carries the logarithm."""
    size = np.abs(t)
    upper, lower = log_ndtr(e - size), log_ndtr(-e - size)
    log_mass = upper + np.log1p(-np.exp(lower - upper))
    near, far = np.exp(_log_density(e - size) - log_mass), np.exp(_log_density(e + size) - log_mass)
    v = far - near
    return np.where(t < 0, -v, v), v**2 + (e - size) * near + (e + size) * far
