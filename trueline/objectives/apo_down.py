"""Anchored preference optimization, down: both responses become less likely, the rejected one more so.

    loss = sigmoid(r_w) + sigmoid(-(r_w - r_l)),   r = beta * rho

Paper: D'Oosterlinck et al. 2024, arXiv 2408.06266 (equation 8), for chosen responses that are worse than what the model
writes. Statistic: sum over response tokens. Reduction: mean over pairs. beta = 0.1 is the paper's (TRL's paper index). Equal to
TRL 1.16 "apo_down".
"""

from torch import sigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2408.06266", paper="Anchored Preference Optimization and Contrastive Revisions")
def apo_down(pairs: Pairs, *, beta: float = 0.1) -> Loss:
    chosen, rejected = beta * pairs.chosen.log_ratio, beta * pairs.rejected.log_ratio
    return Loss(sigmoid(chosen) + sigmoid(rejected - chosen))
