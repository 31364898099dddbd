"""SLiC-HF: sequence likelihoods are calibrated by a hinge and anchored to the preferred response; no reference model.

    loss = max(0, margin - S_w + S_l) - anchor * S_w,   S = sum_t log pi(y_t|x)

Paper: Zhao et al. 2023, arXiv 2305.10425, where the anchor is the likelihood of an SFT target or of the best candidate:
here it is the chosen response. (For separate demonstrations use anchor = 0 and a weighted sum with sft.) Statistic: sum
over response tokens, in the anchor too. Reduction: mean over pairs. margin = 1 and anchor = 0.5 are the paper's delta and
lambda as we remember them, not re-read. TRL 1.16 calls another loss SLiC: its "hinge" has a reference and no anchor; that
one is `hinge` here.
"""

from torch.nn.functional import relu

from trueline.objectives.contract import PAIRS, Loss, Pairs, objective


@objective(
    needs=PAIRS,
    arxiv="2305.10425",
    paper="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    reference=False,
)
def slic(pairs: Pairs, *, margin: float = 1.0, anchor: float = 0.5) -> Loss:
    chosen, rejected = pairs.chosen.logp, pairs.rejected.logp
    return Loss(relu(margin - chosen + rejected) - anchor * chosen)
