"""Entropy gate: spend a token search only where the model is uncertain.

Where the next token's entropy is below `nats`, it is drawn plainly from the request's law; elsewhere the search runs. 'entropy_gate+args' is the
hybrid of token search and CARDS' segmentation (arXiv 2406.16306, which takes 3.0 nats); nats = 0 searches everywhere.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.proposal import Position
from trueline.decoding.request import Request
from trueline.errors import TruelineError


class EntropyGate:
    def __init__(self, nats: float):
        self.nats = nats

    def certain(self, here: Position) -> bool:
        return here.entropy < self.nats


@decoder(unit="token", hook="gate", arxiv="2406.16306", paper="Search at uncertain positions only")
def entropy_gate(engine: Any, request: Request, *, nats: float = 3.0) -> EntropyGate:
    if nats < 0:
        raise TruelineError(f"entropy_gate.nats is {nats:g}; expected 0 or more.")
    return EntropyGate(nats)
