"""What is watched inside a model while it trains: spectral alignment of its layers, and the entropy of its predictions.

Spectral Alignment (arXiv 2510.04202) of a layer with weight W = sum_k sigma_k u_k v_k' and inputs x_t:

    SA_t = v_1' x_t / |x_t|,     p = share of t with SA_t > 0,     diversity D = 2 min(p, 1 - p)

The first-order change of the largest singular value in a step of gradient G = sum_t delta_t x_t' is -eta u_1' G v_1. While
inputs lie on both sides of v_1 their contributions cancel; once all have one sign (D near 0) and u_1' delta_t keeps the
other, sigma_1 grows at every step and the loss explodes. D does not depend on the sign of v_1 or on any scale. The paper
speaks of a collapse of sign diversity and gives no formula for it; D is our reading.

`Health` looks every `every` steps at the inputs (after the norm, as the layer reads them) of the linear layers of a few
blocks, at most `tokens` of them, in the passes that carry gradient. v_1 comes from a few iterations on a block of 8 vectors
that starts from the same named random numbers each time, so a resumed run finds what an uninterrupted one does; layers with
LoRA are watched as W + B A. The numbers go into the step's statistics, where `alarm_rules.py` reads them. Quantised
matrices are not watched.

Shape suffixes: _MN a weight (outputs by inputs), _TN tokens by inputs, _NB a block of B vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trueline.engine.backbone import Backbone
from trueline.engine.logprob import chunk_rows

BLOCK, ITERATIONS = 8, 6
Product = Callable[[Tensor], Tensor]


@torch.no_grad()
def top_singular(
    forward: Product, backward: Product, inputs: int, *, like: Tensor, iterations: int = ITERATIONS
) -> tuple[Tensor, float, Tensor]:
    """(u_1, sigma_1, v_1) of the map `forward` ([N, B] -> [M, B]) with transpose `backward`, by block power iteration.

    The error falls as (sigma_9 / sigma_1)^(2 iterations); v_1 has its largest entry positive.
    """
    generator = torch.Generator().manual_seed(0)
    start_NB = torch.randn(inputs, min(BLOCK, inputs), generator=generator, dtype=torch.float32)
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    basis_NB = torch.linalg.qr(start_NB.to(like.device, wide))[0]
    for _ in range(iterations):
        basis_NB = torch.linalg.qr(backward(forward(basis_NB)))[0]
    left_MB, sigma_B, right_BB = torch.linalg.svd(forward(basis_NB), full_matrices=False)
    v_N = basis_NB @ right_BB[0]
    sign = torch.sign(v_N[v_N.abs().argmax()])
    return left_MB[:, 0] * sign, float(sigma_B[0]), v_N * sign


@dataclass
class Alignment:
    """Spectral alignment of one layer: of how many inputs, how many with a positive sign, and the sum of all."""

    count: int = 0
    positive: int = 0
    total: float = 0.0

    def add(self, inputs_TN: Tensor, v_N: Tensor) -> None:
        """Inputs that are exactly zero have no direction and are left out."""
        wide = inputs_TN.to(v_N.dtype)
        norm_T = wide.norm(dim=-1)
        cosine_T = (wide @ v_N)[norm_T > 0] / norm_T[norm_T > 0]
        self.count += len(cosine_T)
        self.positive += int((cosine_T > 0).sum())
        self.total += float(cosine_T.sum())

    @property
    def diversity(self) -> float:
        share = self.positive / self.count
        return 2 * min(share, 1 - share)

    @property
    def mean(self) -> float:
        return self.total / self.count


def spectral_alignment(weight_MN: Tensor, inputs_TN: Tensor) -> Alignment:
    """Of a weight and the inputs of one batch."""
    found = Alignment()
    products = (lambda x: weight_MN @ x, lambda y: weight_MN.T @ y)
    found.add(inputs_TN, top_singular(*products, weight_MN.shape[1], like=weight_MN)[2])
    return found


def growth_agreement(u_M: Tensor, v_N: Tensor, delta_TM: Tensor, inputs_TN: Tensor) -> float:
    """-sum_t a_t / sum_t |a_t| with a_t = (u_1' delta_t)(v_1' x_t), delta = dL/d(Wx): 1 where every token makes sigma_1 grow."""
    each_T = (delta_TM @ u_M) * (inputs_TN @ v_N)
    size = float(each_T.abs().sum())
    return -float(each_T.sum()) / size if size > 0 else 0.0


class Health:
    """Watches one policy. `with health.watching(step):` around a step's passes; then `statistics()`.

    every: steps between looks. blocks: how many of the model's blocks, spread from the first to the last. tokens: inputs of
    a layer that are looked at, spread over the step's first micro-batches.
    """

    def __init__(self, model: nn.Module, *, head: str = "lm", every: int = 20, blocks: int = 3, tokens: int = 512):
        self.backbone = Backbone(model, head)
        self.every, self.tokens, self.kind = every, tokens, head
        layers = self.backbone.decoder_layers()
        several = min(blocks, len(layers))
        picked = [round(i * (len(layers) - 1) / max(several - 1, 1)) for i in range(several)]
        self.watched = {f"{i}.{name}": m for i in picked for name, m in _linear(layers[i])}
        self._found: dict[str, Alignment] = {}
        self._states: list[Tensor] = []
        self._real: Tensor | None = None

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Look at the passes of this block that carry gradient, if it is this step's turn."""
        self._found, self._states = {}, []
        if step % self.every:
            yield
            return
        hooks = [self.backbone.body.register_forward_pre_hook(self._note_mask, with_kwargs=True)]
        hooks.append(self.backbone.body.register_forward_hook(self._note_states))
        for name, module in self.watched.items():
            forward, backward, inputs, like = _products(module)
            v_N = top_singular(forward, backward, inputs, like=like)[2]
            self._found[name] = Alignment()
            hooks.append(module.register_forward_pre_hook(self._noting(name, v_N)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._real = None

    def statistics(self) -> dict[str, list[float]]:
        """What the last look saw, by metric: diversity and |mean| of every layer, mean entropy. Empty between looks."""
        found: dict[str, list[float]] = {}
        for name, seen in self._found.items():
            if seen.count:
                found[f"spectral/diversity/{name}"] = [seen.diversity]
                found[f"spectral/mean/{name}"] = [abs(seen.mean)]
        if self._states and self.kind == "lm":
            found["entropy/tokens"] = [_entropy(torch.cat(self._states), self.backbone)]
        self._states = []
        return found

    def _note_mask(self, _: nn.Module, __: Any, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        self._real = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _note_states(self, _: nn.Module, __: Any, output: Any) -> None:
        held = sum(len(s) for s in self._states)
        if torch.is_grad_enabled() and held < self.tokens:
            self._states.append(self._rows(output.last_hidden_state, self.tokens - held))

    def _noting(self, name: str, v_N: Tensor) -> Callable[[nn.Module, Any], None]:
        def note(_: nn.Module, given: Any) -> None:
            seen = self._found[name]
            if torch.is_grad_enabled() and seen.count < self.tokens:  # not the reference's pass, nor a first of two
                seen.add(self._rows(given[0], self.tokens - seen.count), v_N)

        return note

    def _rows(self, values: Tensor, most: int) -> Tensor:
        """At most so many rows, evenly spread, padding left out."""
        with torch.no_grad():
            if self._real is not None and values.shape[:2] == self._real.shape:
                rows = values[self._real]
            else:
                rows = values.reshape(-1, values.shape[-1])
            return rows[:: -(-len(rows) // most)].detach() if len(rows) > most else rows.detach()


@torch.no_grad()
def _entropy(states_TD: Tensor, backbone: Backbone) -> float:
    total = 0.0
    for states in states_TD.split(chunk_rows(backbone.vocabulary)):
        logp = backbone.head.logits(states).log_softmax(-1)
        total -= float((logp.exp() * logp).sum())
    return total / len(states_TD)


def _linear(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The block's linear layers whose weight is a plain matrix; those with LoRA as a whole."""
    inside: tuple[str, ...] = ()
    for name, module in block.named_modules():
        if inside and name.startswith(inside):
            continue
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            inside += (f"{name}.",)
            if _is_matrix(module.base_layer) and not len(getattr(module, "lora_variant", ())):  # DoRA and others
                yield name, module
        elif _is_matrix(module):
            yield name, module


def _is_matrix(module: Any) -> bool:
    plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
    return plain and module.weight.ndim == 2 and module.weight.is_floating_point()


def _products(module: Any) -> tuple[Product, Product, int, Tensor]:
    """x -> W x and y -> W' y on blocks of columns, the number of inputs, and a tensor of the weight's device."""
    base = getattr(module, "base_layer", module)
    weight = base.weight.detach() if isinstance(base, nn.Linear) else base.weight.detach().T
    wide = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    parts = []
    if base is not module and not module.disable_adapters and not module.merged:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                a, b = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
                parts.append((a.to(wide), b.to(wide), float(module.scaling[adapter])))

    def forward(x: Tensor) -> Tensor:
        return wide @ x + sum(s * (b @ (a @ x)) for a, b, s in parts)

    def backward(y: Tensor) -> Tensor:
        return wide.T @ y + sum(s * (a.T @ (b.T @ y)) for a, b, s in parts)

    return forward, backward, weight.shape[1], weight
