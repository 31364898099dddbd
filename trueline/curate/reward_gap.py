"""Pairs whose rewards differ by enough, and by no more than is believable.

    gap = r(better) - r(worse)        keep  minimum <= gap <= maximum

The better response is the one the labels prefer (ranks; rewards where there are no ranks), so a negative gap says that the
rewards contradict the label: `contradictions` drop (default) or keep decides about those. Reward-margin filters stand in most
preference pipelines (UltraFeedback-binarized, Hummer-F arXiv 2405.11647, Magpie arXiv 2406.08464); there is no one paper.
The score is the gap, largest first. minimum 0 and no maximum are ours: no pair is dropped for a small gap unasked.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from trueline.curate.contract import Pool, Scored, curator, pairs_of
from trueline.errors import TruelineError


@curator(kind="select", reads="rewards", model="none", paper="Reward-margin filter")
def reward_gap(
    pool: Pool,
    *,
    minimum: float = 0.0,
    maximum: float | None = None,
    contradictions: Literal["drop", "keep"] = "drop",
) -> Scored:
    if maximum is not None and maximum < minimum:
        raise TruelineError(f"reward_gap.maximum {maximum:g} is below minimum {minimum:g}.")
    gaps = []
    for batch in pool.batches():
        for group in batch:
            pair = pairs_of(group)
            rewards = [None, None] if pair is None else [pair[0].reward, pair[1].reward]
            gaps.append(np.nan if None in rewards else rewards[0] - rewards[1])  # type: ignore[operator]
    gap_N = np.array(gaps, dtype=np.float64)
    if np.isnan(gap_N).all():
        raise TruelineError(
            "reward_gap needs pairs with rewards (score_chosen and score_rejected, UltraFeedback, ...); no row has both."
        )
    dropped = {}
    if contradictions == "drop":
        dropped["rewards contradict the label"] = gap_N < 0
        size_N = gap_N
    else:
        size_N = np.where(gap_N < 0, -gap_N, gap_N)
    dropped["gap below the minimum"] = (size_N < minimum) & ~np.isnan(size_N)
    if maximum is not None:
        dropped["gap above the maximum"] = size_N > maximum
    share = float(np.mean(gap_N[~np.isnan(gap_N)] < 0))
    note = f"In {share:.1%} of the pairs with rewards the worse response has the higher reward."
    return Scored(gap_N, dropped=dropped, facts={"contradicting_share": share}, notes=[note])
