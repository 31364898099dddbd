"""Best of n: draw n responses from the proposal, keep the one with the largest reward.

    y = argmax_{i <= n} r(x, y_i),   y_i ~ pi0(. | x) independently;     ties go to the first

KL(BoN || pi0) <= log n - (n - 1) / n (arXiv 2401.01879; an equality for continuous rewards), the "bound" that is reported as kl. n = 16 is a
common size of published comparisons. Over a watermarked proposal ('kgw+best_of_n') this is alignment resampling.
"""

from __future__ import annotations

import math

from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError


@decoder(
    unit="sample", reward="whole", needs="text", stage="post", width="n", arxiv="2009.01325", paper="Best-of-n sampling"
)
def best_of_n(loop: Loop, *, n: int = 16) -> Steps:
    if n < 1:
        raise TruelineError(f"best_of_n.n is {n}; expected a whole number from 1 up.")
    lines = loop.fork(n)
    yield from loop.grow(lines)
    rewards = yield from loop.score(lines)
    loop.details["candidates"] = rewards.tolist()
    loop.commit(lines[int(rewards.argmax())], kl=(math.log(n) - (n - 1) / n, "bound"))
