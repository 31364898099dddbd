"""f-DPO: DPO under another divergence between policy and reference.

    loss = -log sigmoid(beta * (f'(u_w) - f'(u_l))),   u = pi(y|x) / pi_ref(y|x),   log u = rho

    reverse_kl  f'(u) = log u                            (this is dpo)
    forward_kl  f'(u) = 1 - 1 / u
    js          f'(u) = log 2 + log(u / (1 + u))         (Jensen-Shannon)
    alpha       f'(u) = (u^(alpha - 1) - 1) / (alpha - 1) (reverse_kl as alpha -> 1, forward_kl at alpha = 0)

Paper: Wang et al. 2023, arXiv 2309.16240, whose alpha is one minus this one; here it is TRL's `f_alpha_divergence_coef`.
Statistic: sum over response tokens. Reduction: mean over pairs. beta = 0.1 as in dpo; alpha has no default, and is refused
where it would have no effect. Exponents are cut off at 80, as TRL 1.16 does for alpha; TRL does not for forward_kl, which
overflows to NaN there.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective, require

_ORDERS = {"reverse_kl": 1.0, "forward_kl": 0.0}


def _derivative(log_ratio: Tensor, divergence: str, alpha: float | None) -> Tensor:
    """f'(u) at log u."""
    if divergence == "js":
        return math.log(2) + logsigmoid(log_ratio)
    power = (_ORDERS[divergence] if alpha is None else alpha) - 1
    if power == 0:
        return log_ratio
    return torch.expm1((power * log_ratio).clamp(max=80)) / power


@objective(needs=PAIRS, arxiv="2309.16240", paper="Beyond Reverse KL: Generalizing Direct Preference Optimization")
def f_dpo(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl",
    alpha: float | None = None,
) -> Loss:
    require(
        (divergence == "alpha") == (alpha is not None),
        f"f_dpo: divergence is '{divergence}' and alpha is {alpha}. Give alpha with divergence alpha, and only there.",
    )
    chosen, rejected = (_derivative(side.log_ratio, divergence, alpha) for side in (pairs.chosen, pairs.rejected))
    return Loss(-logsigmoid(beta * (chosen - rejected)))
