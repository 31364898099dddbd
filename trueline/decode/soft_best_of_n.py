"""Soft best of n: draw n responses, keep one with probability proportional to exp(r / beta).

    P(i) = exp(r(x, y_i) / beta) / sum_j exp(r(x, y_j) / beta)

arXiv 2505.03156. Between plain sampling (beta -> infinity) and best of n (beta -> 0); as n grows its law tends to the tilt
pi0 exp(r / beta). beta has the reward's unit; 0.5 suits rewards with a spread of about one. Its density against pi0 is at most n, so
KL <= log n, the "bound" that is reported as kl.
"""

from __future__ import annotations

import math

from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError


@decoder(
    unit="sample",
    reward="whole",
    needs="text",
    stage="post",
    width="n",
    arxiv="2505.03156",
    paper="Soft best-of-n sampling",
)
def soft_best_of_n(loop: Loop, *, n: int = 16, beta: float = 0.5) -> Steps:
    if n < 1 or beta <= 0:
        raise TruelineError(f"soft_best_of_n has n={n} and beta={beta:g}; expected n from 1 up and beta above 0.")
    lines = loop.fork(n)
    yield from loop.grow(lines)
    rewards = yield from loop.score(lines)
    loop.details["candidates"] = rewards.tolist()
    loop.commit(lines[loop.softmax(rewards, beta)[0]], kl=(math.log(n), "bound"))
