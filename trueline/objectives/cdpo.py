"""Conservative DPO: a share epsilon of the labels is taken to be flipped.

    loss = -(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z),   z = beta * (rho_w - rho_l)

E. Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO" (ericmitchell.ai/cdpo.pdf, no arXiv id).
The loss has its minimum at z = log((1 - epsilon) / epsilon) instead of at infinity. Statistic: sum over response tokens.
Reduction: mean over pairs. beta = 0.1 as in dpo; epsilon = 0.1 is the note's example. TRL 1.16 no longer has this loss:
its `label_smoothing` is ignored by loss_type "sigmoid" and means the unbiased `robust_dpo` elsewhere.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, paper="A note on DPO with noisy preferences & relationship to IPO")
def cdpo(pairs: Pairs, *, beta: float = 0.1, epsilon: float = 0.1) -> Loss:
    z = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    return Loss(-(1 - epsilon) * logsigmoid(z) - epsilon * logsigmoid(-z))
