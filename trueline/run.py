"""The run folder: what a run writes, when it may be started or resumed, and what `align` returns."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueline.config import AlignConfig
from trueline.engine.journal import Journal
from trueline.errors import TruelineError
from trueline.wholefile import write_json

JOURNALS = ("metrics", "timing", "evals", "samples", "stream", "alarms")

# Options that a resume may change without being asked: they do not alter what is learned.
FREE_ON_RESUME = {
    "output",
    "resume",
    "overwrite",
    "accept_changes",
    "report_to",
    "save_steps",
    "save_total_limit",
    "offline",
    "dry_run",
    "max_nonfinite_steps",
    "kl_budget",
    "shard",
}


@dataclass
class RunFolder:
    """Paths and journals of one run. `ours` is the `trueline/` folder inside the Hugging Face folder `root`."""

    root: Path
    journals: dict[str, Journal] = field(default_factory=dict)

    @property
    def ours(self) -> Path:
        return self.root / "trueline"

    @property
    def checkpoints(self) -> Path:
        return self.ours / "checkpoints"

    @classmethod
    def open(cls, config: AlignConfig) -> RunFolder:
        """Make or reopen the folder, an overwritten run gone. Raises TruelineError as `check_free` does."""
        cls.check_free(config)
        folder = cls(Path(config.output) if config.output else _next_free(config))
        if config.overwrite and (folder.ours / "config.json").exists():
            shutil.rmtree(folder.root)
        folder.ours.mkdir(parents=True, exist_ok=True)
        folder.journals = {name: Journal(folder.ours / f"{name}.jsonl") for name in JOURNALS}
        return folder

    @classmethod
    def check_free(cls, config: AlignConfig) -> None:
        """Refuse a folder that holds a run without resume or overwrite, and one that holds something else."""
        if config.output is None:
            if config.resume:
                raise TruelineError("resume needs output, the folder of the run to go on with.")
            return
        root = Path(config.output)
        folder = cls(root)
        used = (folder.ours / "config.json").exists()
        if used and not (config.resume or config.overwrite):
            raise TruelineError(
                f"'{root}' already holds a run. Give --resume to go on with it, --overwrite to delete it, or another --output."
            )
        if config.resume and not used:
            raise TruelineError(f"There is no run to resume in '{root}': {folder.ours / 'config.json'} is missing.")
        if not used and root.exists() and any(root.iterdir()):
            raise TruelineError(f"'{root}' is not empty and holds no run of ours. Give an empty or new --output.")

    def check_same(self, config: AlignConfig) -> None:
        """On resume: every option that shapes the result must be as recorded, unless accept_changes."""
        recorded = json.loads((self.ours / "config.json").read_text(encoding="utf-8"))
        now = config.model_dump(mode="json")
        changed = [k for k in now if k not in FREE_ON_RESUME and recorded.get(k) != now[k]]
        if changed and not config.accept_changes:
            list_ = "; ".join(f"{k}: was {recorded.get(k)!r}, now {now[k]!r}" for k in changed)
            raise TruelineError(
                f"This run was started with other options ({list_}). Give --accept-changes if you mean it."
            )

    def truncate_after(self, step: int) -> None:
        """Drop every journal line past a checkpoint, so that the resumed run writes them again."""
        for journal in self.journals.values():
            journal.truncate_after(step)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one of our JSON files, whole once it exists."""
        write_json(self.ours / name, content, indent=2)

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self.ours / name).read_text(encoding="utf-8"))


def _next_free(config: AlignConfig) -> Path:
    stem = "-".join(config.objective)
    number = 1
    while Path("runs", f"{stem}-{number}").exists():
        number += 1
    return Path("runs", f"{stem}-{number}")


@dataclass
class Run:
    """A finished (or interrupted) run: its folder, its numbers, and its model."""

    folder: Path
    config: AlignConfig
    status: str
    final: dict[str, dict[str, Any]]
    model: Any = None
    tokenizer: Any = None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, as in `metrics.jsonl`."""
        from trueline.engine.journal import read

        return read(self.folder / "trueline" / "metrics.jsonl")

    @property
    def evals(self) -> list[dict[str, Any]]:
        """One dict an evaluation, as in `evals.jsonl`."""
        from trueline.engine.journal import read

        return read(self.folder / "trueline" / "evals.jsonl")


class StopRequest:
    """Set by SIGTERM or SIGINT: the loop finishes its step, saves and returns."""

    requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """While open, the first SIGTERM or SIGINT asks for a stop; a second one acts at once."""
    stop = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread, where Python allows no handlers: the caller handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopwatch:
    """Seconds per named phase of a step, and totals over the run."""

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.total: dict[str, float] = {}
        self.started = time.perf_counter()
        self._taken = self.started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.step[name] = self.step.get(name, 0.0) + spent
            self.total[name] = self.total.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        """Seconds since the last call (or `reset`), as "seconds", and of each phase in that time."""
        now = time.perf_counter()
        taken, self.step = {"seconds": now - self._taken, **self.step}, {}
        self._taken = now
        return taken

    def reset(self) -> None:
        """What came since the last `take` (set-up, an evaluation, a checkpoint) belongs to no step."""
        self.step, self._taken = {}, time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started
