"""Direct Preference Optimization.

    loss = -log sigmoid(beta * (rho_w - rho_l)),   rho = sum_t log pi(y_t|x) - log pi_ref(y_t|x)

Paper: Rafailov et al. 2023, arXiv 2305.18290. Statistic: sum over response tokens. Reduction: mean over pairs.
beta = 0.1 is the paper's setting for dialogue (0.5 for summarisation).
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2305.18290", paper="Direct Preference Optimization")
def dpo(pairs: Pairs, *, beta: float = 0.1) -> Loss:
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    return Loss(-logsigmoid(margin))
