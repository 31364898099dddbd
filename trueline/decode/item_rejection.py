"""Item-level rejection sampling: draw a whole response, accept it with probability min(1, exp((r - threshold) / beta)), or draw again.

    law      pi(y) = pi0(y) min(1, exp((r(y) - threshold) / beta)) / a,      a = E_{pi0}[min(1, exp((r - threshold) / beta))]
    draws    1 / a on average

With threshold >= max r that is the tilted optimum pi0 exp(r / beta) / Z exactly; with threshold <= min r it is pi0 and nothing is ever
rejected. After `retries` rejections the next draw is not tested and the best of all is taken, which mixes best-of-n into the law: at a = 0.03
and 20 retries that happens half the time, so raise it where exactness matters. The threshold has the reward's unit and no portable
default: 0 accepts whatever has a reward above 0. It is CARDS (arXiv 2406.16306) with one segment; beta = 0.7 and 20 retries are its
repository's.
"""

from __future__ import annotations

from trueline.decode._acceptance import accepted, check
from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps


@decoder(
    unit="sample",
    reward="whole",
    needs="text",
    stage="post",
    arxiv="2406.16306",
    paper="Rejection sampling of whole responses",
)
def item_rejection(loop: Loop, *, threshold: float = 0.0, beta: float = 0.7, retries: int = 20) -> Steps:
    check("item_rejection", beta, retries)
    line, reward, kl = yield from accepted(
        loop, lambda line: loop.grow([line]), lambda line: threshold, beta=beta, retries=retries
    )
    loop.commit(line, reward, kl=(kl, "acceptance"))
