"""Measures the rows: rounds of alternating processes, families of sides over the cores, numbers out of them."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.rows import FAMILIES, ROWS, SIDES, Result, Row
from benchmarks.workload import Sizes

HERE = Path(__file__).parent
COUNTS = HERE / "peers" / "operations.json"  # counted once: they do not depend on the machine
Measured = dict[str, list[Result]]  # side -> a result a round
Say = Callable[[str], None]


@dataclass
class Bench:
    """One run of the bench. rounds: times that every family is gone through. lanes: families measured at once, each on a
    core of its own."""

    sizes: Sizes
    rounds: int = 3
    lanes: int = 2
    say: Say = print
    measured: Measured = field(default_factory=dict)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self, rows: Sequence[Row], folder: Path | None = None) -> dict[str, dict[str, Any]]:
        """Measure these rows; {name: entry of results.json}. Raises RuntimeError with the last lines of a side that failed."""
        with tempfile.TemporaryDirectory() as temporary:
            self.folder = folder or Path(temporary)
            self._child("prepare", "time", core=None)
            wanted = {side for row in rows for side in row.sides}
            self._in_lanes(
                [[s for s in family if s in wanted] for family in FAMILIES if wanted & set(family)], self._alternate
            )
            counted = {side for row in rows if row.counted for side in row.sides}
            self._in_lanes(
                [[side] for side in SIDES if side in counted], lambda sides, core: self._count(sides[0], core)
            )
            entries = {row.name: self._entry(row) for row in rows}
            profiles: dict[str, str] = {}  # of our sides
            for row in rows:
                if row.profiled and not entries[row.name]["met"]:
                    if row.ours not in profiles:
                        profiles[row.ours] = self._child(row.ours, "profile", core=None)["profile"]
                    entries[row.name]["profile"] = profiles[row.ours]
        return entries

    def _in_lanes(self, work: list[list[str]], call: Callable[[list[str], int | None], None]) -> None:
        """Call with every list of sides, `lanes` at a time; the first failure stops all."""
        waiting: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        for sides in work:
            waiting.put(sides)
        failures: list[BaseException] = []

        def lane(core: int | None) -> None:
            while not failures:
                try:
                    sides = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    call(sides, core)
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=lane, args=(core,)) for core in cores(self.lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _alternate(self, sides: list[str], core: int | None) -> None:
        """Every side once a round, in turn; the order is turned round every other time."""
        for number in range(self.rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                if number < (SIDES[side].repeats or self.rounds):
                    result = self._child(side, "time", core)
                    self.measured.setdefault(side, []).append(result)
                    self.say(f"round {number + 1} {side}: {result['seconds']:.2f} s, {result['peak_gb']:.2f} GiB")

    def _count(self, side: str, core: int | None) -> None:
        """Operations of a side: a peer's from the file, if its settings and versions are those of the count."""
        peer = SIDES[side].call.startswith("benchmarks.peers.")
        key = f"{side} {fingerprint(side, self.sizes)}"
        known = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}
        if not (peer and key in known):
            result = self._child(side, "count", core)
            known = {key: {"flops": result["flops"], "units": result["units"]}}
            self.say(f"counted {side}: {result['flops'] / 1e9:.1f} G operations")
            if peer and self.sizes.label == "full":
                with _count_file:
                    before = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}
                    before = {k: v for k, v in before.items() if k.split()[0] != side}
                    COUNTS.write_text(json.dumps({**before, **known}, indent=2, sort_keys=True) + "\n")
        self.counts[side] = known[key]

    def _child(self, side: str, mode: str, core: int | None) -> Result:
        command = [sys.executable, "-m", "benchmarks.side", side, "--folder", str(self.folder)]
        command += ["--scale", self.sizes.label, "--mode", mode]
        cache = tempfile.mkdtemp(dir=self.folder)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRUELINE_CACHE": cache,
        }
        pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
        done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, preexec_fn=pin)
        if done.returncode:
            raise RuntimeError(f"The side '{side}' failed ({mode}):\n{(done.stderr or done.stdout)[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1]) if side != "prepare" else {}

    def _entry(self, row: Row) -> dict[str, Any]:
        """The row's numbers, the figures behind them, and the ratio of operations where they were counted."""
        values = row_values(row, self.measured, self.counts)
        middle = statistics.median(values)
        entry: dict[str, Any] = {
            "ratio_median": middle,
            "ratio_min": min(values),
            "ratio_max": max(values),
            "target": row.must,
            "met": row.met(middle),
            "rounds": len(values),
            "sides": {side: _medians(self.measured[side]) for side in row.sides},
        }
        if row.counted and row.peer:
            peer, ours = self.counts[row.peer], self.counts[row.ours]
            entry["flop_ratio"] = (peer["flops"] / peer["units"]) / (ours["flops"] / ours["units"])
        return entry


_count_file = threading.Lock()


def row_values(row: Row, measured: Measured, counts: dict[str, dict[str, float]]) -> list[float]:
    """The row's number in every round: side by side, what was measured in the same round."""
    values: list[float] = []
    for results in zip(*(measured[side] for side in row.sides), strict=True):
        counted = [{**r, **counts.get(side, {})} for side, r in zip(row.sides, results, strict=True)]
        found = row.compare(*counted)
        values += found if isinstance(found, list) else [found]
    return values


def _medians(results: list[Result]) -> dict[str, Any]:
    """Medians over the rounds of every number; anything else as the last round gave it."""
    kept = dict(results[-1])
    for name, value in kept.items():
        if isinstance(value, int | float):
            kept[name] = statistics.median(r[name] for r in results)
    return kept


def cores(lanes: int) -> list[int | None]:
    """A core for each lane; no pinning where the system cannot or there are too few."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not usable:
        return [None] * lanes
    return [*usable[-lanes:]]


def fingerprint(side: str, sizes: Sizes) -> str:
    """Of everything that a peer's operations depend on: settings, the peers' files, the workload and the versions."""
    body: list[Any] = [SIDES[side].call, SIDES[side].settings, asdict(sizes)]
    module = SIDES[side].call.split(":")[0].removeprefix("benchmarks.").replace(".", "/")
    body += [(HERE / f"{module}.py").read_text(encoding="utf-8"), (HERE / "workload.py").read_text(encoding="utf-8")]
    body += [metadata.version(name) for name in ("torch", "transformers", "trl")]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


def machine() -> str:
    """What the numbers were measured on, in a line."""
    from trueline.environment import environment

    facts = environment()
    versions = facts["versions"]
    gpu = f", {facts['gpu']}" if facts["gpu"] else ""
    return (
        f"{facts['cpu']}{gpu}, {facts['cores']} cores, {facts['memory_gb']:.0f} GB, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, TRL {metadata.version('trl')}, {facts['date'][:10]}"
    )


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """The rows of these names in the table's order, all for none. Exits with the names that there are."""
    known = [row.name for row in ROWS]
    if wrong := [name for name in names if name not in known]:
        sys.exit(f"There is no row {', '.join(wrong)}. Rows: {', '.join(known)}.")
    return [row for row in ROWS if not names or row.name in names]
