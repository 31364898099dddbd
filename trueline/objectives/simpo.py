"""SimPO: the length-normalised likelihood is the reward, with a target margin and without a reference.

    loss = -log sigmoid(beta * (S_w / L_w - S_l / L_l) - gamma),   S = sum_t log pi(y_t|x)

Paper: Meng et al. 2024, arXiv 2405.14734. Statistic: **mean** over response tokens. Reduction: mean over pairs. beta = 2
with gamma / beta = 0.5 is the authors' starting point (published settings: beta 2 to 10, gamma / beta 0.1 to 0.8). gamma is
the margin itself, not its ratio to beta. TRL 1.16 has it in CPOTrainer as loss_type "simpo", which adds CPO's likelihood
term unless `cpo_alpha` is 0, and whose default `simpo_gamma` is 0.5.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS,
    arxiv="2405.14734",
    paper="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    reference=False,
)
def simpo(pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0) -> Loss:
    return Loss(-logsigmoid(beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp) - gamma))
