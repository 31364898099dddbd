"""Rows that may be alike, by bands of their MinHash signatures, and the groups that alike rows form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trueline.curating.text import bands, mixed

CROWD = 200  # rows in one bucket that are compared with each other; the others of a crowd with its first ones only


def candidates(signature_NP: NDArray[np.uint32], similarity: float) -> NDArray[np.int64]:
    """[pairs, 2], the earlier row first: rows that share a band of their signatures. Empty rows are like nothing."""
    n, permutations = signature_NP.shape
    count, rows = bands(permutations, similarity)
    filled_N = np.flatnonzero((signature_NP != np.iinfo(np.uint32).max).any(axis=1))
    found: list[NDArray[np.int64]] = []
    for band in range(count):
        key = np.zeros(len(filled_N), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for column in range(band * rows, (band + 1) * rows):
                key = mixed(key * np.uint64(3) + signature_NP[filled_N, column].astype(np.uint64))
        order = np.argsort(key, kind="stable")
        edges = np.flatnonzero(np.diff(key[order])) + 1
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            found.append(_within(filled_N[order[start:end]]))
    if not found:
        return np.zeros((0, 2), dtype=np.int64)
    pairs = np.concatenate(found)
    coded = np.unique(pairs[:, 0] * n + pairs[:, 1])
    return np.stack([coded // n, coded % n], axis=1)


def _within(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of one bucket, earlier row first; in a crowd only those with one of its first rows, and with the neighbour."""
    if len(members) <= CROWD:
        a, b = np.triu_indices(len(members), 1)
        return np.stack([members[a], members[b]], axis=1)
    heads = np.arange(8)
    a, b = np.repeat(heads, len(members)), np.tile(np.arange(len(members)), len(heads))
    a, b = np.concatenate([a, np.arange(len(members) - 1)]), np.concatenate([b, np.arange(1, len(members))])
    return np.stack([members[a[a < b]], members[b[a < b]]], axis=1)


def components(n: int, pairs_PT: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The smallest row of each row's connected component, and how many rows that has."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs_PT)), (pairs_PT[:, 0], pairs_PT[:, 1])), shape=(n, n))
    _, label_N = connected_components(graph, directed=False)
    _, first, size = np.unique(label_N, return_index=True, return_counts=True)
    return first[label_N].astype(np.int64), size[label_N].astype(np.int64)
