"""Geometry of labelled points: how far apart the classes lie, from sums that are gathered a chunk at a time.

    W  sum of squared distances to the own centroid     B  sum of n_k * squared distance of centroid k to the mean
    Calinski-Harabasz  (B / (K - 1)) / (W / (N - K))    higher is more separate; about 1 for random labels
    Xie-Beni           W / (N * D^2)                    D: smallest distance of two centroids; lower is more separate
    Davies-Bouldin     mean_k max_j (S_k + S_j) / |mu_k - mu_j|,  S_k = mean distance to centroid k; lower is better
    Dunn               smallest distance between classes / largest distance within one; higher is better
    silhouette         mean of (b - a) / max(a, b): a to the own class, b to the nearest other
    Bhattacharyya      1/8 d' S^-1 d + 1/2 ln(det S / sqrt(det S_0 det S_1)),  S = (S_0 + S_1) / 2

For two classes CH * XB = n_0 n_1 (N - 2) / N^2: at fixed class sizes the first two are one number. Points are read
twice and never held together; only Dunn and the silhouette, which need pairs, work on a drawn sample. Sums are of
points minus the first chunk's mean, in float64, so that a large common offset costs no digits.

Shape suffixes: _N points, _D features, _K classes, _F folds of the jackknife, _C the rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, stats

from trueline.errors import TruelineError

Array = NDArray[np.float64]
Chunks = Callable[[], Iterator[Array]]  # the same points from the start at every call

FOLDS = 20
ROWS = 512  # of a chunk


def chunks_of(points_ND: ArrayLike, rows: int = ROWS) -> Chunks:
    """Row blocks of an array (in memory or mapped from disk) as float64."""
    points = points_ND if isinstance(points_ND, np.ndarray) else np.asarray(points_ND)

    def read() -> Iterator[Array]:
        for at in range(0, len(points), rows):
            yield np.asarray(points[at : at + rows], dtype=np.float64)

    return read


def coded(labels: Sequence[Hashable], *, least: int = 2) -> tuple[NDArray[np.int64], list[Hashable]]:
    """Labels as numbers from 0 in the order of their text, and their names. Two classes of `least` members, or an error."""
    names = sorted(dict.fromkeys(labels), key=str)
    place = {name: i for i, name in enumerate(names)}
    code_N = np.array([place[label] for label in labels], dtype=np.int64)
    if len(names) < 2:
        raise TruelineError(
            f"Separation needs two labels at least; found {', '.join(map(str, names)) or 'no row'}. "
            "Give rows of both kinds, each with its 'label'."
        )
    count_K = np.bincount(code_N)
    if count_K.min() < least:
        raise TruelineError(
            f"The label '{names[int(count_K.argmin())]}' has {count_K.min()} rows; expected {least} at least."
        )
    return code_N, names


@dataclass
class Moments:
    """Counts, sums and summed squares of points, by class and fold of the jackknife: all that XB and CH need."""

    count_KF: Array
    sum_KFD: Array
    square_KF: Array

    def without(self, fold: int | None) -> tuple[Array, Array, Array]:
        """Count [K], centroid [K, D] and within sum of squares [K], with one fold left out."""
        keep = np.arange(self.count_KF.shape[1]) != (-1 if fold is None else fold)
        count_K = self.count_KF[:, keep].sum(1)
        sum_KD = self.sum_KFD[:, keep].sum(1)
        centroid_KD = sum_KD / count_K[:, None]
        within_K = self.square_KF[:, keep].sum(1) - (sum_KD * centroid_KD).sum(1)
        return count_K, centroid_KD, np.maximum(within_K, 0.0)


def moments(chunks: Chunks, code_N: NDArray[np.int64], fold_N: NDArray[np.int64]) -> tuple[Moments, Array]:
    """One pass over the points. Also returns the offset [D] that was taken off every point."""
    classes, folds = int(code_N.max()) + 1, int(fold_N.max()) + 1
    found: Moments | None = None
    offset_D = np.zeros(0)
    at = 0
    for points_CD in chunks():
        if found is None:
            offset_D = points_CD.mean(0)
            zeros = np.zeros((classes, folds, points_CD.shape[1]))
            found = Moments(np.zeros((classes, folds)), zeros, np.zeros((classes, folds)))
        bad = np.flatnonzero(~np.isfinite(points_CD).all(1))
        if bad.size:
            raise TruelineError(
                f"The activation of row {at + int(bad[0])} is not finite. Leave the row out, or load the model in float32."
            )
        centred_CD = points_CD - offset_D
        cell = (code_N[at : at + len(points_CD)], fold_N[at : at + len(points_CD)])
        np.add.at(found.count_KF, cell, 1.0)
        np.add.at(found.sum_KFD, cell, centred_CD)
        np.add.at(found.square_KF, cell, (centred_CD**2).sum(1))
        at += len(points_CD)
    if found is None or at != len(code_N):
        raise TruelineError(f"{len(code_N)} labels for {at} points. Every point needs one label.")
    return found, offset_D


def folds(code_N: NDArray[np.int64], wanted: int = FOLDS) -> NDArray[np.int64]:
    """A fold for every point, each with its share of every class; at most as many as the smallest class has points."""
    count = min(wanted, int(np.bincount(code_N).min()))
    fold_N = np.empty_like(code_N)
    for k in range(int(code_N.max()) + 1):
        mine = np.flatnonzero(code_N == k)
        fold_N[mine] = np.arange(len(mine)) % count
    return fold_N


def calinski_harabasz(count_K: Array, centroid_KD: Array, within_K: Array) -> float:
    n, k = count_K.sum(), len(count_K)
    mean_D = (count_K[:, None] * centroid_KD).sum(0) / n
    between = float((count_K * ((centroid_KD - mean_D) ** 2).sum(1)).sum())
    return between / (k - 1) / (float(within_K.sum()) / (n - k))


def xie_beni(count_K: Array, centroid_KD: Array, within_K: Array) -> float:
    """Infinite where two centroids coincide."""
    nearest = _pairs(((centroid_KD[:, None] - centroid_KD[None]) ** 2).sum(-1)).min()
    return float(within_K.sum() / (count_K.sum() * nearest)) if nearest > 0 else np.inf


def davies_bouldin(centroid_KD: Array, spread_K: Array) -> float:
    """spread_K: mean distance of a class's points to its centroid. Infinite where two centroids coincide."""
    distance_KK = np.sqrt(((centroid_KD[:, None] - centroid_KD[None]) ** 2).sum(-1))
    with np.errstate(divide="ignore"):
        ratio_KK = (spread_K[:, None] + spread_K[None]) / distance_KK
    np.fill_diagonal(ratio_KK, -np.inf)
    return float(ratio_KK.max(1).mean())


def spreads(chunks: Chunks, code_N: NDArray[np.int64], centroid_KD: Array) -> Array:
    """Mean distance to the own centroid by class: a second pass. centroid_KD is where the points are, offset included."""
    total_K = np.zeros(len(centroid_KD))
    at = 0
    for points_CD in chunks():
        own = code_N[at : at + len(points_CD)]
        np.add.at(total_K, own, np.sqrt(((points_CD - centroid_KD[own]) ** 2).sum(1)))
        at += len(points_CD)
    return total_K / np.bincount(code_N)


def dunn(points_ND: Array, code_N: NDArray[np.int64]) -> float:
    """Of points in memory, a block of distances at a time. Infinite where every class is one point."""
    between, within = np.inf, 0.0
    for at in range(0, len(points_ND), ROWS):
        block_CN = _distances(points_ND[at : at + ROWS], points_ND)
        same_CN = code_N[at : at + ROWS, None] == code_N[None]
        within = max(within, float(block_CN[same_CN].max()))
        between = min(between, float(block_CN[~same_CN].min()))
    return between / within if within > 0 else np.inf


def _distances(a_ND: Array, b_MD: Array) -> Array:
    from scipy.spatial.distance import cdist

    return cdist(a_ND, b_MD)


def drawn(code_N: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """At most `size` row numbers, in order, each class with its share and two at least."""
    if len(code_N) <= size:
        return np.arange(len(code_N))
    rng = np.random.default_rng(0)
    picked = []
    for k in range(int(code_N.max()) + 1):
        mine = np.flatnonzero(code_N == k)
        picked.append(
            rng.choice(mine, size=min(len(mine), max(2, round(size * len(mine) / len(code_N)))), replace=False)
        )
    return np.sort(np.concatenate(picked))


def principal_plane(chunks: Chunks, offset_D: Array, dimensions: int = 2) -> tuple[Array, Array]:
    """Mean [D] and the leading principal axes [D, 2] of all points, from their covariance (PCA on the union)."""
    total_D, product_DD, n = np.zeros_like(offset_D), np.zeros((len(offset_D),) * 2), 0
    for points_CD in chunks():
        centred_CD = points_CD - offset_D
        total_D += centred_CD.sum(0)
        product_DD += centred_CD.T @ centred_CD
        n += len(points_CD)
    mean_D = total_D / n
    covariance_DD = product_DD / n - np.outer(mean_D, mean_D)
    size, kept = len(offset_D), min(dimensions, len(offset_D))
    axes_DP = linalg.eigh(covariance_DD, subset_by_index=(size - kept, size - 1))[1][:, ::-1]
    return mean_D + offset_D, axes_DP


def bhattacharyya(mean_KP: Array, covariance_KPP: Array) -> float:
    """Distance of two normal laws. Raises TruelineError where a covariance is singular."""
    middle_PP = covariance_KPP.mean(0)
    signs, logdets = np.linalg.slogdet(np.concatenate([covariance_KPP, middle_PP[None]]))
    scale = np.trace(middle_PP) / len(middle_PP)
    smallest = min(float(np.linalg.eigvalsh(c)[0]) for c in covariance_KPP)
    if (signs <= 0).any() or smallest <= 1e-12 * max(scale, np.finfo(float).tiny):
        raise TruelineError(
            "The points of one label lie on a line or a point of the principal plane, so no normal law fits them. Give "
            "more and more varied texts, another layer, or a small ridge (1e-6 of the mean variance)."
        )
    difference_P = mean_KP[1] - mean_KP[0]
    mahalanobis = float(difference_P @ np.linalg.solve(middle_PP, difference_P))
    return mahalanobis / 8 + 0.5 * float(logdets[2] - (logdets[0] + logdets[1]) / 2)


def jackknife(
    value: float, left_out_F: Sequence[float], scale: Callable[[float], float], back: Callable[[float], float]
) -> tuple[float, float] | None:
    """95 % interval by leaving each fold out, on a scale where the value is unbounded; None where it is at a bound."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        centre = scale(value)
        theta_F = np.array([scale(v) for v in left_out_F])
    if len(theta_F) < 2 or not (np.isfinite(theta_F).all() and np.isfinite(centre)):
        return None
    g = len(theta_F)
    error = float(np.sqrt((g - 1) / g * ((theta_F - theta_F.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, g - 1)) * error
    return back(centre - half), back(centre + half)


def _pairs(table_KK: Array) -> Array:
    return table_KK[np.triu_indices(len(table_KK), 1)]
