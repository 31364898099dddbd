"""Centred kernel alignment: how alike two models represent the same texts, layer by layer.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = X X', L = Y Y' (linear kernels)

arXiv 1905.00414. 1 where the representations are equal up to rotation, shift and scale. Two readings: `cka`, with the
estimator of HSIC without bias (Song et al. 2012; arXiv 2010.15327), which is near 0 for unrelated representations and
may fall below, and `cka_biased`, the plain one, which tends to 1 for unrelated representations when there are fewer
texts than features, and is therefore not to be trusted there. `layer` picks the layer of the readings (from 1,
negative from the end); items hold every layer. Gram matrices are summed in blocks, so memory does not grow with texts
or features. No interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, measure

ROWS = 512


@measure(takes="paired_activations", arxiv="1905.00414", paper="Similarity of Neural Network Representations Revisited")
def cka(
    activation_NLD: Sequence[Sequence[Sequence[float]]],
    reference_activation_NLD: Sequence[Sequence[Sequence[float]]],
    *,
    layer: int = -1,
) -> list[Reading]:
    """Activations of both models for the same texts, in the same order. Features may differ in number, layers not."""
    own, other = (
        x if isinstance(x, np.ndarray) else np.asarray(x, dtype=np.float64)
        for x in (activation_NLD, reference_activation_NLD)
    )
    if own.ndim != 3 or other.ndim != 3 or own.shape[:2] != other.shape[:2] or len(own) < 4:
        raise TruelineError(
            f"Activations of shapes {own.shape} and {other.shape}; expected texts by layers by features, with the same "
            "texts (four at least) and as many layers in both."
        )
    layers = own.shape[1]
    number = layer + layers if layer < 0 else layer - 1
    if not 0 <= number < layers or layer == 0:
        raise TruelineError(f"layer is {layer}; these models give layers 1 to {layers} (or -{layers} to -1).")
    found = [alignment(own[:, i], other[:, i]) for i in range(layers)]
    items = tuple({"layer": i + 1, "cka": debiased, "cka_biased": plain} for i, (debiased, plain) in enumerate(found))
    debiased, plain = found[number]
    return [
        Reading("cka", debiased, None, None, len(own), "index", "texts", items=items),
        Reading("cka_biased", plain, None, None, len(own), "index", "texts"),
    ]


def alignment(x_ND: Any, y_NE: Any) -> tuple[float, float]:
    """(CKA without bias, plain CKA) of two tables of points."""
    n = len(x_ND)
    for table in (x_ND, y_NE):
        if not np.isfinite(table).all():
            raise TruelineError("An activation is not finite. Load the model in float32, or leave that text out.")
    mean_x, mean_y = np.mean(x_ND, axis=0, dtype=np.float64), np.mean(y_NE, axis=0, dtype=np.float64)
    product = np.zeros(3)  # sums of K o K, K o L, L o L
    diagonal = np.zeros(3)  # of their diagonals
    row_k, row_l, own_k, own_l = (np.zeros(n) for _ in range(4))
    for a in range(0, n, ROWS):
        xa, ya = np.asarray(x_ND[a : a + ROWS]) - mean_x, np.asarray(y_NE[a : a + ROWS]) - mean_y
        for b in range(0, n, ROWS):
            k = xa @ (np.asarray(x_ND[b : b + ROWS]) - mean_x).T
            l = ya @ (np.asarray(y_NE[b : b + ROWS]) - mean_y).T  # noqa: E741
            product += (k * k).sum(), (k * l).sum(), (l * l).sum()
            row_k[a : a + ROWS] += k.sum(1)
            row_l[a : a + ROWS] += l.sum(1)
            if a == b:
                own_k[a : a + ROWS], own_l[a : a + ROWS] = np.diag(k), np.diag(l)
                diagonal += (np.diag(k) ** 2).sum(), (np.diag(k) * np.diag(l)).sum(), (np.diag(l) ** 2).sum()
    sides = ((row_k, row_k), (row_k, row_l), (row_l, row_l))
    plain = [p - 2 / n * (r @ s) + r.sum() * s.sum() / n**2 for p, (r, s) in zip(product, sides, strict=True)]
    off_k, off_l = row_k - own_k, row_l - own_l
    sides = ((off_k, off_k), (off_k, off_l), (off_l, off_l))
    fair = [
        p - d + r.sum() * s.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (r @ s)
        for p, d, (r, s) in zip(product, diagonal, sides, strict=True)
    ]
    if plain[0] <= 1e-24 * product[0] + 1e-300 or plain[2] <= 1e-24 * product[2] + 1e-300:
        raise TruelineError(
            "All texts have the same activation at a layer, so CKA is not defined there. Vary the texts."
        )
    if fair[0] <= 0 or fair[2] <= 0:
        raise TruelineError(
            f"{n} texts are too few for CKA without bias: its variance terms are not positive. Give more."
        )
    return float(fair[1] / math.sqrt(fair[0] * fair[2])), float(plain[1] / math.sqrt(plain[0] * plain[2]))
