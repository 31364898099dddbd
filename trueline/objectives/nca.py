"""Noise contrastive alignment on pairs: chosen against rejected, and both against the reference.

    loss = -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l),   r = beta * rho

Paper: Chen et al. 2024, arXiv 2402.05369. Unlike dpo it sees each implicit reward by itself, which keeps r_w from falling
together with r_l. Statistic: sum over response tokens. Reduction: mean over pairs. beta = 0.01 is the paper's (TRL's paper
index). Equal to TRL 1.16 "nca_pair".
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS, arxiv="2402.05369", paper="Noise Contrastive Alignment of Language Models with Explicit Rewards"
)
def nca(pairs: Pairs, *, beta: float = 0.01) -> Loss:
    chosen, rejected = beta * pairs.chosen.log_ratio, beta * pairs.rejected.log_ratio
    return Loss(-logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected))
