"""Transfer `Q*`: tokens valued by the rollouts of a model that is already aligned.

    direct     TQ(s, z) = E_{y ~ rho(. | s, z)} [r]                                   rho aligned to r
    indirect   TQ(s, z) = E_rho[omega r] / E_rho[omega],  omega = exp((r - r_baseline) / beta)     rho aligned to r_baseline
    score(z) = logit(z) + weight TQ(s, z),  z among the k likeliest; tau 0 takes the best, tau 1 draws pi_policy exp(TQ / alpha), weight = 1 / alpha

arXiv 2405.20495. rho is the second model `aligned`; proposals are the policy's. Expectations are means over `rollouts` continuations of
`lookahead` tokens drawn from rho at the request's law (-1: to the end, which a reward of finished responses needs); indirect is
self-normalised importance sampling, computed in log space. Repository example: k 10, weight 1.0, 20 tokens, one rollout. With one rollout omega
cancels and the indirect estimate is the direct one, so `baseline` (the name of r_baseline, which makes it indirect) asks for two or more.
With lookahead 0 it is args; with rho = the policy controlled_decoding.

Not reproduced from the official code: proposals from the aligned model, one reward model loaded twice (omega = 1), omega r / 2 unnormalised.
"""

from __future__ import annotations

import torch

from trueline.decode._lookahead import check, futures, score_futures
from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError, nearest


@decoder(unit="token", reward="prefix", models="aligned", width="k rollouts", arxiv="2405.20495", paper="Transfer Q*")
def transfer_q(
    loop: Loop,
    *,
    k: int = 10,
    weight: float = 1.0,
    tau: float = 0.0,
    lookahead: int = 20,
    rollouts: int = 1,
    baseline: str = "",
    beta: float = 0.1,
) -> Steps:
    check("transfer_q", k=k, tau=tau, lookahead=lookahead, rollouts=rollouts)
    if baseline and (rollouts < 2 or beta <= 0):
        raise TruelineError(
            f"Indirect transfer_q needs rollouts of 2 or more and beta above 0; found {rollouts} and {beta:g}."
        )
    if baseline and baseline not in loop.available:
        raise TruelineError(
            f"transfer_q.baseline: there is no reward '{baseline}'. {nearest(baseline, loop.available)}"
        )
    while (here := (yield from loop.next_position())) is not None:
        ids, logits = here.top(k)
        lines = loop.branch(here, ids)
        made = yield from futures(loop, lines, lookahead, rollouts=rollouts, model="aligned")
        against = None
        if baseline:
            against = yield from loop.score_with({baseline: 1.0}, [y for some in made for y in some])
        rewards = yield from score_futures(loop, made, lines)
        values = torch.stack([r.mean() for r in rewards])
        if against is not None:
            parts = against.split([len(some) for some in made])
            values = torch.stack(
                [(((r - r0) / beta).softmax(0) * r).sum() for r, r0 in zip(rewards, parts, strict=True)]
            )
        pick, logp = loop.softmax(logits + weight * values, tau)
        loop.commit_token(here, ids[pick], logp)
