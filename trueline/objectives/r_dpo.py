"""Length-regularised DPO.

    loss = -log sigmoid(beta * (rho_w - rho_l) + alpha * (L_w - L_l)),   L = tokens of the response

Paper: Park et al. 2024, arXiv 2403.19159: the reward r - alpha * L is what the policy maximises, so the *implicit* reward
of a longer chosen response gets alpha * (L_w - L_l) for free and need not be learned. Statistic: sum over response tokens.
Reduction: mean over pairs. beta = 0.1 as in dpo. alpha = 0.01 is this project's choice (a hundred tokens weigh one nat);
published grids, not re-read, go from 0.005 to 1. Not in TRL 1.16.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2403.19159", paper="Disentangling Length from Quality in Direct Preference Optimization")
def r_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.01) -> Loss:
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    return Loss(-logsigmoid(margin + alpha * (pairs.chosen.length - pairs.rejected.length)))
