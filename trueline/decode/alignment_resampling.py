"""Alignment resampling: the best of n watermarked responses, to win back what a watermark costs (arXiv 2506.04462).

    y = argmax_{i <= n} r(x, y_i),   y_i from the marked proposal;     'kgw+alignment_resampling', 'gumbel+alignment_resampling'

It is best_of_n on a marked proposal, and differs where that would be silently pointless or fail: it wants a watermark, and one whose samples
differ (gumbel with randomised=True; the argmax mark gives n equal samples); where no candidate can be scored, or all score the same,
it returns the first one, marked all the same, and says so (details["fallback"]). With Gaussian rewards of spread sigma the gain over one
marked sample is at least sigma sqrt(log n) / sqrt(pi log 2), with equality at n = 2. n = 4: the paper finds 2 to 4 enough.
A reward that depends on the marked tokens moves the detection rate, either way; only an independent one leaves it alone.
"""

from __future__ import annotations

import math

from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError


@decoder(
    unit="sample",
    reward="whole",
    stage="post",
    width="n",
    arxiv="2506.04462",
    paper="Watermarking Degrades Alignment in Language Models",
)
def alignment_resampling(loop: Loop, *, n: int = 4) -> Steps:
    """n: marked responses to choose from."""
    if n < 1:
        raise TruelineError(f"alignment_resampling.n is {n}; expected a whole number from 1 up.")
    if not loop.proposal.marks:
        raise TruelineError(
            "alignment_resampling needs a watermark ('kgw+alignment_resampling'). Without one it is best_of_n."
        )
    if n > 1 and any(getattr(mark, "randomised", None) is False for mark in loop.proposal.marks):
        raise TruelineError(
            f"The gumbel mark gives {n} equal samples to choose from. Set gumbel's randomised to true, or n to 1."
        )
    lines = loop.fork(n)
    yield from loop.grow(lines)
    rewards = yield from loop.score(lines, required=False)
    loop.details["candidates"] = [value if math.isfinite(value) else None for value in rewards.tolist()]
    if not bool(rewards.isfinite().any()):
        loop.details["fallback"] = "no candidate could be scored"
    elif n > 1 and bool((rewards == rewards[0]).all()):
        loop.details["fallback"] = "all candidates score the same"
    loop.commit(lines[int(rewards.argmax())], kl=(math.log(n) - (n - 1) / n, "bound"))
