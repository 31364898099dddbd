"""What beam_search and deal share: every running beam extended by its k likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Loop
from trueline.errors import TruelineError

Beam = tuple[float, Line]  # summed log-prob under the proposal, line


def check(name: str, beams: int, k: int) -> None:
    if beams < 1 or k < 0:
        raise TruelineError(
            f"{name} has beams={beams} and k={k}; expected beams from 1 up and k from 0 (every token) up."
        )


def extended(loop: Loop, running: Sequence[Beam], k: int) -> Asking[tuple[list[Line], Tensor]]:
    """All extensions and their summed log-probs (untempered, untruncated), beam by beam, likeliest first."""
    places = yield from loop.positions([line for _, line in running])
    made: list[Line] = []
    sums: list[Tensor] = []
    for (total, _), here in zip(running, places, strict=True):
        ids, _ = here.top(k)
        made += loop.branch(here, ids)
        sums.append(total + here.logp_V[ids].cpu())
    return made, torch.cat(sums)


def keep_only(loop: Loop, made: Sequence[Line], running: Sequence[Beam], kept: Sequence[Line]) -> None:
    """Close the extensions that were dropped and the beams that were extended."""
    stays = {id(loop.line), *map(id, kept)}
    loop.close([line for line in [*made, *(line for _, line in running)] if id(line) not in stays])
