"""How much dimensions of a preference set compete, on a linear reward model (Hummer, arXiv 2405.11647).

    r(y) = w . phi(y),    Bradley-Terry on d_p = phi(better) - phi(worse),    full-batch gradient descent from 0
    M on the balanced mixture;   M_j: M trained further on dimension j alone;   Delta_ij = Eval_i(M_j) - Eval_i(M)

Every number of steps and rate is fixed, seeds are splits into training and held-out rows, and measure
`alignment_dimension_conflict` turns the deviations into ADC with its noise floor. A linear model on words is cheap and shows
conflicts that words can show; for a reward model of your own, train the M_j with `trueline align` and give that measure the table.

`hybrid_rates` is Hummer's sampling: dimensions that lag behind are drawn more often (the update's form is our reading).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Floats
from trueline.errors import TruelineError
from trueline.randomness import permutation

STEPS, FURTHER, RATE, L2 = 200, 100, 2.0, 1e-3
LEAST_PAIRS = 20  # of a dimension: with fewer, half of them say nothing about accuracy


@dataclass
class Interference:
    """names: dimensions. before_SK: accuracy of M on each. after_SKK: [seed, trained on j, evaluated on i] of M_j."""

    names: list[str]
    before_SK: Floats
    after_SKK: Floats

    def table(self) -> dict[str, list[Any]]:
        """Columns of measure `alignment_dimension_conflict`."""
        found: dict[str, list[Any]] = {"trained": [], "evaluated": [], "before": [], "after": [], "seed": []}
        for seed, (before_K, after_KK) in enumerate(zip(self.before_SK, self.after_SKK, strict=True)):
            for j, trained in enumerate(self.names):
                for i, evaluated in enumerate(self.names):
                    for column, value in zip(
                        found, (trained, evaluated, before_K[i], after_KK[j, i], seed), strict=True
                    ):
                        found[column].append(value if isinstance(value, str) else float(value))
        return found


def descend(difference_PD: Any, weight_P: Floats, start_D: Floats, steps: int, rate: float = RATE) -> Floats:
    """Gradient descent on the weighted Bradley-Terry loss plus L2 / 2 |w|^2; weights sum to 1."""
    w = start_D.copy()
    for _ in range(steps):
        margin = np.asarray(difference_PD @ w).ravel()
        pull = weight_P / (1 + np.exp(np.clip(margin, -50, 50)))
        w += rate * (np.asarray(difference_PD.T @ pull).ravel() - L2 * w)
    return w


def accuracy(difference_PD: Any, w_D: Floats) -> float:
    """Share of pairs with a positive margin; a tie counts half."""
    margin = np.asarray(difference_PD @ w_D).ravel()
    return float(np.mean((margin > 0) + 0.5 * (margin == 0)))


def interference(difference_PD: Any, dimension_P: Sequence[str], *, seeds: int = 5, base: Sequence[float] | None = None) -> Interference:  # fmt: skip
    """M and every M_j on half of each dimension, evaluated on the other half, for several splits. base: the mixture's rates."""
    rows = _by_dimension(dimension_P)
    names = list(rows)
    before_SK, after_SKK = np.empty((seeds, len(names))), np.empty((seeds, len(names), len(names)))
    for seed in range(seeds):
        train, test = _split(rows, seed)
        w = descend(difference_PD, _weights(len(dimension_P), train, base), np.zeros(difference_PD.shape[1]), STEPS)
        before_SK[seed] = [accuracy(difference_PD[test[i]], w) for i in names]
        for j, name in enumerate(names):
            alone = _weights(len(dimension_P), {name: train[name]}, None)
            further = descend(difference_PD, alone, w, FURTHER)
            after_SKK[seed, j] = [accuracy(difference_PD[test[i]], further) for i in names]
    return Interference(names, before_SK, after_SKK)


def without_dimensions(difference_PD: Any, dimension_P: Sequence[str], *, seeds: int = 5) -> Interference:
    """The same with the dimensions' names shuffled among the pairs: what training M_j on fewer pairs costs by itself.

    Over-fitting to one part lowers accuracy on all others without any conflict, so this, and not 0, is what ADC is compared with.
    """
    order = permutation(len(dimension_P), 0, "conflict", "shuffled")
    return interference(difference_PD, [dimension_P[i] for i in order], seeds=seeds)


def next_rates(rates: Sequence[float] | Floats, accuracies: Sequence[float], eta: float) -> Floats:
    """lambda_i exp(eta (mean - mu_i)), on the simplex: what lags behind is drawn more."""
    mu = np.asarray(accuracies, dtype=np.float64)
    raised = np.asarray(rates, dtype=np.float64) * np.exp(eta * (mu.mean() - mu))
    return raised / raised.sum()


def hybrid_rates(difference_PD: Any, dimension_P: Sequence[str], *, rounds: int = 10, eta: float = 1.0, seed: int = 0) -> tuple[list[str], Floats, Floats]:  # fmt: skip
    """(names, rates [rounds + 1, K], accuracies [rounds + 1, K]): from uniform, one update a round on held-out accuracy.

    The rates go round the balance of dimensions that compete; their mean over rounds is what was drawn, and what settles.
    """
    rows = _by_dimension(dimension_P)
    names = list(rows)
    train, test = _split(rows, seed)
    rates = np.full(len(names), 1 / len(names))
    w = np.zeros(difference_PD.shape[1])
    all_rates, all_accuracies = [rates], []
    for step in range(rounds + 1):
        w = descend(difference_PD, _weights(len(dimension_P), train, rates), w, STEPS // 4)
        found = [accuracy(difference_PD[test[i]], w) for i in names]
        all_accuracies.append(found)
        if step < rounds:
            rates = next_rates(rates, found, eta)
            all_rates.append(rates)
    return names, np.array(all_rates), np.array(all_accuracies)


def word_differences(texts: Sequence[tuple[str, str]]) -> Any:
    """phi(better) - phi(worse) [pairs, 2^16], sparse: hashed words and word pairs, each text of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=1 << 16, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    return hashing.transform([a for a, _ in texts]) - hashing.transform([b for _, b in texts])


def _by_dimension(dimension_P: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    names = sorted(set(dimension_P))
    labels = np.array(dimension_P, dtype=object)
    rows = {name: np.flatnonzero(labels == name) for name in names}
    small = {name: len(r) for name, r in rows.items() if len(r) < LEAST_PAIRS}
    if len(names) < 2 or small:
        told = ", ".join(f"'{n}' has {c}" for n, c in small.items()) or f"only '{names[0]}' is there"
        raise TruelineError(f"Conflict needs two dimensions or more, each with {LEAST_PAIRS} pairs; {told}.")
    return rows


def _split(rows: dict[str, NDArray[np.int64]], seed: int) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:  # fmt: skip
    train, test = {}, {}
    for name, members in rows.items():
        shuffled = members[permutation(len(members), seed, "conflict", name)]
        half = len(members) // 2
        train[name], test[name] = np.sort(shuffled[:half]), np.sort(shuffled[half:])
    return train, test


def _weights(n: int, train: dict[str, NDArray[np.int64]], rates: Sequence[float] | Floats | None) -> Floats:
    weight = np.zeros(n)
    shares = np.full(len(train), 1 / len(train)) if rates is None else np.asarray(rates, dtype=np.float64)
    for share, rows in zip(shares, train.values(), strict=True):
        weight[rows] = share / len(rows)
    return weight
