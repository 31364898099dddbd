"""Controlled decoding: tokens valued by the policy's own rollouts.

    Q(s, z) = E_{y ~ pi_policy(. | s, z)} [r],     score(z) = logit(z) + weight Q(s, z),   z among the k likeliest

arXiv 2310.17022 (CD-Q without a trained prefix scorer: Q is the mean reward of `rollouts` continuations of `lookahead` tokens; with a
trained scorer as the reward and lookahead 0 it is args). tau 0 takes the best, tau 1 draws pi exp(weight Q) / Z. Its optimum is of tokens:
Q bounds the soft value from below, V_soft >= Q. Defaults as transfer_q's, of which this is the case rho = policy.
"""

from __future__ import annotations

import torch

from trueline.decode._lookahead import check, futures, score_futures
from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps


@decoder(
    unit="token",
    reward="prefix",
    width="k rollouts",
    arxiv="2310.17022",
    paper="Controlled Decoding from Language Models",
)
def controlled_decoding(
    loop: Loop, *, k: int = 10, weight: float = 1.0, tau: float = 0.0, lookahead: int = 20, rollouts: int = 1
) -> Steps:
    check("controlled_decoding", k=k, tau=tau, lookahead=lookahead, rollouts=rollouts)
    while (here := (yield from loop.next_position())) is not None:
        ids, logits = here.top(k)
        lines = loop.branch(here, ids)
        made = yield from futures(loop, lines, lookahead, rollouts=rollouts)
        values = torch.stack([r.mean() for r in (yield from score_futures(loop, made, lines))])
        pick, logp = loop.softmax(logits + weight * values, tau)
        loop.commit_token(here, ids[pick], logp)
