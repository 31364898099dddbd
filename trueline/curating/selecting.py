"""select(score, order, gate, budget): which rows are taken, in which order, and for every other one the reason why not.

Rows a method refuses are out first, then those without a score and those beyond the threshold; the rest is walked from
the better end of its score. A gate may pass a candidate over because of one that was taken before. Exactly equal scores
go by place in the file, so that a selection is a function of the scores alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Flags, Floats, Scored
from trueline.errors import TruelineError

NO_SCORE, BEYOND, OVER = "no score", "beyond the threshold", "over the budget"
BLOCK = 256  # candidates of a cosine gate compared at once


@dataclass
class Selection:
    """taken_K: rows in the order in which they are written. rank_N: place by score among those walked, from 1; 0 for others.

    reason_N: index into `reasons`; 0 stands for a row that is taken. wanted: the budget in rows; None where none was set.
    """

    taken_K: NDArray[np.int64]
    rank_N: NDArray[np.int64]
    reason_N: NDArray[np.int16]
    reasons: list[str]
    wanted: int | None

    def counts(self) -> dict[str, int]:
        """Rows for each reason of being left out, most frequent first."""
        number = np.bincount(self.reason_N, minlength=len(self.reasons))
        found = {reason: int(c) for reason, c in zip(self.reasons[1:], number[1:], strict=True) if c}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def budget_rows(budget: str | None, n: int) -> int | None:
    """'500' rows, '0.5' or '50%' of the rows read (rounded down, as Selective DPO does; at least one). None: no limit."""
    if budget is None:
        return None
    text = str(budget).strip()
    share = re.fullmatch(r"([\d.]+)%", text)
    try:
        value = float(share[1]) / 100 if share else float(text)
    except ValueError:
        value = math.nan
    if share or "." in text:
        if not 0 < value <= 1:
            raise TruelineError(f"budget is '{budget}'; expected a share above 0 and up to 1 (or 100%).")
        return max(1, math.floor(value * n + 1e-9))
    if not value >= 1 or value != int(value):
        raise TruelineError(f"budget is '{budget}'; expected rows such as 500, or a share such as 0.5 or 50%.")
    return int(value)


def select(scored: Scored, *, budget: str | None = None, threshold: float | None = None) -> Selection:
    """Decide every row. Caller's budget and threshold, or where neither is given the method's own.

    threshold: the worst score that may be taken. Raises TruelineError where no row is left.
    """
    n = len(scored.score_N)
    if budget is None and threshold is None:
        budget, threshold = scored.budget, scored.threshold
    wanted = budget_rows(budget, n)
    reasons = ["", *scored.dropped, NO_SCORE, BEYOND, *([scored.gate.reason] if scored.gate else []), OVER]
    reason_N = np.zeros(n, dtype=np.int16)
    for code, refused_N in enumerate(scored.dropped.values(), 1):
        _same_length(refused_N, n, reasons[code])
        reason_N[(reason_N == 0) & refused_N] = code
    reason_N[(reason_N == 0) & np.isnan(scored.score_N)] = reasons.index(NO_SCORE)
    key_N = scored.score_N if scored.order == "ascending" else -scored.score_N
    if threshold is not None:
        if not math.isfinite(threshold):
            raise TruelineError(f"threshold is {threshold}; expected a number.")
        limit = threshold if scored.order == "ascending" else -threshold
        reason_N[(reason_N == 0) & (key_N > limit)] = reasons.index(BEYOND)
    left_K = np.flatnonzero(reason_N == 0)
    order_K = left_K[np.argsort(key_N[left_K], kind="stable")]
    rank_N = np.zeros(n, dtype=np.int64)
    rank_N[order_K] = np.arange(1, len(order_K) + 1)
    most = len(order_K) if wanted is None else min(wanted, len(order_K))
    if scored.gate is None:
        taken_K = order_K[:most]
        reason_N[order_K[most:]] = reasons.index(OVER)
    else:
        kept = scored.gate.walk(order_K, most)
        taken_K = order_K[kept]
        last = int(np.flatnonzero(kept)[-1]) if len(taken_K) == most and most else len(order_K)
        walked = np.arange(len(order_K)) <= last
        reason_N[order_K[walked & ~kept]] = reasons.index(scored.gate.reason)
        reason_N[order_K[~walked]] = reasons.index(OVER)
    if not len(taken_K):
        told = ", ".join(
            f"{r} ({c})" for r, c in zip(reasons, np.bincount(reason_N, minlength=len(reasons)), strict=True) if c
        )
        raise TruelineError(
            f"No row is left to write: of {n} rows, {told}. Loosen the threshold or the method's options."
        )
    return Selection(taken_K if scored.arrange == "score" else np.sort(taken_K), rank_N, reason_N, reasons, wanted)


def _same_length(values: NDArray, n: int, what: str) -> None:
    if len(values) != n:
        raise ValueError(f"{what}: {len(values)} values for {n} rows")


class CosineGate:
    """A candidate is taken iff its cosine to everything taken before is at most `most`: the exact greedy scan.

    Blocks of candidates are compared with all taken ones by one product; mates of a block count only if they were taken
    themselves, so a block gives what a scan one by one gives. vectors_ND are normalised here; a zero vector is an error.
    """

    reason = "too like a better row"

    def __init__(self, vectors_ND: Floats, most: float):
        vectors_ND = np.asarray(vectors_ND, dtype=np.float32)
        length_N = np.linalg.norm(vectors_ND, axis=1)
        if not np.isfinite(length_N).all() or not length_N.all():
            bad = int(np.flatnonzero(~np.isfinite(length_N) | (length_N == 0))[0])
            raise TruelineError(f"The embedding of row {bad + 1} is zero or not finite, so it has no direction.")
        self.unit_ND = vectors_ND / length_N[:, None]
        self.most = most

    def walk(self, rows: NDArray[np.int64], wanted: int) -> Flags:
        taken_MD = np.empty((max(1, min(wanted, len(rows))), self.unit_ND.shape[1]), dtype=np.float32)
        kept = np.zeros(len(rows), dtype=bool)
        count = 0
        for start in range(0, len(rows), BLOCK):
            block_BD = self.unit_ND[rows[start : start + BLOCK]]
            nearest_B = (block_BD @ taken_MD[:count].T).max(axis=1) if count else np.full(len(block_BD), -np.inf)
            mates_BB = block_BD @ block_BD.T
            for i in range(len(block_BD)):
                if count == wanted:
                    return kept
                if nearest_B[i] <= self.most:
                    kept[start + i] = True
                    taken_MD[count] = block_BD[i]
                    count += 1
                    nearest_B = np.maximum(nearest_B, mates_BB[:, i])
        return kept


def gumbel_keys(log_weight_N: Floats, rng: np.random.Generator) -> Floats:
    """Keys whose largest m are a sample of m rows without replacement, drawn one by one with these weights.

    (Gumbel top-k: the sequential law of Plackett and Luce.)
    """
    return log_weight_N + rng.gumbel(size=len(log_weight_N))
