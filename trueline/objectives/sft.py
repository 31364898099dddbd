"""Supervised fine-tuning: the token-mean negative log-likelihood of demonstrations.

    loss = -sum_i sum_t log pi(y_t|x) / sum_i L_i

The divisor is the token count of the whole optimiser batch (all micro-batches, all processes), so a split never
changes the gradient. On preference data the demonstrations are the chosen responses. No reference.
"""

from trueline.objectives.contract import DEMONSTRATIONS, Demonstrations, Loss, objective


@objective(needs=DEMONSTRATIONS, paper="Supervised fine-tuning", reference=False)
def sft(demonstrations: Demonstrations) -> Loss:
    return Loss(-demonstrations.responses.token_logp, unit="token")
