"""Accept or draw again: what item_rejection and cards share.

    accept a draw with probability min(1, exp((R - tau) / beta)); hard: where R >= tau

Law of what is accepted, without a cap: pi0(y) min(1, exp((R(y) - tau(y)) / beta)) / a, in 1 / a draws on average. After `retries` rejections one
more draw is taken untested: the best of all that were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Loop
from trueline.errors import TruelineError


def check(name: str, beta: float, retries: int) -> None:
    if beta <= 0 or retries < 0:
        raise TruelineError(
            f"{name} has beta={beta:g} and retries={retries}; expected beta above 0 and retries from 0 up."
        )


def accepted(
    loop: Loop,
    grow: Callable[[Line], Asking[None]],
    threshold: Callable[[Line], float],
    *,
    beta: float,
    retries: int,
    hard: bool = False,
) -> Asking[tuple[Line, float, float]]:
    """Draw continuations of the committed line until one is accepted: the line, its reward, and an estimate of log q / pi0.

    The estimate is min(0, (R - tau) / beta) + log(draws), 1 / a by the number of draws; log n - (n - 1) / n where the cap chose.
    """
    best: tuple[float, Line] | None = None
    for draws in range(1, retries + 2):
        (line,) = loop.fork()
        yield from grow(line)
        reward = float((yield from loop.score([line], required=draws > retries and best is None))[0])
        if best is None or reward > best[0]:
            loop.close([best[1]] if best else [])
            best = (reward, line)
        if draws > retries:
            break
        excess = (reward - threshold(line)) / beta
        if loop.accept(float(excess >= 0) if hard else math.exp(min(0.0, excess))):
            return line, reward, (0.0 if hard else min(0.0, excess)) + math.log(draws)
        loop.counters.retries += 1
        if line is not best[1]:
            loop.close([line])
    assert best is not None
    return best[1], best[0], math.log(draws) - (draws - 1) / draws
