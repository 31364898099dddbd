"""Many pieces of work over a few processes or a Ray cluster: what waits for what, bars, and going on where one stopped.

A job is a function at module level with arguments that can be pickled. Its `product` is a file or folder that exists
once it is done, written under a temporary name and renamed; a job whose product exists is not run again, so a study that
was killed goes on with what is missing. By default two worker processes (`workers.py`) with one thread each: on small models a second thread of
arithmetic gains nothing, and numbers then do not depend on how many cores there are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trueline.errors import TruelineError
from trueline.workers import WORKERS, Crew

MANY = 12  # more jobs than this share one bar


@dataclass(frozen=True)
class Job:
    """A piece of work for one process. after: names of jobs it waits for. journal: the metrics file it writes.

    journal: folder and glob (artefacts are built under a temporary name); steps: how many lines it will have.
    product: exists once the job is done; None for a job that is always run.
    """

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    after: tuple[str, ...]
    steps: int
    journal: tuple[Path, str]
    log: Path
    product: Path | None = None


@dataclass(frozen=True)
class Failure:
    """A job that ended with an error, or was not started because one that it waits for did."""

    name: str
    reason: str


def run_jobs(
    jobs: Sequence[Job], console: Console, workers: int | Crew = WORKERS, *, keep_going: bool = False
) -> list[Failure]:
    """Run every job whose product is missing as soon as what it waits for is done, the earliest in the list first.

    workers: processes of this machine, or a crew. keep_going: a job's error costs that job and those that wait for it, and
    they are returned; otherwise the first error ends everything (what is finished stays). Raises TruelineError for the
    first failing job.
    """
    done = {job.name for job in jobs if job.product is not None and job.product.exists()}
    waiting = [job for job in jobs if job.name not in done]
    bars = _Bars(waiting, console, finished=len(done))
    failures: list[Failure] = []
    running: dict[str, Job] = {}
    if not waiting:
        return []
    crew = workers if isinstance(workers, Crew) else Crew(workers)
    with crew.open() as pool, bars.progress:
        while waiting or running:
            for job in [j for j in waiting if done.issuperset(j.after)][: pool.capacity - len(running)]:
                waiting.remove(job)
                running[job.name] = job
                pool.submit(job.name, _logged, (job,))
                bars.start(job)
            if not running:  # what is left waits for jobs that failed
                failures += [Failure(job.name, "a job it waits for failed") for job in waiting]
                break
            ended = pool.ended(0.5)
            bars.update(running.values())
            for name, error in ended:
                job = running.pop(name)
                if error is not None and not (keep_going and isinstance(error, Exception)):
                    raise _told(error, job) from error
                if error is not None:
                    failures.append(Failure(name, str(error)))
                else:
                    done.add(name)
                bars.end(job)
    return failures


def _told(error: BaseException, job: Job) -> BaseException:
    return TruelineError(f"{job.name}: {error} (log: {job.log})") if isinstance(error, TruelineError) else error


class _Bars:
    """A bar a job, or one bar and the running jobs' names where there are many."""

    def __init__(self, jobs: Sequence[Job], console: Console, finished: int):
        self.progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.many = len(jobs) > MANY
        self.total = len(jobs)
        self.ended = 0
        self.begun = time.monotonic()
        self.tasks: dict[str, TaskID] = {}
        self.whole = self.progress.add_task("all", total=self.total, note="") if self.many else None
        if self.many and finished:
            console.print(f"{finished} jobs were done before; {self.total} are left.", highlight=False)

    def start(self, job: Job) -> None:
        self.tasks[job.name] = self.progress.add_task(job.name, total=job.steps, note="")

    def update(self, running: Any) -> None:
        for job in running:
            self.progress.update(self.tasks[job.name], completed=min(_lines(*job.journal), job.steps))

    def end(self, job: Job) -> None:
        self.ended += 1
        task = self.tasks.pop(job.name)
        self.progress.update(task, completed=job.steps)
        self.progress.stop_task(task)
        if self.whole is not None:
            self.progress.remove_task(task)
            left = (time.monotonic() - self.begun) / self.ended * (self.total - self.ended)
            self.progress.update(self.whole, completed=self.ended, note=f"about {left / 60:.0f} min left")


def _lines(folder: Path, pattern: str) -> int:
    """Lines of the newest matching journal, 0 while there is none."""
    with contextlib.suppress(OSError):  # renamed into place between listing and reading
        files = sorted(folder.glob(pattern), key=lambda f: f.stat().st_mtime)
        return files[-1].read_bytes().count(b"\n") if files else 0
    return 0


def _logged(job: Job) -> None:
    """In the worker: what the job prints goes to its log, so that it does not tear the bars."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        job.call(*job.arguments)
