"""Exact or fast matrix products.

`fast` lets fp32 matrix products run in bf16 with fp32 accumulation and fp32 results; everything between products
(softmax, norms, log-sum-exp, the optimiser) stays fp32. On CPUs with AMX that is 1.5 to 1.7 times faster a step. It
is a property of a run: recorded in its configuration and in the key of cached scores, because exact and fast
log-probs differ by about 1e-2 and must not mix. Attention switches it off for itself (`exact_cpu_products`): the flash
kernel is several times slower with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from trueline.errors import TruelineError

PRECISIONS = ("exact", "fast")
_CPU: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009  (torch's stubs do not know the attribute)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Run the block's matrix products exactly or fast; wrap forward *and* backward in the same block.

    On CUDA, fast is bf16 autocast for the model's products and TF32 for those that stay fp32 (log-prob head).
    """
    if precision not in PRECISIONS:
        raise TruelineError(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}.")
    fast = precision == "fast"
    with ExitStack() as stack:
        stack.enter_context(_setting(_CPU, "bf16" if fast else "ieee"))
        if torch.cuda.is_available():
            stack.enter_context(_setting(torch.backends.cuda.matmul, "tf32" if fast else "ieee"))
            stack.enter_context(torch.autocast("cuda", dtype=torch.bfloat16, enabled=fast))
        yield


def fast_cpu_products() -> bool:
    """Whether fp32 products on the CPU run in bf16 here and now."""
    return _CPU.fp32_precision == "bf16"


@contextmanager
def exact_cpu_products() -> Iterator[None]:
    """Switch fast CPU products off for a block, whatever the surroundings chose."""
    with _setting(_CPU, "ieee"):
        yield


@contextmanager
def _setting(backend: Any, value: str) -> Iterator[None]:
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
    finally:
        backend.fp32_precision = before
