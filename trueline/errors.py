"""The one exception a user is meant to read.

Every message says what was found, what was expected and what to do. The command line prints it without a
traceback and exits with code 2; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TruelineError(Exception):
    """Bad input, an illegal combination or a run that must not go on. The text is meant for the user."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that suggests the closest valid name, or lists them all when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Valid names: {', '.join(names)}."
