"""Bradley-Terry reward model.

    loss = -log sigmoid(r_w - r_l - margin) + center * (r_w + r_l)^2

Bradley and Terry 1952; as a reward model in arXiv 2203.02155. r is the one label of a sequence-classification head at
the last token. Reduction: mean over pairs. center = 0 is TRL's default (`center_rewards_coefficient`; 0.01 is
recommended in arXiv 2312.09244); margin = 0 is plain Bradley-Terry (arXiv 2307.09288 uses graded margins).
"""

from torch.nn.functional import logsigmoid

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(needs=PAIRS, arxiv="2203.02155", paper="Bradley-Terry reward model", reference=False, head="scalar")
def bt(pairs: Pairs, *, center: float = 0.0, margin: float = 0.0) -> Loss:
    chosen, rejected = pairs.chosen.value, pairs.rejected.value
    return Loss(-logsigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2)
