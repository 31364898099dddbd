"""DPO with a likelihood term on the chosen response (iterative RPO, and RPO).

    loss = -log sigmoid(beta * (rho_w - rho_l)) - alpha * S_w / L_w,   S = sum_t log pi(y_t|x)

Paper: Pang et al. 2024 (iterative reasoning preference optimization), arXiv 2404.19733. Statistic: sum over response tokens
in the preference term, **mean** in the likelihood term. Reduction: mean over pairs of both. beta = 0.1 and alpha = 1 are
that paper's. per_token = False takes S_w undivided, the form of Liu et al. 2024 (arXiv 2405.16436: beta = 0.01,
weight 0.005). TRL 1.16's list ["sigmoid", "sft"] has a token mean over the batch instead; that is the weighted sum
`dpo:1,sft:alpha` here, and differs from this loss where chosen lengths differ.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2404.19733", paper="Iterative Reasoning Preference Optimization")
def rpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0, per_token: bool = True) -> Loss:
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    likelihood = pairs.chosen.mean_logp if per_token else pairs.chosen.logp
    return Loss(-logsigmoid(margin) - alpha * likelihood)
