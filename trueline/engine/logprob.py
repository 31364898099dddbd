"""The one log-probability function of the project, and full-distribution statistics.

Only rows that predict a counted token reach the head, in chunks of 64 MB of fp32 logits; a [tokens x vocabulary]
tensor of everything never exists. Chunked is the log-prob, never the loss, so any objective can stand on it.

    forward (no gradient, trained head):  z = h W^T;  logp = z[y] - lse(z), keep lse
    backward(g):                          z = h W^T;  dz = g * (onehot(y) - exp(z - lse));  dh = dz W;  dW = dz^T h
    frozen head:                          forward also keeps J = W[y] - softmax(z) W;  backward is dh = g * J

The frozen form is the gradient in the forward pass that stays legal: the *direction* of each token's gradient does
not depend on the loss, only its weight g does. Log-sum-exp and the difference are in fp32 even where products are
bf16 (float64 stays float64). Shape suffixes: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Logits = Callable[[Tensor], Tensor]

CHUNK_BYTES = 64 * 2**20
CHUNK_ROWS_MIN = 64  # below this, matrix products lose more than the memory is worth


@dataclass(frozen=True)
class Head:
    """From hidden state to logits: a module (Linear, LoRA over one, anything callable) and what the model does after.

    logits = softcap(scale * module(h)) / temperature, with softcap(z) = c * tanh(z / c) where c is given.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the head is scale * h W^T and nothing else, so that the buffered form applies."""
        module = self.module
        hooks = module._forward_hooks or module._forward_pre_hooks
        return type(module) is nn.Linear and module.bias is None and self.softcap is None and not hooks

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V] in fp32 (float64 stays)."""
        logits = _wide(self.module(hidden))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1.0 else logits


def chunk_rows(vocabulary: int) -> int:
    """Rows of fp32 logits that fill 64 MB, at least 64."""
    return max(CHUNK_ROWS_MIN, CHUNK_BYTES // (4 * vocabulary))


def token_logp(hidden: Tensor, head: Head, target: Tensor, *, chunk: int | None = None) -> Tensor:
    """log p(target | hidden): [N, D], [N] -> [N] in fp32 (float64 stays). Differentiable in hidden and the head."""
    if head.plain:
        weight = _wide(head.module.weight)  # type: ignore[arg-type]  # half-precision weights: products in fp32, because bf16 logits are wrong
        rows = chunk or chunk_rows(weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            return _LinearLogp.apply(_wide(hidden), weight, target, head.scale / head.temperature, rows)
    parts = []
    rows = chunk or _chunk_rows_of(head)
    for h, y in zip(hidden.split(rows), target.split(rows), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk_logp, h, head, y, use_reentrant=False))
        else:
            parts.append(_chunk_logp(h, head, y))
    return torch.cat(parts) if parts else _wide(hidden).sum(-1)


def _chunk_logp(hidden: Tensor, head: Head, target: Tensor) -> Tensor:
    logits = head.logits(hidden)
    return logits.gather(-1, target[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _chunk_rows_of(head: Head) -> int:
    """Chunk for a head that is not a plain Linear: its output size, from the attribute every Linear-like layer has."""
    return chunk_rows(int(getattr(head.module, "out_features", 0)) or CHUNK_BYTES)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _LinearLogp(torch.autograd.Function):
    """Buffered chunks for logits = scale * h W^T; see the module's text for the two forms."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, scale: float, rows: int) -> Tensor:
        N = hidden.shape[0]
        ctx.frozen = not ctx.needs_input_grad[1]
        keep_direction = ctx.frozen and ctx.needs_input_grad[0]
        logp, lse = hidden.new_empty(N), hidden.new_empty(N)
        direction = torch.empty_like(hidden) if keep_direction else None
        buffer = hidden.new_empty(min(rows, N), weight.shape[0])
        for a in range(0, N, rows):
            h, y = hidden[a : a + rows], target[a : a + rows, None]
            z = torch.mm(h, weight.t(), out=buffer[: len(h)])
            if scale != 1.0:
                z.mul_(scale)
            drawn = z.gather(1, y)
            top = z.amax(1, keepdim=True)
            total = z.sub_(top).exp_().sum(1, keepdim=True)
            row_lse = top + total.log()
            lse[a : a + rows] = row_lse.squeeze(1)
            logp[a : a + rows] = (drawn - row_lse).squeeze(1)
            if direction is not None:
                expected = torch.mm(z.div_(total), weight)
                direction[a : a + rows] = (weight[y.squeeze(1)] - expected).mul_(scale)
        ctx.scale, ctx.rows = scale, rows
        if keep_direction:
            ctx.save_for_backward(direction)
        elif not ctx.frozen:
            ctx.save_for_backward(hidden, weight, target, lse)
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.frozen:
            (direction,) = ctx.saved_tensors
            return grad[:, None] * direction, None, None, None, None
        hidden, weight, target, lse = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        buffer = hidden.new_empty(min(ctx.rows, len(hidden)), weight.shape[0])
        for a in range(0, len(hidden), ctx.rows):
            rows = slice(a, a + ctx.rows)
            h, y, g = hidden[rows], target[rows, None], grad[rows, None]
            z = torch.mm(h, weight.t(), out=buffer[: len(h)])
            if ctx.scale != 1.0:
                z.mul_(ctx.scale)
            z.sub_(lse[rows, None]).exp_().mul_(-g)
            z.scatter_add_(1, y, g)
            if ctx.scale != 1.0:
                z.mul_(ctx.scale)
            torch.mm(z, weight, out=grad_hidden[rows])
            grad_weight.addmm_(z.t(), h)
        return grad_hidden, grad_weight, None, None, None


@torch.no_grad()
def kl_and_entropy(
    hidden: Tensor,
    logits_of: Logits,
    reference_hidden: Tensor,
    reference_logits_of: Logits,
    *,
    vocabulary: int,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Per row, over the full vocabulary: (KL(policy || reference), entropy of policy) in nats, both [N], no gradient.

    logits_of: hidden [n, D] -> logits [n, V], such as `Head.logits`, called a chunk at a time.
    """
    rows = chunk or chunk_rows(2 * vocabulary)  # two distributions stand in memory at once
    kl, entropy = [], []
    for h, r in zip(hidden.split(rows), reference_hidden.split(rows), strict=True):
        own = logits_of(h).log_softmax(-1)
        probability = own.exp()
        kl.append((probability * (own - reference_logits_of(r).log_softmax(-1))).sum(-1))
        entropy.append(-(probability * own).sum(-1))
    return torch.cat(kl), torch.cat(entropy)
