"""`trueline demo`: the main job on the embedded lab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Repeat everything with this many seeds, for a table.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny setting: shows that it works, proves nothing.")
    ] = False,
) -> None:
    """Align one lab model offline, online judged by a proxy, and online judged by gold; write the comparison."""
    from trueline.lab.demo import demo as run

    run(output=str(output), seeds=seeds, quick=quick)
