"""Near-duplicates among vectors, and nearest neighbours: exact, in blocks. On unit vectors d^2 = 2 - 2 cos."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Floats

BLOCK = 512


def normalised(vectors_ND: Any) -> Any:
    """Rows of length 1; rows of zeros stay."""
    from sklearn.preprocessing import normalize

    return normalize(vectors_ND)


def first_of_each(vectors_ND: Any, similarity: float) -> NDArray[np.int64]:
    """For every row the first row of its connected component, where cosines above `similarity` connect."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    unit = normalised(vectors_ND)
    n = unit.shape[0]
    a: list[NDArray[np.int64]] = []
    b: list[NDArray[np.int64]] = []
    for start in range(0, n, BLOCK):
        left, right = np.nonzero(_dense(unit[start : start + BLOCK] @ unit.T) > similarity)
        a.append(left + start)
        b.append(right)
    rows, others = np.concatenate(a), np.concatenate(b)
    graph = coo_matrix((np.ones(len(rows)), (rows, others)), shape=(n, n))
    _, label_N = connected_components(graph, directed=False)
    _, first = np.unique(label_N, return_index=True)
    return first[label_N].astype(np.int64)


def nearest(queries_QD: Any, pool_ND: Any, k: int, *, not_itself: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], Floats]:  # fmt: skip
    """(rows [Q, k], cosines [Q, k]), most alike first; ties go to the earlier row. not_itself: a row each query may not find."""
    cosine = _dense(normalised(queries_QD) @ normalised(pool_ND).T)
    if not_itself is not None:
        cosine[np.arange(len(cosine)), not_itself] = -np.inf
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosine, order, axis=1)


def most_alike(queries_QD: Any, pool_ND: Any) -> Floats:
    """The largest cosine of each query to any row; 0 for an empty pool."""
    if not pool_ND.shape[0]:
        return np.zeros(queries_QD.shape[0])
    return nearest(queries_QD, pool_ND, 1)[1][:, 0]


def _dense(values: Any) -> Floats:
    return np.asarray(values.todense() if hasattr(values, "todense") else values, dtype=np.float64)
