"""Weights over layers that show a labelling best: sparsemax(u), with u fitted on frozen activations (AQI's pooling).

    loss = mean over equal pairs |z_i - z_j|^2 + mean over other pairs max(0, M - |z_i - z_j|)^2,
    z_i = sum_l alpha_l h_i^l,   alpha = sparsemax(u)

Each layer is first divided by its root mean square distance to its own mean, so that no layer wins by its size. The
margin form is the usual contrastive one (Hadsell et al. 2006), M = 2: our reading, as the paper's text names the loss
and no public code fits it.

Shape suffixes: _N points, _L layers, _D features, _P pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MARGIN = 2.0
ROWS, NUMBERS, PAIRS = 256, 2**25, 2000  # at most so many rows, numbers in memory and pairs are fitted on
STEPS = 300


def sparsemax(u_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """The point of the simplex nearest to u (Martins & Astudillo 2016)."""
    return np.maximum(u_L - _threshold(u_L), 0.0)


def _threshold(u_L: NDArray[np.float64]) -> float:
    ordered = np.sort(u_L)[::-1]
    sums = np.cumsum(ordered)
    support = int(np.flatnonzero(1 + np.arange(1, len(ordered) + 1) * ordered > sums)[-1]) + 1
    return float((sums[support - 1] - 1) / support)


def layer_weights(points_NLD: Any, code_N: NDArray, rows: NDArray) -> NDArray[np.float64]:
    """alpha [L], fitted on these rows by projected gradient descent on u. Starts from equal weights."""
    rng = np.random.default_rng(0)
    _, layers, width = points_NLD.shape
    most = min(ROWS, max(8, NUMBERS // (layers * width)), len(rows))
    rows = np.sort(np.concatenate([_some(rng, rows[code_N[rows] == k], most, len(rows)) for k in np.unique(code_N)]))
    h_NLD = np.asarray(points_NLD[rows], dtype=np.float64)
    h_NLD -= h_NLD.mean(0)
    scale_L = np.sqrt((h_NLD**2).sum(-1).mean(0))
    h_NLD /= np.where(scale_L > 0, scale_L, 1.0)[None, :, None]
    first, second = np.triu_indices(len(rows), 1)
    if len(first) > PAIRS:
        picked = rng.choice(len(first), size=PAIRS, replace=False)
        first, second = first[picked], second[picked]
    # |sum_l alpha_l d_l|^2 = alpha' G alpha with G_lm = <d_l, d_m>: a pair needs L x L numbers, not L x D
    gram_PLL = np.empty((len(first), layers, layers))
    for p, (i, j) in enumerate(zip(first, second, strict=True)):
        difference_LD = h_NLD[i] - h_NLD[j]
        gram_PLL[p] = difference_LD @ difference_LD.T
    same_P = code_N[rows][first] == code_N[rows][second]
    u_L = np.full(h_NLD.shape[1], 1 / h_NLD.shape[1])
    for _ in range(STEPS):
        u_L = u_L - 0.05 * _slope(u_L, gram_PLL, same_P)
    return sparsemax(u_L)


def _some(rng: np.random.Generator, mine: NDArray, most: int, of: int) -> NDArray:
    """A label's share of `most` rows, two at least."""
    return rng.choice(mine, size=min(len(mine), max(2, round(most * len(mine) / of))), replace=False)


def loss(alpha_L: NDArray, gram_PLL: NDArray, same_P: NDArray) -> float:
    square_P = np.maximum(np.einsum("l,plm,m->p", alpha_L, gram_PLL, alpha_L), 0.0)
    return float(square_P[same_P].mean() + (np.maximum(0.0, MARGIN - np.sqrt(square_P[~same_P])) ** 2).mean())


def _slope(u_L: NDArray, gram_PLL: NDArray, same_P: NDArray) -> NDArray:
    """d loss / d u through sparsemax: its Jacobian is the projection that keeps the sum over the support."""
    alpha_L = sparsemax(u_L)
    half_PL = gram_PLL @ alpha_L
    distance_P = np.sqrt(np.maximum(half_PL @ alpha_L, 1e-12))
    weight_P = np.where(same_P, 2.0 / same_P.sum(), 0.0)
    short_P = np.maximum(0.0, MARGIN - distance_P)
    weight_P = weight_P - np.where(same_P, 0.0, 2.0 * short_P / distance_P / (~same_P).sum())
    slope_L = weight_P @ half_PL
    support_L = alpha_L > 0
    return np.where(support_L, slope_L - slope_L[support_L].mean(), 0.0)
