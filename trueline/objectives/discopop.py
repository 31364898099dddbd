"""DiscoPOP: a blend of the logistic and the exponential loss that a language model discovered.

    loss = -(1 - m) log sigmoid(z) + m exp(-z),   m = sigmoid(z / tau),   z = beta * (rho_w - rho_l)

Paper: Lu et al. 2024, arXiv 2406.08414 (equation 5). Not convex near z = 0. Statistic: sum over response tokens.
Reduction: mean over pairs. beta = 0.05 and tau = 0.05 are the paper's (TRL's paper index). Equal to TRL 1.16 "discopop",
except that m exp(-z) is computed as one exponential: a very negative z gives 0, not 0 * infinity = NaN.
"""

import torch
from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS,
    arxiv="2406.08414",
    paper="Discovering Preference Optimization Algorithms with and for Large Language Models",
)
def discopop(pairs: Pairs, *, beta: float = 0.05, tau: float = 0.05) -> Loss:
    z = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    exponential = torch.exp(logsigmoid(z / tau) - z)
    return Loss(-torch.sigmoid(-z / tau) * logsigmoid(z) + exponential)
