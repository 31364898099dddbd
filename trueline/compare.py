"""`trueline compare RUN... --output gap.html`: several runs on one page, and what may be said of their gap."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trueline.report.build import page, write
from trueline.report.outcome import verdict
from trueline.report.record import load_all

Folder = str | os.PathLike[str]


def compare(folders: Sequence[Folder], output: Folder = "gap.html") -> Path:
    """Write the page that compares these run folders and return its path.

    Win rates are compared only where runs share judge, prompts and opponent; otherwise the page says why not. Raises
    TruelineError for a folder that holds no run, a folder given twice, or damaged files.
    """
    return write(page(load_all(folders)), Path(output))


def sentences(folders: Sequence[Folder]) -> list[str]:
    """The verdict as the page states it, for a terminal: refusals first, then who won and by how much."""
    found = verdict(load_all(folders))
    return [*found.refusals, *found.sentences]
