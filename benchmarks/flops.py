"""Operations of a block of code, counted where PyTorch dispatches them: 2 a multiply-add, matrix products and attention.

Nothing is taken from a formula of the model, so padding, recomputation and repeated prompts count as the work that they
are. A causal attention call counts half of its square. An operator that looks like a product and is not known here is an
error: a count that misses one would be wrong without a sign.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
PRODUCTS = ("mm", "matmul", "linear", "conv", "attention", "einsum", "dot", "mv")
NO_PRODUCTS = {aten._fused_sdp_choice}


def _addmm_inplace(out: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _baddbmm_inplace(out: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return a.shape[0] * _addmm_inplace(out[0], a[0], b[0])


def _vector(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a.numel()


def _flash(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape) // (2 if causal else 1)


def _flash_backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    dropout: float = 0.0,
    causal: bool = False,
    **kwargs: Any,
) -> int:
    whole = sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)
    return whole // (2 if causal else 1)


FORMULAS: dict[Any, Any] = {
    **flop_registry,
    aten.addmm_: _addmm_inplace,
    aten.baddbmm_: _baddbmm_inplace,
    aten.mv: _vector,
    aten.dot: _vector,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


class Counter(TorchDispatchMode):
    """Adds up `flops` while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = FORMULAS.get(packet)
        if formula is None and packet not in NO_PRODUCTS and func is not aten.detach.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            name = packet.__name__.strip("_").split("_")
            if packet not in NO_PRODUCTS and any(p in PRODUCTS or p.endswith("mm") for p in name):
                raise NotImplementedError(
                    f"{packet} looks like a product; add how many operations it takes to FORMULAS."
                )
        out = func(*args, **kwargs)
        if formula is not None:
            own = {k: v for k, v in kwargs.items() if k != "out"}  # mm(a, b, out=buffer): the result has its shape
            self.flops += int(formula(*args, **own, out_val=out))
        return out
