"""Every random choice of decoding, each from a stream of its own.

A stream is named by the request's seed and stream, the choice, and the line that draws; the n-th draw of a line takes the n-th
number. So a result depends neither on what else runs nor on the order of work. The main line of choice j has the numbers of sample
j in `engine/sampler.py`. `Script` replays a given path of outcomes instead: `exact.py` enumerates laws with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trueline.engine.draw import Drawn, Law
from trueline.randomness import derive

if TYPE_CHECKING:
    from trueline.decoding.lines import Line

BLOCK = 64  # numbers made at once


class Chance:
    """Seeded random choices."""

    def uniform(self, line: Line) -> float:
        """The next number in [0, 1) of this line's stream."""
        numbers = line.extra.get("uniforms")
        if numbers is None or line.draws >= len(numbers):
            seed, *names = line.name
            count = BLOCK if numbers is None else 2 * len(numbers)
            numbers = np.random.Generator(np.random.PCG64(derive(int(seed), "row", *names))).random(count)
            line.extra["uniforms"] = numbers
        line.draws += 1
        return float(numbers[line.draws - 1])

    def tokens(self, law: Law, logits_BV: Tensor, lines: Sequence[Line]) -> Drawn:
        """One token per line from the law of its logits."""
        uniforms = [self.uniform(line) if law.temperature else 0.0 for line in lines]
        return law.draw(logits_BV, torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device))

    def pick(self, logp: Sequence[float], line: Line) -> int:
        """An index drawn with these log-probs (normalised here); -inf is never drawn."""
        weights = np.exp(np.asarray(logp, dtype=np.float64) - max(logp))
        edges = np.cumsum(weights)
        target = self.uniform(line) * edges[-1]
        found = int(np.searchsorted(edges, target, side="right"))
        return min(found, int(np.flatnonzero(weights)[-1]))

    def accept(self, probability: float, line: Line) -> bool:
        return self.uniform(line) < probability


class Script(Chance):
    """Choices given as outcomes. taken: (log-prob, outcomes that were possible there) of each choice so far."""

    def __init__(self, outcomes: Sequence[int]) -> None:
        self.outcomes = list(outcomes)
        self.taken: list[tuple[float, list[int]]] = []

    def pick(self, logp: Sequence[float], line: Line) -> int:
        values = np.asarray(logp, dtype=np.float64)
        values = values - np.logaddexp.reduce(values)
        possible = np.flatnonzero(np.isfinite(values)).tolist()
        at = len(self.taken)
        if at == len(self.outcomes):
            self.outcomes.append(possible[0])
        outcome = self.outcomes[at]
        self.taken.append((float(values[outcome]), possible))
        return outcome

    def accept(self, probability: float, line: Line) -> bool:
        p = min(max(probability, 0.0), 1.0)
        return self.pick([math.log1p(-p) if p < 1 else -math.inf, math.log(p) if p > 0 else -math.inf], line) == 1

    def tokens(self, law: Law, logits_BV: Tensor, lines: Sequence[Line]) -> Drawn:
        logp_BV, full_BV = law_logp(law, logits_BV), law_logp(Law(law.temperature), logits_BV)
        ids = torch.tensor([self.pick(row.tolist(), line) for row, line in zip(logp_BV, lines, strict=True)])
        return Drawn(ids, logp_BV.gather(1, ids[:, None])[:, 0], full_BV.gather(1, ids[:, None])[:, 0])


def law_logp(law: Law, logits_BV: Tensor) -> Tensor:
    """Log-prob of every token under the law, [B, V] in float64, -inf outside its truncation."""
    z_BV = logits_BV.double()
    if law.temperature == 0:
        chosen = torch.zeros_like(z_BV, dtype=torch.bool).scatter_(1, z_BV.argmax(-1, keepdim=True), True)
        return torch.zeros_like(z_BV).masked_fill_(~chosen, -math.inf)
    weight_BV = ((z_BV - z_BV.amax(-1, keepdim=True)) / law.temperature).exp()
    if law.top_k or law.top_p < 1:
        weight_BV = law._truncated(weight_BV, weight_BV.sum(-1))  # the sampler's own, with its rule for ties
    return (weight_BV / weight_BV.sum(-1, keepdim=True)).log()
