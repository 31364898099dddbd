"""The catalogue of methods, read from their files without importing them (so without torch).

`trueline methods`, `--help`, the option schema and the docs pages all come from here. A test keeps what is read
here equal to the runtime signatures.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueline.registry import FAMILIES

PACKAGE = Path(__file__).parent
NOT_METHODS = {"__init__", "contract"}


@dataclass(frozen=True)
class Option:
    """One keyword argument of a method: `type` is its annotation as written, `default` a literal."""

    name: str
    type: str
    default: Any
    required: bool = False


@dataclass(frozen=True)
class Entry:
    """One method as its file describes it: `declared` is what its decorator says, `doc` the whole module docstring."""

    name: str
    family: str
    paper: str
    arxiv: str | None
    summary: str
    file: str
    needs: str | None
    doc: str
    options: tuple[Option, ...]
    declared: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        keys = ("name", "family", "paper", "arxiv", "summary", "file")
        return {k: getattr(self, k) for k in keys}


@functools.cache
def entries(family: str | None = None) -> tuple[Entry, ...]:
    """Every method of one family, or of all, in alphabetical order within a family."""
    families = FAMILIES if family is None else (family,)
    found = []
    for name in families:
        for file in sorted((PACKAGE / name).glob("*.py")):
            if file.stem not in NOT_METHODS and not file.stem.startswith("_"):
                found.append(_read(file, name))
    return tuple(found)


def names(family: str) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries(family))


def entry(family: str, name: str) -> Entry:
    return next(e for e in entries(family) if e.name == name)


def _read(file: Path, family: str) -> Entry:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree) or ""
    function = next(
        (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == file.stem and n.decorator_list), None
    )
    if function is None or not doc:
        raise RuntimeError(f"{file}: a method file needs a docstring and one decorated function '{file.stem}'")
    declared: dict[str, Any] = {}
    decorator = function.decorator_list[0]
    if isinstance(decorator, ast.Call):
        for keyword in decorator.keywords:
            value = keyword.value
            declared[keyword.arg or ""] = value.value if isinstance(value, ast.Constant) else ast.unparse(value)
    options = []
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        annotation = ast.unparse(argument.annotation) if argument.annotation else "str"
        literal = None if default is None else ast.literal_eval(default)
        options.append(Option(argument.arg, annotation, literal, required=default is None))
    title = doc.splitlines()[0].strip()
    return Entry(
        name=file.stem,
        family=family,
        paper=str(declared.get("paper", title)),
        arxiv=declared.get("arxiv"),
        summary=title,
        file=f"trueline/{family}/{file.name}",
        needs=declared.get("needs"),
        doc=doc,
        options=tuple(options),
        declared=declared,
    )
