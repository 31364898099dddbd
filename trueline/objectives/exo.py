"""EXO on pairs: the reverse KL divergence from the policy's preference to the smoothed label.

    loss = q_w (log q_w - log(1 - epsilon)) + q_l (log q_l - log epsilon),   q_w = sigmoid(z), q_l = sigmoid(-z)
    z = beta * (rho_w - rho_l)

Paper: Ji et al. 2024, arXiv 2402.00856 (equation 16). The mirror image of cdpo, which has the forward divergence: both have
their minimum at z = log((1 - epsilon) / epsilon). Statistic: sum over response tokens. Reduction: mean over pairs.
beta = 0.1 is the paper's (TRL's paper index); epsilon = 1e-3 is TRL's recommendation and must be above 0. Equal to TRL 1.16
"exo_pair" (its `label_smoothing`).
"""

import math

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective, require


@objective(
    needs=PAIRS, arxiv="2402.00856", paper="Towards Efficient and Exact Optimization of Language Model Alignment"
)
def exo(pairs: Pairs, *, beta: float = 0.1, epsilon: float = 1e-3) -> Loss:
    require(
        epsilon > 0, "exo.epsilon is 0: its divergence from a label without noise is infinite. Give 0.001, or use dpo."
    )
    z = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    log_w, log_l = logsigmoid(z), logsigmoid(-z)
    return Loss(log_w.exp() * (log_w - math.log1p(-epsilon)) + log_l.exp() * (log_l - math.log(epsilon)))
