"""Plain sampling: one token after another from the policy's law (temperature, top-k, top-p); greedy at temperature 0.

The law and the random numbers are those of `trueline.engine.sampler`: choice j of a request with stream i draws what sample j of prompt i
draws. With mixing, masks or marks it is what they are drawn through: 'dera' alone means 'dera+plain'.
"""

from __future__ import annotations

from trueline.decode.contract import decoder
from trueline.decoding.loop import Loop, Steps


@decoder(unit="token", paper="Ancestral sampling")
def plain(loop: Loop) -> Steps:
    while not loop.over:
        yield from loop.grow([loop.line], 1)
        loop.commit(loop.line, exact=True)
