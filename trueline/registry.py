"""Method families: the decorator that registers a method, and look-up by name at run time.

A method is one function in one file named after it, in its family's folder. Leading positional parameters are what
the engine hands in; keyword-only parameters with defaults are the method's options and nothing else. The static
twin of this module is `catalogue.py`, which reads the same facts from the files without importing them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trueline.errors import TruelineError, nearest

FAMILIES = ("objectives", "sources", "feedback", "adapters", "decode", "measure", "curate")


@dataclass(frozen=True)
class Method:
    """A registered method: `call` is the function, `declared` what its decorator said (needs, arxiv, ...)."""

    name: str
    family: str
    call: Callable[..., Any]
    declared: dict[str, Any]

    def options(self) -> dict[str, Any]:
        """Name and default of every option (keyword-only parameter)."""
        parameters = inspect.signature(self.call).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_METHODS: dict[tuple[str, str], Method] = {}


def method(family: str, **declared: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register the function under its own name. Each family's contract wraps it with its own words."""

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        _METHODS[family, call.__name__] = Method(call.__name__, family, call, declared)
        return call

    return register


def load(family: str, name: str) -> Method:
    """Import the method's file and return it; a name that does not exist is an error with the nearest one."""
    from trueline.catalogue import names

    if name not in names(family):
        raise TruelineError(f"There is no {family} method '{name}'. {nearest(name, names(family))}")
    if (family, name) not in _METHODS:
        importlib.import_module(f"trueline.{family}.{name}")
    return _METHODS[family, name]
