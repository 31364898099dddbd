"""Alignment via optimal transport: the batch's sorted values are compared, quantile by quantile.

    paired:    loss_i = l(beta * (sort(S_w - S_l)_i - sort(S^r_w - S^r_l)_i))
    unpaired:  loss_i = l(beta * (sort(rho_w)_i - sort(rho_l)_i))
    l(z) = -(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z)

Paper: Melnyk et al. 2024, arXiv 2406.05882: first-order stochastic dominance of the policy's margins over the reference's
(paired), or of the chosen responses' log-ratios over the rejected ones' (unpaired). Statistic: sum over response tokens.
Reduction: mean over quantiles. Rows are coupled: the sort is over the whole optimiser batch, where TRL 1.16 ("aot",
"aot_unpaired") sorts each device's micro-batch; on one undivided batch they are equal. The paper gives no further
setting: beta = 0.1 and epsilon = 0 are TRL's defaults.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS,
    arxiv="2406.05882",
    paper="Distributional Preference Alignment of LLMs via Optimal Transport",
    couples_rows=True,
)
def aot(pairs: Pairs, *, beta: float = 0.1, epsilon: float = 0.0, paired: bool = True) -> Loss:
    chosen, rejected = pairs.chosen, pairs.rejected
    if paired:
        upper, lower = chosen.logp - rejected.logp, chosen.reference_logp - rejected.reference_logp
    else:
        upper, lower = chosen.log_ratio, rejected.log_ratio
    z = beta * (upper.sort().values - lower.sort().values)
    return Loss(-(1 - epsilon) * logsigmoid(z) - epsilon * logsigmoid(-z))
