"""What every study does around its own jobs: settings that must not be mixed, the run of the jobs, the page's frame.

A study is a folder: `settings.json` (fixed at its first run), `rows/` (one small file a run), `logs/`, and what its page
is made of. Jobs whose product exists are not run again, so a study that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.errors import TruelineError
from trueline.jobs import Failure, Job, run_jobs
from trueline.lab.prepare import locate
from trueline.lab.world import Size
from trueline.wholefile import write_json
from trueline.workers import Crew

FIXED = "Settings: `trueline/studies/settings.py`, committed before the reported seeds were run."
SMOKE_TEST = "**--quick: a smoke test in a tiny world with a few steps. These numbers mean nothing.**\n"


def conduct(
    root: Path,
    settings: Any,
    jobs: Sequence[Job],
    write: Callable[[Sequence[Failure]], Path],
    *,
    workers: int | Crew,
    quick: bool,
    further: dict[str, Any] | None = None,
) -> Path:
    """Run what is missing and write the page. further: what else shapes the numbers (a user's model, say)."""
    if settings.seeds < 2:
        raise TruelineError(f"A study needs at least two seeds for its intervals; found {settings.seeds}.")
    console, begun = Console(), time.perf_counter()
    (root / "rows").mkdir(parents=True, exist_ok=True)
    refuse_other_settings(root, {**asdict(settings), **(further or {})})
    if quick:
        console.print(
            "[bold]--quick[/]: a tiny world and a few steps. It shows that everything works and proves nothing."
        )
    failures = run_jobs(jobs, console, workers, keep_going=True)
    for failure in failures:
        console.print(f"[bold yellow]Not finished:[/] {failure.name}: {failure.reason}", highlight=False)
    page = write(failures)
    console.print(f"Page: {page}   ({time.perf_counter() - begun:.0f} s)", soft_wrap=True, highlight=False)
    return page


def refuse_other_settings(root: Path, settings: dict[str, Any]) -> None:
    """Rows made under other settings must not be mixed with new ones. The number of seeds may grow."""
    file = root / "settings.json"
    now = json.loads(json.dumps({k: v for k, v in settings.items() if k != "seeds"}))
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != now:
        raise TruelineError(f"'{root}' holds a study with other settings. Give another --output, or delete it.")
    write_json(file, now)


def lab_job(root: Path, seed: int, size: Size) -> Job:
    """Preparation of the lab's artefacts of one seed, which other studies share through the cache."""
    at = locate(seed, size)
    journal = (at.folder, "*proxy/trueline/metrics.jsonl")
    return Job(f"lab {seed}", prepare_lab, (seed, size), (), 1, journal, root / "logs" / f"lab-{seed}.log", at.proxy)


def prepare_lab(seed: int, size: Size) -> None:
    from trueline.lab.prepare import prepare

    prepare(seed, size)


def train(options: dict[str, Any], target: str) -> None:
    """A run folder made beside its place and renamed there, so that it is whole once it exists."""
    from trueline.align import align

    place = Path(target)
    beside = place.with_name(f".building-{os.getpid()}-{place.name}")
    shutil.rmtree(beside, ignore_errors=True)
    run = align(**options, output=str(beside))
    if run.status != "finished":
        raise TruelineError(f"The run {place} was {run.status}; start the study again.")
    os.replace(beside, place)


def measured_on(machine: dict[str, Any]) -> str:
    """The page's line about the machine."""
    return (
        f"Measured on {machine.get('cpu', 'an unnamed CPU')}, {machine.get('cores', '?')} cores, "
        f"{machine.get('memory_gb', '?')} GB, torch {machine.get('versions', {}).get('torch', '?')}, {machine.get('date', '')}.\n"
    )


def pyplot() -> Any:
    """Matplotlib for deterministic SVG files."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.hashsalt": "trueline", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    return plt


def save_figure(figure: Any, target: Path) -> None:
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    pyplot().close(figure)
