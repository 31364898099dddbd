"""Lookahead: what becomes of candidates when some model writes on from them.

length 0 leaves them as they are, -1 writes to the end of the response. Candidates that are over are never written on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Loop
from trueline.errors import TruelineError


def check(name: str, *, k: int, tau: float, lookahead: int, rollouts: int = 1) -> None:
    if k < 0 or tau < 0 or lookahead < -1 or rollouts < 1:
        raise TruelineError(
            f"{name} has k={k}, tau={tau:g}, lookahead={lookahead}, rollouts={rollouts}; expected k and tau from 0 up, lookahead from "
            "-1 (to the end) up, rollouts from 1 up."
        )


def futures(
    loop: Loop, lines: Sequence[Line], length: int, *, rollouts: int = 1, greedy: bool = False, model: str | None = None
) -> Asking[list[list[Line]]]:
    """Continuations of each line, [lines][rollouts]: the line itself where there is nothing to write."""
    if length == 0:
        return [[line] for line in lines]
    made = [[line] if line.finish is not None else loop.fork(rollouts, of=line) for line in lines]
    flat = [line for some in made for line in some]
    yield from loop.grow(flat, None if length < 0 else length, greedy=greedy, model=model)
    return made


def score_futures(loop: Loop, made: Sequence[Sequence[Line]], lines: Sequence[Line]) -> Asking[list[Tensor]]:
    """Rewards of the continuations, one vector a line; continuations are closed, the lines they came from stay."""
    flat = [line for some in made for line in some]
    rewards = (yield from loop.score(flat)).split([len(some) for some in made])
    stays = set(map(id, lines))
    loop.close([line for line in flat if id(line) not in stays])
    return [torch.as_tensor(values) for values in rewards]
