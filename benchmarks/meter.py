"""What a side measures about itself: the timed region, its floating-point operations, memory, the rate of plain products.

Operations are counted (`flops.py`) in a process of their own, because counting takes time.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from benchmarks.flops import Counter


class Meter:
    """Seconds (or, with count, operations) of what happens inside `region`; `profile` keeps a table of operators.

    A region may be entered several times; its figures add up.
    """

    def __init__(self, mode: str = "time"):
        assert mode in ("time", "count", "profile"), mode
        self.mode = mode
        self.seconds = 0.0
        self.flops = 0
        self.imports_gb = 0.0
        self.table = ""

    @contextmanager
    def region(self) -> Iterator[None]:
        with ExitStack() as stack:
            counter = stack.enter_context(Counter()) if self.mode == "count" else None
            profiler: Any = None
            if self.mode == "profile":
                profiler = stack.enter_context(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]))
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            if counter is not None:
                self.flops += counter.flops
        if profiler is not None:
            self.table = _shares(profiler)

    def loaded(self) -> None:
        """Call once all libraries are imported and before any weight is read."""
        self.imports_gb = resident_gb()


def _shares(profiler: Any, rows: int = 10) -> str:
    """The operators that take most of the time of their own, as a Markdown table."""
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    whole = sum(e.self_cpu_time_total for e in events) or 1
    lines = ["| operator | share of the time | calls |", "|---|---|---|"]
    lines += [f"| `{e.key[:60]}` | {e.self_cpu_time_total / whole:.1%} | {e.count} |" for e in events[:rows]]
    return "\n".join(lines)


def peak_gb() -> float:
    """The most memory this process has held, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_gb() -> float:
    """What this process holds now, in GiB; its peak where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 2**20
    except (OSError, StopIteration):
        return peak_gb()


def gemm_rate(rows: int = 2048, widths: tuple[int, ...] = (512, 1024, 2048), seconds: float = 0.3) -> float:
    """The best rate of fp32 matrix products here and now, in operations per second: what a step is measured against."""
    best = 0.0
    for width in widths:
        a, b = torch.randn(rows, width), torch.randn(width, width)
        out = a @ b
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            torch.mm(a, b, out=out)
            done += 1
        best = max(best, 2 * rows * width * width * done / (time.perf_counter() - start))
    return best
