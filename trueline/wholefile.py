"""Small files that are whole once they exist: written beside their place under a name of this process, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_whole(target: Path, text: str, *, errors: str = "strict") -> Path:
    """Put the text in place at once, in a folder that is made where it is missing. errors: of the UTF-8 encoder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{os.getpid()}-{target.name}.tmp")  # no pattern for finished files finds it
    beside.write_text(text, encoding="utf-8", errors=errors)
    os.replace(beside, target)
    return target


def write_json(target: Path, content: Any, *, indent: int | None = 1) -> Path:
    """A JSON file; what JSON does not know is written as text."""
    return write_whole(target, json.dumps(content, indent=indent, ensure_ascii=False, default=str) + "\n")


def write_lines(target: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A JSON-lines file."""
    return write_whole(target, "".join(json.dumps(row) + "\n" for row in rows))
