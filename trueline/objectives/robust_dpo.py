"""Provably robust DPO: an unbiased estimate of the clean DPO loss when labels are flipped at rate epsilon.

    loss = [-(1 - epsilon) log sigmoid(z) + epsilon log sigmoid(-z)] / (1 - 2 epsilon),   z = beta * (rho_w - rho_l)

Paper: Chowdhury et al. 2024, arXiv 2403.00409. Averaged over random flips at rate epsilon this is dpo, at the price of a
loss without a lower bound. Statistic: sum over response tokens. Reduction: mean over pairs. beta = 0.01 and
epsilon = 0.1 are the paper's settings as listed in TRL's paper index. Equal to TRL 1.16 "robust" (its `label_smoothing`).
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2403.00409", paper="Provably Robust DPO: Aligning Language Models with Noisy Feedback")
def robust_dpo(pairs: Pairs, *, beta: float = 0.01, epsilon: float = 0.1) -> Loss:
    z = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    return Loss((-(1 - epsilon) * logsigmoid(z) + epsilon * logsigmoid(-z)) / (1 - 2 * epsilon))
