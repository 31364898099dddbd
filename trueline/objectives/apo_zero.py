"""Anchored preference optimization, zero: chosen responses up, rejected ones down, each against the reference.

    loss = sigmoid(-r_w) + sigmoid(r_l),   r = beta * rho

Paper: D'Oosterlinck et al. 2024, arXiv 2408.06266 (equation 7), for chosen responses that are better than what the model
writes. It is KTO with its reference point at zero, summed over the pair. Statistic: sum over response tokens. Reduction: mean
over pairs. beta = 0.1 is the paper's (TRL's paper index). Equal to TRL 1.16 "apo_zero".
"""

from torch import sigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2408.06266", paper="Anchored Preference Optimization and Contrastive Revisions")
def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> Loss:
    return Loss(sigmoid(-beta * pairs.chosen.log_ratio) + sigmoid(beta * pairs.rejected.log_ratio))
