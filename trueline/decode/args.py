"""ARGS: every token rescored by a reward model.

    score(v) = log-prob-or-logit(v) + weight * r([x, y_<t, v]),   v among the k likeliest tokens
    tau 0: the best of them (ARGS-greedy);  tau > 0: one with probability proportional to exp(score / tau) (ARGS-stochastic)

arXiv 2402.01694. Logits and log-probs give the same choice: they differ by a constant over the candidates. Defaults k = 10, weight = 1.0 and
0.7 as the stochastic tau are its repository's example. The candidates are those of the proposal before temperature and truncation; the
request's law counts only where a gate draws plainly. End tokens end the response (the official loop has none). k = 0 rescores every token:
with weight 1 / beta, tau 1 and the exact soft value as the reward that is the tilted optimum pi0 exp(r / beta).

A reward trained on whole responses says arbitrary things of prefixes (arXiv 2406.07780).
"""

from __future__ import annotations

from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError


@decoder(unit="token", reward="prefix", width="k", arxiv="2402.01694", paper="ARGS: Alignment as Reward-Guided Search")
def args(loop: Loop, *, k: int = 10, weight: float = 1.0, tau: float = 0.0) -> Steps:
    if k < 0 or tau < 0:
        raise TruelineError(f"args has k={k} and tau={tau:g}; expected 0 or more of each.")
    while (here := (yield from loop.next_position())) is not None:
        ids, logits = here.top(k)
        rewards = yield from loop.score(loop.branch(here, ids))
        pick, logp = loop.softmax(logits + weight * rewards, tau)
        loop.commit_token(here, ids[pick], logp, float(rewards[pick]))
