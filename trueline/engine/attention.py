"""Attention over the flat layout, registered with transformers as "trueline" and told the layout by keyword.

Two ways to the same numbers, neither with a [T x T] tensor:

* split + merge (CPU): the flash kernel runs on the shared prefix, on all responses against the prefix, and on each
  response against itself; partial results of a token merge by their log-sum-exp. The backward calls the flash backward
  on the same pieces with the *merged* output and log-sum-exp, which makes the pieces' gradients add up exactly.
* concatenated keys: each response attends to [prefix; itself] with a causal (windowed) mask. Public operators and
  autograd only. Used for windows shorter than a group, soft caps, attention sinks, head sizes the kernel refuses and
  other devices; the oracle of the first in tests.

No entry in transformers' mask registry goes with the name, so models build no mask and guess no packing. A keyword
that neither way implements raises; it is never ignored. Shape suffixes: B batch (1), H heads, T tokens, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from trueline.engine.layout import Layout, Segment
from trueline.engine.precision import exact_cpu_products, fast_cpu_products
from trueline.errors import TruelineError

NAME = "trueline"

# Keywords that transformers hands through to every attention function and that describe the call, not the attention.
DESCRIPTIVE = frozenset(
    {
        "position_ids",
        "position_embeddings",
        "cache_position",
        "use_cache",
        "return_dict",
        "output_hidden_states",
        "output_router_logits",
        "num_items_in_batch",
        "logits_to_keep",
    }
)
FLASH_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class CallCounter:
    """How often the registered function ran, for the probe: one call a layer, or the model attends elsewhere too."""

    calls: int = 0


_counters: list[CallCounter] = []


@contextmanager
def count_calls() -> Iterator[CallCounter]:
    """Count this process's calls of the registered attention while the block runs."""
    counter = CallCounter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    layout: Layout | None = None,
    decode: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every attention layer: q [B,H,T,d], k and v [B,Hkv,T,d] -> ([B,T,H,d], None).

    `layout` attends over a flat row of groups; `decode` hands over to the sampler's state. Raises TruelineError for
    anything else a model asks of its attention.
    """
    for counter in _counters:
        counter.calls += 1
    _refuse_unknown(module, attention_mask, dropout, is_causal, others)
    scale = scaling if scaling is not None else 1.0 / math.sqrt(query.shape[-1])
    if decode is not None:
        out = decode.attend(
            module, query, key, value, scaling=scale, sliding_window=sliding_window, softcap=softcap, s_aux=s_aux
        )
        return out, None
    if layout is None:
        raise TruelineError(
            "The model's attention is set to 'trueline' and it was called without a layout. Score through Policy, or "
            "use `with policy.plain_attention():` for a plain call."
        )
    if query.shape[0] != 1 or query.shape[2] != layout.shared_tokens:
        raise TruelineError(
            f"Attention got queries of shape {tuple(query.shape)}; a layout of {layout.shared_tokens} tokens needs "
            f"one row of as many."
        )
    out = over_layout(query, key, value, layout.segments, scale, window=sliding_window, softcap=softcap, sinks=s_aux)
    return out.transpose(1, 2).contiguous(), None  # split + merge lays it out so that this copies nothing


def _refuse_unknown(
    module: nn.Module, mask: Tensor | None, dropout: float, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """Raise for whatever would change the result and is not implemented here."""
    kind = type(module).__name__
    if mask is not None:
        raise TruelineError(f"{kind} passes an attention mask; the shared layout works without one. Use layout=padded.")
    if dropout:
        raise TruelineError(
            f"{kind} asks for attention dropout {dropout}; the shared layout has none. Leave dropout off (the default) "
            "or use layout=padded."
        )
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise TruelineError(f"{kind} asks for attention that is not causal; the shared layout is. Use layout=padded.")
    for name, value in others.items():
        if name not in DESCRIPTIVE and value is not None and value is not False:
            raise TruelineError(
                f"{kind} passes '{name}', which the shared layout does not implement. Use layout=padded."
            )


def over_layout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention within each group of a flat row; q [1,H,T,d], k and v [1,Hkv,T,d] -> [1,H,T,d].

    window: keys fewer than this many positions back are visible. softcap: scores become c*tanh(s/c).
    sinks [H]: a logit a head that takes part in the softmax and has no value.
    """
    if query.dtype != value.dtype or key.dtype != value.dtype:  # rotary returns fp32 beside bf16 values under autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    if window is not None and all(s.longest <= window for s in segments):
        window = None
    plain = window is None and softcap is None and sinks is None
    same_size = query.shape[-1] == key.shape[-1] == value.shape[-1]
    if plain and same_size and query.device.type == "cpu" and query.dtype in FLASH_DTYPES:
        return _SplitMerge.apply(query, key, value, segments, scale)

    def call(q: Tensor, k: Tensor, v: Tensor, s: Tensor | None) -> Tensor:
        return concatenated(q, k, v, segments, scale, window=window, softcap=softcap, sinks=s)

    fast = fast_cpu_products() and query.device.type == "cpu"
    return _ExactProducts.apply(call, query, key, value, sinks) if fast else call(query, key, value, sinks)


# ---------------------------------------------------------------------------------------------------------------------
# Split + merge


def _pieces(segments: tuple[Segment, ...]) -> Iterator[tuple[slice, slice, bool, bool]]:
    """(queries, keys, causal, second) of every flash call; second: the queries had a first piece, merge with it."""
    for segment in segments:
        shared = slice(segment.start, segment.shared_end)
        sharing = segment.shared_end > segment.start
        if sharing:
            yield shared, shared, True, False
            yield slice(segment.shared_end, segment.end), shared, False, False  # all responses see the whole prefix
        for first, end in segment.responses:
            yield slice(first, end), slice(first, end), True, sharing


class _SplitMerge(torch.autograd.Function):
    """Flash attention on the pieces of a layout, merged exactly. Grouped-query heads are the kernel's business."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], scale: float
    ) -> Tensor:
        B, H, T, d = query.shape
        out = query.new_empty(B, T, H, d).transpose(1, 2)  # the model reads it as [B,T,H,d]
        lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = torch.empty(B, H, T, dtype=lse_dtype)
        with exact_cpu_products():
            for queries, keys, causal, second in _pieces(segments):
                part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=scale
                )
                if second:
                    before, before_lse = out[:, :, queries], lse[:, :, queries]
                    merged = torch.logaddexp(before_lse, part_lse)
                    part = (
                        before * (before_lse - merged).exp().unsqueeze(-1)
                        + part * (part_lse - merged).exp().unsqueeze(-1)
                    ).to(out.dtype)
                    part_lse = merged
                out[:, :, queries] = part
                lse[:, :, queries] = part_lse
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        with exact_cpu_products():
            for queries, keys, causal, _ in _pieces(ctx.segments):
                # With the merged out and lse, each piece's softmax weights are its share of the whole row's.
                dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad_out[:, :, queries],
                    query[:, :, queries],
                    key[:, :, keys],
                    value[:, :, keys],
                    out[:, :, queries],
                    lse[:, :, queries],
                    0.0,
                    causal,
                    scale=ctx.scale,
                )
                grad_query[:, :, queries] += dq
                grad_key[:, :, keys] += dk
                grad_value[:, :, keys] += dv
        return grad_query, grad_key, grad_value, None, None


# ---------------------------------------------------------------------------------------------------------------------
# Concatenated keys


def concatenated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The same attention by [prefix; response] keys for each response, in plain differentiable operators."""
    repeats = query.shape[1] // key.shape[1]
    parts = []
    for segment in segments:
        shared = slice(segment.start, segment.shared_end)
        if segment.shared_end > segment.start:
            parts.append(
                _causal(
                    query[:, :, shared], key[:, :, shared], value[:, :, shared], repeats, scale, window, softcap, sinks
                )
            )
        # The first own token sits right after the prefix; prefix keys a whole window back are visible to no response.
        reach = segment.start if window is None else max(segment.start, segment.shared_end - window + 1)
        visible = slice(reach, max(reach, segment.shared_end))
        for first, end in segment.responses:
            own = slice(first, end)
            k = torch.cat([key[:, :, visible], key[:, :, own]], dim=2)
            v = torch.cat([value[:, :, visible], value[:, :, own]], dim=2)
            parts.append(_causal(query[:, :, own], k, v, repeats, scale, window, softcap, sinks))
    return torch.cat(parts, dim=2)


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    repeats: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Queries are the last positions of the keys' row; repeats = query heads per key/value head."""
    q_length, k_length = query.shape[2], key.shape[2]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    whole = q_length == k_length and window is None
    visible = None
    if not (whole and softcap is None and sinks is None):
        position_q = torch.arange(k_length - q_length, k_length, device=query.device)
        distance = position_q[:, None] - torch.arange(k_length, device=query.device)[None, :]
        visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=whole, scale=scale)
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    assert visible is not None
    scores = scores.masked_fill(~visible, float("-inf"))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1, dtype=wide)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1, dtype=wide)
    return torch.matmul(weights.to(value.dtype), value)


class _ExactProducts(torch.autograd.Function):
    """Run a differentiable call with exact CPU products in both directions; the backward recomputes it.

    A context manager around the forward alone would leave the call's backward products fast.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None
    ) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(query, key, value, sinks)
        with exact_cpu_products():
            return call(query, key, value, sinks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad(), exact_cpu_products():
            inputs = [
                None if t is None else t.detach().requires_grad_(n)
                for t, n in zip(ctx.saved_tensors, needed, strict=True)
            ]
            out = ctx.call(*inputs)
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, grad_out))
        return None, *(next(found) if t is not None and t.requires_grad else None for t in inputs)


AttentionInterface.register(NAME, attention)
