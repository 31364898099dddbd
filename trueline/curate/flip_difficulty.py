"""Flip difficulty: how far the model at hand ranks a pair the wrong way before any training.

    c = S(l) - S(w)        summed log-probs under --model        required DPO loss: softplus(-beta c)

c > 0 says that the model ranks the pair wrongly, and the larger c, the lower the DPO loss must fall before it ranks it
rightly (measure `flip_difficulty`, arXiv 2405.19534, theorem 4.1). Easy pairs first, so a budget drops those that training is
least likely to flip, a mislabelled pair among them. It costs one pass of scoring, no training, and is the cheap stand-in for
Selective DPO's difficulty (`selective_dpo`): compare the two on a sample before trusting it. Log-probs are sums over tokens,
so c grows with how much longer the worse response is; the page shows the correlation. beta only sets the column
`required_loss`; the order does not depend on it. `arrange` score writes the easiest pair first.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from trueline.curate.contract import Pool, Scored, curator, positive
from trueline.errors import TruelineError
from trueline.registry import load


@curator(
    kind="select",
    reads="pairs",
    model="needed",
    arxiv="2405.19534",
    paper="Preference Learning Algorithms Do Not Learn Preference Rankings: theorem 4.1",
)
def flip_difficulty(pool: Pool, *, beta: float = 0.1, arrange: Literal["file", "score"] = "file") -> Scored:
    positive("flip_difficulty", beta=beta)
    better_N, worse_N = pool.workshop.pair_logps(pool)
    known = ~np.isnan(better_N)
    if not known.any():
        raise TruelineError(
            "flip_difficulty needs pairs, and no row has two responses in an order that fit --max-length."
        )
    at_start = load("measure", "flip_difficulty").call
    readings = at_start(better_N[known], worse_N[known], better_N[known], worse_N[known], beta=beta)
    difficulty_N, required_N = np.full(pool.n, np.nan), np.full(pool.n, np.nan)
    difficulty_N[known] = [item["difficulty"] for item in readings[0].items]
    required_N[known] = [item["required_loss"] for item in readings[0].items]
    right = float(np.mean(difficulty_N[known] <= 0))
    return Scored(
        difficulty_N,
        order="ascending",
        columns={"logp_better": better_N, "logp_worse": worse_N, "required_loss": required_N},
        arrange=arrange,
        facts={"ranked_rightly": right, "unscored": int((~known).sum())},
        notes=[f"The model ranks {right:.1%} of the pairs rightly as it is."],
    )
