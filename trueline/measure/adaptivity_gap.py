"""Adaptivity gap: what is lost in a target domain by not using the best of several source-domain heads.

    AG(h) = error_T(h) - min_k error_T(f_k)

for heads f_1 ... f_K (domain-specific adapters, reward heads, source policies) on labelled rows of the target. AG of
each head is 0 or more. Three ways to combine the heads stand beside them: `uniform`, the mean of their probabilities;
`entropy`, with weights w_k(x) proportional to H_k(x)^-gamma, H the entropy of the head's prediction in nats plus
1e-6; and `domain`, with given weights w_k(x) (a classifier of domains, column `domain_weight`). A weighted prediction
is neither a head nor a constant mixture of them, so its gap may be negative, and is not clipped. `gamma` 0 is
`uniform`, a large one picks the surest head. Entropies compare heads fairly only if those are calibrated alike.
`source_error`, where rows name their `domain`, is every combination's error on the rows that are not `target`. arXiv
2208.08661 weighs its heads by entropy at test time; that the power is -gamma and the epsilon are ours, as is the
reading of the bound's adaptivity term with the heads as comparison set.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, measure

Array = NDArray[np.float64]
EPSILON = 1e-6


@measure(
    takes="table", arxiv="2208.08661", paper="Domain-Specific Risk Minimization for Out-of-Distribution Generalization"
)
def adaptivity_gap(
    probability_NKC: Sequence[Sequence[Sequence[float]]],
    answer_N: Sequence[int],
    domain_N: Sequence[Hashable] | None = None,
    domain_weight_NK: Sequence[Sequence[float]] | None = None,
    *,
    gamma: float = 1.0,
    target: str = "target",
) -> list[Reading]:
    """probability_NKC: class probabilities of every head on every row. answer_N: the right class, from 0.

    domain_N: where a row is from; rows of `target` are the target's, all are where there is no such column.
    """
    p = np.asarray(probability_NKC, dtype=float)
    answer = np.asarray(answer_N)
    _check(p, answer, gamma)
    inside = np.ones(len(p), dtype=bool) if domain_N is None else np.array([str(d) == target for d in domain_N])
    if len(inside) != len(p) or not inside.any():
        raise TruelineError(
            f"{int(inside.sum())} of {len(inside)} rows are of the domain '{target}', for {len(p)} predictions. Name it by target."
        )
    weights = {f"head_{k}": np.eye(p.shape[1])[np.full(len(p), k)] for k in range(p.shape[1])}
    weights["uniform"] = np.full(p.shape[:2], 1 / p.shape[1])
    weights["entropy"] = entropy_weights(p, gamma)
    if domain_weight_NK is not None:
        given = np.asarray(domain_weight_NK, dtype=float)
        if given.shape != p.shape[:2] or (given < 0).any() or not np.allclose(given.sum(1), 1, atol=1e-3):
            raise TruelineError(
                f"domain_weight has shape {given.shape}; expected {p.shape[:2]}, rows that add up to 1."
            )
        weights["domain"] = given
    wrong = {name: (predicted(p, w) != answer).astype(float) for name, w in weights.items()}
    best = min((f"head_{k}" for k in range(p.shape[1])), key=lambda n: float(wrong[n][inside].mean()))
    found = []
    for name, errors in wrong.items():
        gap = Reading.of_mean(f"adaptivity_gap/{name}", (errors - wrong[best])[inside].tolist(), unit="share")
        found.append(replace(gap, scope="rows"))
        found.append(Reading.of_mean(f"target_error/{name}", errors[inside].tolist(), unit="share", bounds=(0.0, 1.0)))
        if not inside.all():
            found.append(
                Reading.of_mean(f"source_error/{name}", errors[~inside].tolist(), unit="share", bounds=(0.0, 1.0))
            )
    items = tuple({"head": k, "mean_weight": float(w)} for k, w in enumerate(weights["entropy"][inside].mean(0)))
    return [replace(found[0], items=items), *found[1:]]


def entropy_weights(p_NKC: Array, gamma: float) -> Array:
    """w [N, K], rows of sum 1: entropy to the power -gamma."""
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_NK = -np.where(p_NKC > 0, p_NKC * np.log(p_NKC), 0.0).sum(-1)
    score_NK = -gamma * np.log(entropy_NK + EPSILON)
    score_NK -= score_NK.max(1, keepdims=True)
    return np.exp(score_NK) / np.exp(score_NK).sum(1, keepdims=True)


def predicted(p_NKC: Array, weight_NK: Array) -> NDArray[np.int64]:
    """The class that the weighted heads make likeliest."""
    return np.einsum("nk,nkc->nc", weight_NK, p_NKC).argmax(1)


def _check(p: Array, answer: NDArray, gamma: float) -> None:
    if p.ndim != 3 or not p.size or len(answer) != len(p):
        raise TruelineError(
            f"Probabilities have shape {p.shape}, answers {answer.shape}; expected rows by heads by classes."
        )
    bad = np.flatnonzero(~(np.isfinite(p).all((1, 2)) & (p >= 0).all((1, 2)) & (abs(p.sum(-1) - 1) < 1e-3).all(1)))
    if bad.size:
        raise TruelineError(f"Row {bad[0]}: the probabilities of a head do not add up to 1, or one is below 0.")
    if answer.min() < 0 or answer.max() >= p.shape[2]:
        raise TruelineError(f"Answers are {answer.min()} to {answer.max()}; there are {p.shape[2]} classes, from 0.")
    if gamma < 0:
        raise TruelineError(f"gamma is {gamma:g}; below 0 it would trust the least sure head most. Take 0 or more.")
