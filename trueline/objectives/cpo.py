"""Contrastive Preference Optimization: DPO without its reference, plus the chosen response's likelihood.

    loss = -log sigmoid(beta * (S_w - S_l)) + alpha * NLL(y_w),   S = sum_t log pi(y_t|x)

Paper: Xu et al. 2024, arXiv 2401.08417. Statistic: sum over response tokens. Reduction: the preference term is a mean over
pairs, the likelihood term a mean over the chosen tokens of the whole batch, as in TRL 1.16. beta = 0.1 is the paper's,
alpha = 1 its unweighted sum. Equal to TRL 1.16 CPOTrainer, loss_type "sigmoid", on one device without accumulation:
there each micro-batch has its own token mean.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2401.08417", paper="Contrastive Preference Optimization", reference=False)
def cpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0) -> Loss:
    preference = Loss(-logsigmoid(beta * (pairs.chosen.logp - pairs.rejected.logp)))
    return preference + alpha * Loss(-pairs.chosen.token_logp, unit="token")
