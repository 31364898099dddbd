"""Binary classifier optimization on pairs: the implicit reward is the logit of 'good', without a shift.

    loss = -log sigmoid(r_w) - log sigmoid(-r_l),   r = beta * rho

Paper: Jung et al. 2024, arXiv 2404.04656, whose reward shift delta is a running mean over batches and is left out here
(delta = 0), as in TRL 1.16 "bco_pair", to which this is equal. It bounds dpo's loss from above. Statistic: sum over response
tokens. Reduction: mean over pairs. beta = 0.01 is the paper's (TRL's paper index).
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2404.04656", paper="Binary Classifier Optimization for Large Language Model Alignment")
def bco_pair(pairs: Pairs, *, beta: float = 0.01) -> Loss:
    return Loss(-logsigmoid(beta * pairs.chosen.log_ratio) - logsigmoid(-beta * pairs.rejected.log_ratio))
