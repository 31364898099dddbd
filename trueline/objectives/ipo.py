"""Identity Preference Optimization.

    loss = (h - 1/(2 beta))^2,   h = rho_w - rho_l,   rho = sum_t log pi(y_t|x) - log pi_ref(y_t|x)

Paper: Azar et al. 2023, arXiv 2310.12036, where the strength is called tau; `beta` here is that tau, named as in TRL.
Statistic: **sum** over response tokens, as in the paper. TRL 1.16 divides each rho by its token count, so its beta is
not this one. Reduction: mean over pairs. beta = 0.1 follows TRL and the online study (arXiv 2405.08448), whose loss
(beta h - 1/2)^2 is beta^2 times this one.
"""

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS,
    arxiv="2310.12036",
    paper="A General Theoretical Paradigm to Understand Learning from Human Preferences",
)
def ipo(pairs: Pairs, *, beta: float = 0.1) -> Loss:
    margin = pairs.chosen.log_ratio - pairs.rejected.log_ratio
    return Loss((margin - 1 / (2 * beta)) ** 2)
