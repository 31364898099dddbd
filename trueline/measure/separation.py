"""Separation of labelled texts inside a model: AQI, Bhattacharyya distance and cluster indices of its activations.

    aqi                   gamma * CH / (CH + N) + (1 - gamma) / (1 + XB), between 0 and 1: how apart the labels lie
    aqi_db_dunn           gamma / (1 + DB) + (1 - gamma) * DI / (1 + DI), the bounded form with indices that carry more
    calinski_harabasz (CH), xie_beni (XB), davies_bouldin (DB), dunn (DI), silhouette
    bhattacharyya         distance of normal laws fitted to the two labels in the plane of the first two principal
                          components of all points (arXiv 2502.00657), with its coefficient exp(-distance) and the
                          silhouette in that plane

AQI is arXiv 2506.13901's; there are several forms in circulation. Min-max scaling over a set of models makes a
model's score depend on who else is in the table, so neither reading here does that. For two labels CH * XB = n_0 n_1
(N - 2) / N^2: at fixed sizes they are one piece of evidence, and `aqi` is a monotone function of either.
Davies-Bouldin, Dunn, silhouette and Bhattacharyya are what adds to it. Everything is computed in the space of the
activations themselves, never in a t-SNE picture, and is unchanged by rotation, shift and scale. CH grows with N;
`aqi` divides that out, and random labels give an `aqi` near 0.

From a model, each text's activation is that of its last token (as the answer is about to start; the chat template's
last token where there is one), and under the suffix `_mean` the mean over its tokens, padding left out. Layers count
from 1 (the output of the first block); the last is after the final norm, as in transformers' hidden states. `layer`
picks the one whose numbers are the readings, negative from the end; every layer is a row of the items. `pool` takes
the mean over layers instead: with `uniform` equally, with `learned` by weights alpha = sparsemax(u) that pull equal
labels together and push others apart (u is fitted on one half of the rows and the readings are of the other half).
Dunn and silhouette compare pairs of a drawn sample of `sample` points. Intervals leave out each of 20 folds in turn
(jackknife, on the log or logit scale); they allow for other texts, and Bhattacharyya's holds the plane fixed. With
few texts and labels that hardly differ the distance of two centroids is mostly noise and `aqi` a little too high:
compare at equal N. `groups` (an axiom or topic a row, column `group`) adds a row of items for each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.measure import _geometry as geometry
from trueline.measure._layers import layer_weights
from trueline.measure.contract import Reading, measure


@measure(takes="activations", arxiv="2506.13901", paper="Alignment Quality Index (AQI): Beyond Refusals")
def separation(
    activation_NLD: Sequence[Sequence[Sequence[float]]],
    label_N: Sequence[Hashable],
    group_N: Sequence[Hashable] | None = None,
    *,
    layer: int = -1,
    pool: Literal["one", "uniform", "learned"] = "one",
    gamma: float = 0.5,
    sample: int = 2000,
    ridge: float = 0.0,
) -> list[Reading]:
    """activation_NLD: a vector of D numbers a layer, for each text; an array may lie on disk. label_N: its set.

    gamma: weight of the first term of both AQI forms. ridge: added to both covariances of the Bhattacharyya distance, in
    units of their mean variance; above 0 the distance is no longer invariant under affine maps.
    """
    points = activation_NLD if isinstance(activation_NLD, np.ndarray) else np.asarray(activation_NLD, dtype=np.float64)
    if points.ndim != 3 or not points.size:
        raise TruelineError(f"Activations have shape {points.shape}; expected texts by layers by features.")
    if len(label_N) != len(points) or (group_N is not None and len(group_N) != len(points)):
        raise TruelineError(
            f"{len(points)} activations, {len(label_N)} labels: every text needs its label (and group)."
        )
    if not 0 <= gamma <= 1 or sample < 4 or ridge < 0:
        raise TruelineError(
            f"gamma {gamma}, sample {sample}, ridge {ridge}: expected 0 <= gamma <= 1, a sample of 4 points or more and a "
            "ridge of 0 or more."
        )
    layers = points.shape[1]
    number = layer + layers if layer < 0 else layer - 1
    if not 0 <= number < layers or layer == 0:
        raise TruelineError(f"layer is {layer}; this model gives layers 1 to {layers} (or -{layers} to -1).")
    settings = Settings(gamma, sample, ridge)
    geometry.coded(label_N, least=3 if pool != "learned" else 6)
    if pool == "one":
        of_layer = [described(points[:, i], label_N, settings, needed=i == number) for i in range(layers)]
        items: list[dict[str, Any]] = [{"layer": i + 1, **d.row} for i, d in enumerate(of_layer)]
        chosen, rows, column = of_layer[number], np.arange(len(points)), Combined(points, np.eye(layers)[number])
    elif pool in ("uniform", "learned"):
        code_N = geometry.coded(label_N)[0]
        rows, weight_L = np.arange(len(points)), np.full(layers, 1 / layers)
        if pool == "learned":
            fitted, rows = halves(code_N)
            weight_L = layer_weights(points, code_N, fitted)
        column = Combined(points, weight_L, rows)
        chosen = described(column, [label_N[int(i)] for i in rows], settings, needed=True)
        items = [{"layer": i + 1, "weight": float(w)} for i, w in enumerate(weight_L)]
    else:
        raise TruelineError(f"pool is '{pool}'; expected one, uniform or learned.")
    items += _of_groups(column, label_N, group_N, rows, settings)
    readings = chosen.readings()
    return [replace(readings[0], items=tuple(items)), *readings[1:]]


@dataclass(frozen=True)
class Settings:
    gamma: float
    sample: int
    ridge: float


class Combined:
    """A weighted sum over layers, made a few rows at a time: only what an array needs to be read in chunks."""

    def __init__(self, points_NLD: Any, weight_L: NDArray, rows: NDArray | None = None):
        self.points, self.weight = points_NLD, weight_L
        self.rows = np.arange(len(points_NLD)) if rows is None else rows
        self.used = np.flatnonzero(weight_L)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> NDArray[np.float64]:
        rows = self.rows[which]
        total = np.zeros((len(rows), self.points.shape[2]))
        for i in self.used:
            total += self.weight[i] * np.asarray(self.points[rows, i], dtype=np.float64)
        return total


@dataclass
class Described:
    """Every index of one set of points, by name, with its interval where it has one."""

    row: dict[str, float]
    interval: dict[str, tuple[float, float] | None]
    n: int

    def readings(self) -> list[Reading]:
        units = {"bhattacharyya": "nats"}
        found = []
        for name, value in self.row.items():
            low, high = self.interval.get(name) or (None, None)
            found.append(Reading(name, value, low, high, self.n, units.get(name, "index"), "texts"))
        return found


def described(points_ND: Any, labels: Sequence[Hashable], settings: Settings, *, needed: bool) -> Described:
    """All indices. Where a Bhattacharyya distance does not exist it is left out, or an error if it was `needed`."""
    code_N, _ = geometry.coded(labels)
    fold_N = geometry.folds(code_N)
    n = len(code_N)

    def chunks() -> Iterator[NDArray[np.float64]]:
        for at in range(0, n, geometry.ROWS):
            yield np.asarray(points_ND[at : at + geometry.ROWS], dtype=np.float64)

    held, offset_D = geometry.moments(chunks, code_N, fold_N)
    count_K, centroid_KD, within_K = held.without(None)
    left_out = [held.without(f) for f in range(held.count_KF.shape[1])]
    if within_K.sum() <= 0:
        raise TruelineError("Within every label all activations are the same, so no index is defined. Vary the texts.")
    ch, xb = (
        geometry.calinski_harabasz(count_K, centroid_KD, within_K),
        geometry.xie_beni(count_K, centroid_KD, within_K),
    )
    db = geometry.davies_bouldin(centroid_KD, geometry.spreads(chunks, code_N, centroid_KD + offset_D))
    picked = geometry.drawn(code_N, settings.sample)
    sample_ND = np.asarray(points_ND[picked], dtype=np.float64) - offset_D  # distances keep their digits
    di = geometry.dunn(sample_ND, code_N[picked])
    row = {
        "aqi": aqi(ch, xb, n, settings.gamma),
        "aqi_db_dunn": settings.gamma / (1 + db) + (1 - settings.gamma) * (di / (1 + di) if math.isfinite(di) else 1.0),
        "calinski_harabasz": ch,
        "xie_beni": xb,
        "davies_bouldin": db,
        "dunn": di,
        "silhouette": _silhouette(sample_ND, code_N[picked]),
    }
    others = [(geometry.calinski_harabasz(*m), geometry.xie_beni(*m), float(m[0].sum())) for m in left_out]
    interval: dict[str, tuple[float, float] | None] = {
        "aqi": geometry.jackknife(row["aqi"], [aqi(c, x, m, settings.gamma) for c, x, m in others], _logit, _expit),
        "calinski_harabasz": geometry.jackknife(ch, [c for c, _, _ in others], _log, math.exp),
        "xie_beni": geometry.jackknife(xb, [x for _, x, _ in others], _log, math.exp),
    }
    if len(count_K) == 2:
        try:
            _in_the_plane(row, interval, chunks, offset_D, code_N, fold_N, picked, sample_ND, settings)
        except TruelineError:
            if needed:
                raise
    return Described(row, interval, n)


def aqi(ch: float, xb: float, n: float, gamma: float) -> float:
    return gamma * ch / (ch + n) + (1 - gamma) / (1 + xb)


def _in_the_plane(
    row: dict[str, float],
    interval: dict[str, tuple[float, float] | None],
    chunks: geometry.Chunks,
    offset_D: NDArray,
    code_N: NDArray,
    fold_N: NDArray,
    picked: NDArray,
    sample_ND: NDArray,
    settings: Settings,
) -> None:
    """Bhattacharyya distance and silhouette after PCA(2) on the union of both labels."""
    mean_D, axes_DP = geometry.principal_plane(chunks, offset_D)
    flat_NP = np.concatenate([(c - mean_D) @ axes_DP for c in chunks()])

    def distance(keep_N: NDArray) -> float:
        sides = [flat_NP[keep_N & (code_N == k)] for k in (0, 1)]
        covariance = np.stack([np.atleast_2d(np.cov(side.T)) for side in sides])
        size = covariance.shape[-1]
        covariance = covariance + settings.ridge * np.trace(covariance.mean(0)) / size * np.eye(size)
        return geometry.bhattacharyya(np.stack([side.mean(0) for side in sides]), covariance)

    value = distance(np.ones(len(code_N), dtype=bool))
    row["bhattacharyya"] = value
    row["bhattacharyya_coefficient"] = math.exp(-value)
    row["silhouette_plane"] = _silhouette((sample_ND + (offset_D - mean_D)) @ axes_DP, code_N[picked])
    try:
        found = geometry.jackknife(value, [distance(fold_N != f) for f in range(int(fold_N.max()) + 1)], _log, math.exp)
    except TruelineError:  # a fold left out leaves too few points: there is a value and no interval
        found = None
    interval["bhattacharyya"] = found
    interval["bhattacharyya_coefficient"] = None if found is None else (math.exp(-found[1]), math.exp(-found[0]))


def _silhouette(points_ND: NDArray, code_N: NDArray) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points_ND, code_N))


def _of_groups(
    column: Combined,
    labels: Sequence[Hashable],
    groups: Sequence[Hashable] | None,
    rows: NDArray,
    settings: Settings,
) -> list[dict[str, Any]]:
    """The indices within each group that has three rows of two labels at least; others are named with their counts."""
    found: list[dict[str, Any]] = []
    for group in dict.fromkeys(groups or ()):
        assert groups is not None
        inside = np.array([i for i, r in enumerate(rows) if groups[r] == group], dtype=np.int64)
        own = [labels[rows[i]] for i in inside]
        counts = [own.count(label) for label in dict.fromkeys(own)]
        if len(counts) < 2 or min(counts) < 3:
            found.append({"group": group, "rows": len(own), "note": "needs three rows of each of two labels"})
            continue
        part = Combined(column.points, column.weight, column.rows[inside])
        found.append({"group": group, "rows": len(own), **described(part, own, settings, needed=False).row})
    return found


def halves(code_N: NDArray) -> tuple[NDArray, NDArray]:
    """Two halves of the rows with equal shares of every label: to fit on, and to measure on."""
    rng = np.random.default_rng(0)
    fitted = [rng.permutation(np.flatnonzero(code_N == k)) for k in range(int(code_N.max()) + 1)]
    first = np.sort(np.concatenate([f[: len(f) // 2] for f in fitted]))
    return first, np.setdiff1d(np.arange(len(code_N)), first)


def _log(x: float) -> float:
    return float(np.log(x))


def _logit(x: float) -> float:
    return float(np.log(x) - np.log1p(-x))


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))
