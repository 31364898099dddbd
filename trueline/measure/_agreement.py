"""Agreement beyond chance: Cohen's kappa of two raters, Krippendorff's alpha of any number."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(table_VV: Array) -> float:
    """1 - (1 - p_o) / (1 - p_e) of a table of counts, one rater's labels by the other's; NaN where both say one thing."""
    p = table_VV / table_VV.sum()
    observed, expected = float(np.trace(p)), float(p.sum(axis=0) @ p.sum(axis=1))
    return float("nan") if expected > 1 - 1e-12 else 1 - (1 - observed) / (1 - expected)


def coincidences(values_R: Array, unit_R: Sequence[Hashable]) -> tuple[Array, Array]:
    """Values [V], and how often each two of them are given to one unit [V, V] (every pair of a unit of m weighs 1/(m-1))."""
    labels, code_R = np.unique(values_R, return_inverse=True)
    place: dict[Hashable, int] = {}
    unit = np.array([place.setdefault(u, len(place)) for u in unit_R])
    count_UV = np.zeros((len(place), len(labels)))
    np.add.at(count_UV, (unit, code_R), 1.0)
    size_U = count_UV.sum(axis=1)
    kept = count_UV[size_U > 1]
    weighted = kept / (size_U[size_U > 1] - 1)[:, None]
    return labels, weighted.T @ kept - np.diag(weighted.sum(axis=0))


def krippendorff(labels_V: Array, table_VV: Array, level: Level) -> float:
    """alpha = 1 - observed / expected disagreement of a table of coincidences; NaN where all values are one.

    Distances: nominal 1[c != k]; interval (c - k)^2; ordinal (n_c/2 + n between + n_k/2)^2.
    """
    n_V = table_VV.sum(axis=0)
    total = n_V.sum()
    if level == "nominal":
        distance = 1.0 - np.eye(len(labels_V))
    elif level == "interval":
        distance = (labels_V[:, None] - labels_V[None, :]) ** 2
    else:
        middle = np.cumsum(n_V) - n_V / 2
        distance = (middle[:, None] - middle[None, :]) ** 2
    observed = (table_VV * distance).sum()
    expected = (np.outer(n_V, n_V) * distance).sum() / (total - 1) if total > 1 else 0.0
    return float("nan") if expected == 0 else float(1 - observed / expected)
