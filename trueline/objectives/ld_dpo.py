"""Length-desensitised DPO: tokens beyond the shorter response's length count alpha.

    loss = -log sigmoid(beta * (rho'_w - rho'_l)),   rho' = rho of the first min(L_w, L_l) tokens + alpha * rho of the rest

Paper: Liu et al. 2024, arXiv 2409.06411. Statistic: sum over response tokens, the tail weighted, for policy and reference
alike. Reduction: mean over pairs. alpha = 1 is dpo; 0.5 lies in the middle of the range that the paper explores. beta = 0.1
as in dpo. Equal to TRL 1.16 `ld_alpha` with loss_type "sigmoid".
"""

import torch
from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2409.06411", paper="Length Desensitization in Direct Preference Optimization")
def ld_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> Loss:
    shared = torch.minimum(pairs.chosen.length, pairs.rejected.length)
    chosen, rejected = (
        alpha * side.log_ratio + (1 - alpha) * side.log_ratio_of_first(shared)
        for side in (pairs.chosen, pairs.rejected)
    )
    return Loss(-logsigmoid(beta * (chosen - rejected)))
