"""The command line of `trueline align` as a recipe path and a dict of options.

    [RECIPE] (--name VALUE... | --name=VALUE | --switch | --no-switch | name.dotted=VALUE)...

Names are not checked here: `options.py` knows them. A flag takes every value up to the next flag, so `--data a b` and
`--data a --data b` are the same list; a flag without a value means true.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError

OVERRIDE = re.compile(r"^([A-Za-z_][\w\-]*(?:\.[\w\-]+)*)=(.*)$", re.DOTALL)
FLAG = re.compile(r"^--?[A-Za-z_]")  # a leading minus before a digit or a dot is a negative number


def parse(tokens: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The recipe (the first token, if it is neither a flag nor an override) and the options as written."""
    recipe = tokens[0] if tokens and not FLAG.match(tokens[0]) and not _override(tokens[0]) else None
    given: dict[str, list[str | bool]] = {}
    current: str | None = None
    for token in tokens[1:] if recipe else tokens:
        if FLAG.match(token):
            current = _flag(token, given)
        elif current is not None and (given[current] == [] or not _override(token)):
            given[current].append(token)
        elif match := _override(token):
            current = None
            given.setdefault(match[1], []).append(match[2])
        else:
            raise TruelineError(f"'{token}' stands alone. Write --name VALUE or name=VALUE; a recipe stands first.")
    return recipe, {name: _value(values) for name, values in given.items()}


def _override(token: str) -> re.Match[str] | None:
    """`objectives.dpo.beta=0.2`; a file of that name is a file."""
    match = OVERRIDE.match(token)
    return match if match and not Path(token).exists() else None


def _flag(token: str, given: dict[str, list[str | bool]]) -> str | None:
    """Note a flag; returns its name if values may follow."""
    if not token.startswith("--"):
        raise TruelineError(f"'{token}': options of align have long names only, such as --output runs/a.")
    name, equals, value = token[2:].partition("=")
    if equals:
        given.setdefault(name, []).append(value)
        return None
    if name.startswith(("no-", "no_")):
        given.setdefault(name[3:], []).append(False)
        return None
    if given.get(name) == []:
        raise TruelineError(f"--{name} is given twice without a value. Keep one.")
    given.setdefault(name, [])
    return name


def _value(values: list[str | bool]) -> Any:
    if not values:
        return True
    return values[0] if len(values) == 1 else values
