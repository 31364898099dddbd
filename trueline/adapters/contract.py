"""Adapters: which parameters of the model are trained.

An adapter method takes the loaded model and its own options and returns the model to train. The reference of a model
with a fresh adapter is the same model with the adapter off; otherwise it is a frozen copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trueline.registry import method


def adapter(*, arxiv: str | None = None, paper: str | None = None) -> Callable[..., Any]:
    """Register an adapter: `def name(model, *, options) -> model`."""
    return method("adapters", arxiv=arxiv, paper=paper)
