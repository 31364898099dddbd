"""DPO with an offset: the implicit reward margin must exceed what the scores say.

    loss = -log sigmoid(beta * (rho_w - rho_l) - alpha * f(r_w - r_l)),   f(d) = d ("linear") or log d ("log")

Paper: Amini et al. 2024 (ODPO), arXiv 2402.10571. r is the score that a judge or the data gave each response. Statistic: sum
over response tokens. Reduction: mean over pairs. beta = 0.1 as in dpo; alpha = 1 asks for the whole score difference.
"linear" is the default because it is defined for every pair (a tie is dpo); "log" is the scaling of the paper's experiments
as we remember them, not re-read, and refuses pairs whose chosen response is not scored higher. Not in TRL 1.16.
"""

from __future__ import annotations

from typing import Literal

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective, require


@objective(needs=PAIRS, arxiv="2402.10571", paper="Direct Preference Optimization with an Offset")
def dpo_margin(
    pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0, offset: Literal["linear", "log"] = "linear"
) -> Loss:
    difference = pairs.chosen.reward - pairs.rejected.reward
    if offset == "log":
        require(
            bool((difference > 0).all()),
            f"dpo_margin: a chosen response is scored {float(difference.min()):g} above its rejected one, and offset log needs more "
            "than 0. Give offset linear, or drop pairs whose scores tie or contradict the preference.",
        )
        difference = difference.log()
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    return Loss(-logsigmoid(margin - alpha * difference))
