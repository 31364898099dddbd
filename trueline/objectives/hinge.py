"""Hinge on the implicit reward margin.

    loss = max(0, 1 - beta * (rho_w - rho_l)),   rho = sum_t log pi(y_t|x) - log pi_ref(y_t|x)

The "hinge-norm" loss of Liu et al. 2023 (RSO), arXiv 2309.06657: SLiC's hinge on likelihoods normalised by the
reference. Pairs with rho_w - rho_l beyond 1 / beta give no gradient. Statistic: sum over response tokens. Reduction: mean
over pairs. beta = 0.1 is TRL's default. Equal to TRL 1.16 loss_type "hinge", which its documentation names SLiC.
"""

from torch.nn.functional import relu

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2309.06657", paper="Statistical Rejection Sampling Improves Preference Optimization")
def hinge(pairs: Pairs, *, beta: float = 0.1) -> Loss:
    return Loss(relu(1 - beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)))
