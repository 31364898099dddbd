"""Trueline: get a model true, and measure how far off the line it still is.

`trueline.align(...)` is `trueline align ...` from Python. Importing the package imports neither torch nor
transformers; they are loaded by the first call that needs them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueline.run import Run

__version__ = "0.1.0"
__all__ = ["__version__", "align"]


def align(**options: Any) -> Run:
    """Align a model; keywords are the options of `trueline align --help`. Returns the finished run."""
    from trueline.align import align as run

    return run(**options)


class _Package(ModuleType):
    """Keeps `trueline.align` the function: importing the module of that name would otherwise put itself there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "align" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
