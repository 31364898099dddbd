"""How much memory a run will take, before it takes it.

Counted exactly: weights, gradients, optimiser, reference. Measured: activations, by running two short sequences
through the model and adding up what autograd keeps; the slope is bytes per token, for any architecture, adapter or
precision. Bounded by its setting: the log-prob chunk. Left out: the interpreter and its libraries (about 0.5 GB).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from trueline.config import AlignConfig
from trueline.engine.logprob import chunk_rows

PROBE_TOKENS = (32, 96)
CHUNK_TENSORS = 3  # logits, their exponentials and the gradient of the chunk live at once

ReferenceKind = Literal["none", "adapter_off", "copy"]


def memory_estimate(model: Any, config: AlignConfig, *, reference: ReferenceKind | None = None) -> dict[str, float]:
    """Peak memory of a training step by part, in GB (10^9 bytes), for micro-batches of `config.token_budget` tokens.

    model: the model as it will be trained, adapter included. reference: what scores the reference; when not given,
    what `align` would choose for objectives that read one.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(_bytes(p) for p in trained)
    weights = _weight_bytes(model)
    per_token = activation_bytes_per_token(model)
    if config.gradient_checkpointing:
        per_token = min(per_token, _checkpointed_bytes_per_token(model, per_token))
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 2 * gradients,  # AdamW's two means
        "reference": weights if (reference or _reference_kind(model, config)) == "copy" else 0,
        "activations": per_token * config.token_budget,
        "log_prob_chunk": _chunk_bytes(model, config.token_budget),
    }
    estimate = {name: round(size / 1e9, 4) for name, size in parts.items()}
    return {**estimate, "total": round(sum(parts.values()) / 1e9, 4)}


def activation_bytes_per_token(model: Any) -> float:
    """Bytes autograd keeps per token of the body's forward: the slope between two short sequences."""
    short, long = (_saved_bytes(model, n) for n in PROBE_TOKENS)
    return (long - short) / (PROBE_TOKENS[1] - PROBE_TOKENS[0])


def _saved_bytes(model: Any, tokens: int) -> int:
    """Bytes of distinct storages that one forward of the body saves for backward; parameters are not counted twice."""
    owned = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # holds every saved tensor, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    device = next(model.parameters()).device
    ids = torch.zeros((1, tokens), dtype=torch.long, device=device)
    with _plain_attention(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = _body(model)(input_ids=ids, use_cache=False)
    del output
    return sum(seen.values())


def _body(model: Any) -> nn.Module:
    """The transformer without its head, adapters inside it included."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """The engine's attention needs a layout; what it saves per token is what the fused kernel saves."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("sdpa" if getattr(inner, "_supports_sdpa", False) else "eager")
    try:
        yield
    finally:
        inner.config._attn_implementation = before


def _checkpointed_bytes_per_token(model: Any, per_token: float) -> float:
    """With checkpointing: each layer's input, and one layer's activations while it is recomputed."""
    text = model.config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    width = torch.finfo(next(p for p in model.parameters() if p.is_floating_point()).dtype).bits // 8
    return layers * hidden * width + per_token / layers


def _chunk_bytes(model: Any, tokens: int) -> int:
    """What the log-prob of one chunk of at most `tokens` rows holds; a scalar head needs nothing worth counting."""
    if model.get_output_embeddings() is None:
        return 0
    vocabulary = int(model.config.get_text_config().vocab_size)
    return CHUNK_TENSORS * min(chunk_rows(vocabulary), tokens) * vocabulary * 4


def _reference_kind(model: Any, config: AlignConfig) -> ReferenceKind:
    """What `align` chooses: nothing for objectives without a reference, the adapter off, or a frozen copy."""
    from trueline.registry import load

    if config.reference is not None:
        return "copy"
    if not any(load("objectives", name).declared["reference"] for name in config.objective):
        return "none"
    return "adapter_off" if config.adapter != "full" else "copy"


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, tied ones once; 4-bit layers count what they store."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in model.state_dict().values()
        if torch.is_tensor(t)
    }
    return sum(storages.values())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
