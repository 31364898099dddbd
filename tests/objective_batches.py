"""Scored batches without a model, and the same numbers as the oracles take them.

Responses come in pairs (chosen, rejected, chosen, ...). Log-probs are negative, the reference stays near the policy, and
a chosen response is always scored above its rejected one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracles.objectives import Pair
from trueline.groups import Group, Response
from trueline.objectives.contract import DEMONSTRATIONS, PAIRS, Demonstrations, Loss, Pairs, Scored
from trueline.registry import load

LENGTHS = (3, 5, 1, 1, 7, 2, 4, 6, 2, 9)


def batch(seed: int = 0, lengths: tuple[int, ...] = LENGTHS, scale: float = 0.5) -> Scored:
    """float64; scale: how far the reference's log-probs stray from the policy's, per token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    total = sum(lengths)
    logp = -0.2 - draw(total).abs()
    groups = []
    for i in range(len(lengths) // 2):
        low = float(draw(1))
        above = 0.3 + float(draw(1).abs())
        groups.append(Group("p", [Response(reward=low + above), Response(reward=low)], origin=f"row:{i}"))
    return Scored(
        groups,
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        torch.tensor(lengths),
        logp.requires_grad_(),
        logp.detach() + scale * draw(total),
        draw(len(lengths)).requires_grad_(),
    )


def copy(scored: Scored, **changed: Any) -> Scored:
    """The same batch with other numbers; nothing that was computed from the old ones is kept."""
    return replace(scored, **changed)


def take(scored: Scored, order: list[int]) -> Scored:
    """A batch of these pairs in this order."""
    rows = [r for i in order for r in (2 * i, 2 * i + 1)]
    token_N = torch.cat([torch.nonzero(scored.owner_N == r).flatten() for r in rows])
    length_R = scored.length_R[rows]
    return Scored(
        [scored.groups[i] for i in order],
        torch.repeat_interleave(torch.arange(len(rows)), length_R),
        length_R,
        scored.logp_N[token_N].detach().requires_grad_(),
        scored.reference_N[token_N],
        scored.value_R[rows].detach().requires_grad_(),
    )


def view(scored: Scored, needs: str, which: list[int] | None = None) -> Any:
    """What an objective that needs this takes, over these pairs (default: all)."""
    which = list(range(len(scored.length_R) // 2)) if which is None else which
    chosen, rejected = [2 * i for i in which], [2 * i + 1 for i in which]
    views = {
        PAIRS: Pairs(scored.rows(chosen), scored.rows(rejected)),
        DEMONSTRATIONS: Demonstrations(scored.rows(chosen)),
    }
    if needs not in views:
        raise NotImplementedError(
            f"The conformance suite does not know how to make {needs}; teach it in tests/objective_batches.py."
        )
    return views[needs]


def loss(name: str, scored: Scored, which: list[int] | None = None, **options: Any) -> Loss:
    method = load("objectives", name)
    return method.call(view(scored, method.declared["needs"], which), **options)


def value(name: str, scored: Scored, **options: Any) -> Tensor:
    """The loss of this batch as if it were the whole one."""
    found = loss(name, scored, **options)
    return found.reduce(found.counts())


def number(name: str, scored: Scored, **options: Any) -> float:
    return float(value(name, scored, **options).detach())


def gradient(name: str, scored: Scored, **options: Any) -> Tensor:
    """Of the loss by what the objective's head gives: token log-probs, or one value a response."""
    (found,) = torch.autograd.grad(value(name, copy(scored), **options), leaf(name, scored))  # copy: a graph of its own
    return found


def leaf(name: str, scored: Scored) -> Tensor:
    found = scored.value_R if load("objectives", name).declared["head"] == "scalar" else scored.logp_N
    assert found is not None
    return found


def for_oracle(scored: Scored, needs: str = PAIRS) -> list[Any]:
    """The batch as the oracles take it."""

    def tokens(values: Tensor, response: int) -> np.ndarray:
        return values[scored.owner_N == response].detach().numpy()

    pairs = []
    for i, group in enumerate(scored.groups):
        chosen, rejected = 2 * i, 2 * i + 1
        pair = Pair(
            y_w=tokens(scored.logp_N, chosen),
            y_l=tokens(scored.logp_N, rejected),
            ref_w=tokens(scored.reference_N, chosen),
            ref_l=tokens(scored.reference_N, rejected),
            score_w=group.responses[0].reward,
            score_l=group.responses[1].reward,
            value_w=scored.value_R[chosen].item(),
            value_l=scored.value_R[rejected].item(),
        )
        pairs.append(pair)
    return [p.y_w for p in pairs] if needs == DEMONSTRATIONS else pairs
