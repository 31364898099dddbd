"""DPO with a weighted reference: between dpo and its reference-free form.

    loss = -log sigmoid(beta * ((S_w - S_l) - gamma * (S^r_w - S^r_l))),   S = sum_t log pi(y_t|x), S^r under the reference

Paper: Chen et al. 2024, arXiv 2405.19534, which varies gamma from 0 to 2 to study ranking accuracy against win rate: gamma = 1
is dpo, gamma = 0 sees no reference, and a smaller gamma makes pairs that the reference ranks wrongly easier to flip.
Statistic: sum over response tokens. Reduction: mean over pairs. beta = 0.1 as in dpo; the paper recommends no gamma, and 0.5
is the middle between the two ends. Not in TRL 1.16.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2405.19534", paper="Preference Learning Algorithms Do Not Learn Preference Rankings")
def dpo_gamma(pairs: Pairs, *, beta: float = 0.1, gamma: float = 0.5) -> Loss:
    chosen, rejected = pairs.chosen, pairs.rejected
    policy = chosen.logp - rejected.logp
    reference = chosen.reference_logp - rejected.reference_logp
    return Loss(-logsigmoid(beta * (policy - gamma * reference)))
