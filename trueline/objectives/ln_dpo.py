"""Length-normalised DPO.

    loss = -log sigmoid(beta * (rho_w / L_w - rho_l / L_l)),   rho = sum_t log pi(y_t|x) - log pi_ref(y_t|x)

Paper: Ahrabian et al. 2024, arXiv 2407.15229. Statistic: **mean** over response tokens (L counts the end-of-sequence
token, for policy and reference alike), so a useful beta is larger than dpo's by the typical length: LN-DPO(beta) is
DPO(beta / L) where both responses have L tokens. Reduction: mean over pairs. beta = 5 is the setting of Tulu 3
(arXiv 2411.15124). TRL 1.16 "sigmoid_norm" is the same loss, but divides by all completion tokens.
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2407.15229", paper="The Hitchhiker's Guide to Human Alignment with *PO")
def ln_dpo(pairs: Pairs, *, beta: float = 5.0) -> Loss:
    margin = beta * (pairs.chosen.mean_log_ratio - pairs.rejected.mean_log_ratio)
    return Loss(-logsigmoid(margin))
