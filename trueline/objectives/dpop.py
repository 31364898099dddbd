"""DPO-Positive: DPO with a penalty where the chosen response has become less likely than under the reference.

    loss = -log sigmoid(beta * (rho_w - rho_l - penalty * max(0, -rho_w)))

Paper: Pal et al. 2024 (Smaug), arXiv 2402.13228. Statistic: sum over response tokens. Reduction: mean over pairs.
beta = 0.3 and penalty (the paper's lambda) = 50 are the settings of its released models as we remember them, not re-read;
the penalty stands inside beta. Not in TRL 1.16.
"""

from torch.nn.functional import logsigmoid, relu

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS, arxiv="2402.13228", paper="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive"
)
def dpop(pairs: Pairs, *, beta: float = 0.3, penalty: float = 50.0) -> Loss:
    chosen, rejected = pairs.chosen.log_ratio, pairs.rejected.log_ratio
    return Loss(-logsigmoid(beta * (chosen - rejected - penalty * relu(-chosen))))
