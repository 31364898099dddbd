"""AdamW on fp32 master weights, with the schedule, the clip and the guards of every run.

A step whose loss or gradient is not finite is not taken. The learning rate is a function of the step alone, so a
resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trueline.config import AlignConfig
from trueline.engine.parallel import local, total, whole
from trueline.errors import TruelineError


def learning_rate(config: AlignConfig, step: int, steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `steps`: linear warm-up, then the chosen decay."""
    warm = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warm) / max(steps - warm, 1)
    shape = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * shape)


@dataclass
class Update:
    """What an optimiser step did. moved: share of the entries with a gradient that changed, where it was measured."""

    learning_rate: float
    grad_norm: float
    finite: bool
    moved: float | None = None

    @classmethod
    def worst(cls, updates: Sequence[Update]) -> Update:
        """Several updates of one step as one: the largest gradient, finite where all were, the smallest share moved."""
        moved = [u.moved for u in updates if u.moved is not None]
        norm = max((u.grad_norm for u in updates), key=lambda n: (math.isnan(n), n))
        return cls(updates[-1].learning_rate, norm, all(u.finite for u in updates), min(moved, default=None))


class Optimiser:
    """AdamW over these named parameters; matrices decay, vectors (norms, biases) do not.

    mask_decay: weight decay of the parameters under "masks.", where there are some.
    """

    PROBED_ENTRIES = 4096  # per parameter, to see whether a step moves the weights at all

    def __init__(self, named: dict[str, nn.Parameter], config: AlignConfig, steps: int, *, mask_decay: float = 0.0):
        self.config, self.steps, self.named = config, steps, named
        if not self.named:
            raise TruelineError("No parameter of this model requires a gradient: there is nothing to train.")
        low = {n for n, p in self.named.items() if p.dtype not in (torch.float32, torch.float64)}
        if low:
            raise TruelineError(
                f"{len(low)} trained parameters are {self.named[min(low)].dtype} (first: {min(low)}). Updates of 1e-5 round "
                "away in 16 bits; load the model in float32 (precision: fast gives 16-bit products on fp32 weights)."
            )
        matrices = [p for n, p in self.named.items() if p.ndim >= 2 and not n.startswith("masks.")]
        masks = [p for n, p in self.named.items() if p.ndim >= 2 and n.startswith("masks.")]
        vectors = [p for p in self.named.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": masks, "weight_decay": mask_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )

    def step(self, step: int, *, loss: float, probe: bool = False) -> Update:
        """Clip and apply the accumulated gradient, or leave the weights alone where something is not finite."""
        rate = learning_rate(self.config, step, self.steps)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.max_grad_norm))
        update = Update(rate, float(norm), finite=bool(torch.isfinite(norm)) and math.isfinite(loss))
        if update.finite:
            for group in self.adamw.param_groups:
                group["lr"] = rate
            before = self._probed() if probe else None
            self.adamw.step()
            if before is not None:
                update.moved = self._moved(before)
        self.adamw.zero_grad(set_to_none=True)
        return update

    def skip(self, step: int) -> Update:
        """A step without any usable group: nothing changes."""
        return Update(learning_rate(self.config, step, self.steps), 0.0, finite=True)

    def _probed(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The first entries of every parameter with a gradient, and which of them have one."""
        return [
            (self._entries(p).clone(), self._entries(p.grad) != 0) for p in self.named.values() if p.grad is not None
        ]

    def _moved(self, before: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        now = [p for p in self.named.values() if p.grad is not None]
        changed = probed = 0
        for (old, has), parameter in zip(before, now, strict=True):
            new = self._entries(parameter)
            changed += int(((new != old) & has).sum())
            probed += int(has.sum())
        if any(isinstance(p, DTensor) for p in now):  # each rank has looked at entries of its own
            changed, probed = int(total(changed)), int(total(probed))
        return changed / probed if probed else 1.0

    def _entries(self, tensor: torch.Tensor) -> torch.Tensor:
        return local(tensor.detach()).flatten()[: self.PROBED_ENTRIES]
