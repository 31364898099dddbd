"""The exact law of a decoder: a method run once for every outcome of its random choices.

    law(engine, request) -> {ids of a response: log-prob}

For small worlds (`TableModel`): every token of every candidate multiplies the paths, so best of two on 121 responses takes 14,641 runs.
"""

from __future__ import annotations

import numpy as np

from trueline.decoding.chance import Script
from trueline.decoding.engine import DecodeEngine
from trueline.decoding.request import Request
from trueline.errors import TruelineError


def law(engine: DecodeEngine, request: Request, *, paths: int = 200_000) -> dict[tuple[int, ...], float]:
    """Log-prob of every response of one choice. Raises TruelineError where there are more than `paths` outcomes."""
    found: dict[tuple[int, ...], float] = {}
    pending: list[list[int]] = [[]]
    seeded, runs = engine.chance, 0
    try:
        while pending:
            runs += 1
            if runs > paths:
                raise TruelineError(
                    f"The law has more than {paths} outcomes. Take a smaller world or fewer candidates."
                )
            given = pending.pop()
            engine.chance = script = Script(given)
            ids = tuple(engine.run([request])[0][0].ids)
            logp = sum(logp for logp, _ in script.taken)
            found[ids] = float(np.logaddexp(found.get(ids, -np.inf), logp))
            for at in range(len(given), len(script.taken)):
                pending += [[*script.outcomes[:at], other] for other in script.taken[at][1][1:]]
    finally:
        engine.chance = seeded
    return found
