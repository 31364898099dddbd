"""`trueline compare` and `trueline report`: pages from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, the baseline first.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("gap.html"),
) -> None:
    """Write one page that says how far several runs are apart, with intervals."""
    from trueline import compare as comparing

    page = comparing.compare(folders, output)
    for sentence in comparing.sentences(folders):
        Console().print(sentence, highlight=False, markup=False)
    _say(page)


def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write a run's report again, from its saved files."""
    from trueline.report.build import report as write

    _say(write(folder))


def _say(page: Path) -> None:
    Console().print(f"Report: {page}", soft_wrap=True, highlight=False, markup=False)
