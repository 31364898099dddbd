"""Emulated fine-tuning: knowledge of one scale, behaviour of another.

    log pi(y_t | .) = log pi_policy(y_t | .) + strength [log pi_tuned(y_t | .) - log pi_base(y_t | .)] + const

arXiv 2310.12962. The implicit reward of a fine-tuning at one scale, tuned against base, tilts the pre-trained policy of another; with a large
policy and small tuned and base models that is up-scaling. strength = 1 emulates the fine-tuning itself, other values its KL trade-off at
decoding time. The same mixer as DeRa and proxy tuning.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.proposal import Mix, Term
from trueline.decoding.request import Request


@decoder(
    unit="token",
    hook="mix",
    models="tuned base",
    arxiv="2310.12962",
    paper="An Emulator for Fine-Tuning Large Language Models",
)
def emulated_fine_tuning(engine: Any, request: Request, *, strength: float = 1.0) -> Mix:
    tuned, base = engine.role(request, "tuned"), engine.role(request, "base")
    return Mix((Term("policy", 1.0), Term(tuned, strength), Term(base, -strength)))
