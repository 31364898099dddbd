"""Self-play preference optimization with hard labels: the log-ratios are fitted to plus and minus 1 / (2 beta).

    loss = (rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2,   rho = sum_t log pi(y_t|x) - log pi_ref(y_t|x)

Paper: Wu et al. 2024, arXiv 2405.00675: rho is fitted to eta * (P - 1/2), P the estimated chance of beating the current
policy and eta = 1 / beta. A pair says P = 1 for its chosen and 0 for its rejected response. The paper iterates: samples and
reference are the previous iteration's policy, which is one run a round here. Statistic: sum over response tokens.
Reduction: mean over pairs. beta = 0.001 is the paper's eta = 1000. Equal to TRL 1.16 "sppo_hard".
"""

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2405.00675", paper="Self-Play Preference Optimization for Language Model Alignment")
def sppo(pairs: Pairs, *, beta: float = 0.001) -> Loss:
    target = 1 / (2 * beta)
    return Loss((pairs.chosen.log_ratio - target) ** 2 + (pairs.rejected.log_ratio + target) ** 2)
