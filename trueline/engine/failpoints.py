"""Named points at which a test may kill the process, to prove that a run survives it.

`TRUELINE_FAILPOINT="checkpoint.rename.before:2"` makes the process send itself SIGKILL, which nothing can catch, the
second time it reaches that point (`:1` may be left out). Unset, a point costs one comparison. A name that does not
exist is an error, so a misspelt one cannot make a crash test pass by never crashing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from trueline.errors import TruelineError, nearest

VARIABLE = "TRUELINE_FAILPOINT"

# Every point of the code base, and where it stands.
POINTS = {
    "checkpoint.weights.middle": "half of a safetensors file of a checkpoint is written",
    "checkpoint.rename.before": "a checkpoint is written and synced, but does not have its name yet",
    "checkpoint.rename.after": "a checkpoint has its name; older ones are not pruned yet",
    "metrics.line.middle": "half of a line of metrics.jsonl is written",
    "stream.line.middle": "half of a line of stream.jsonl is written",
    "sampling.middle": "responses are being sampled",
    "scorecache.build.middle": "half of a shard of the score cache is written",
}


class _Armed:
    """The point named in the environment and how many more hits it survives."""

    def __init__(self, setting: str):
        name, _, count = setting.partition(":")
        if name not in POINTS:
            raise TruelineError(f"{VARIABLE} names '{name}', which is not a fail-point. {nearest(name, POINTS)}")
        if not (count or "1").isdecimal() or int(count or 1) < 1:
            raise TruelineError(f"{VARIABLE}={setting}: after the colon must stand a count from 1 up, found '{count}'.")
        self.name = name
        self.left = int(count or 1)


def arm(setting: str | None) -> None:
    """Arm one point of this process, as the environment does at start; None or "" disarms."""
    global _armed
    _armed = _Armed(setting) if setting else None


_armed: _Armed | None = None
arm(os.environ.get(VARIABLE))


def hit(name: str) -> None:
    """Pass the point `name`; die there by SIGKILL if the environment says so."""
    if _armed is None:
        return
    if name not in POINTS:
        raise RuntimeError(f"'{name}' is not in failpoints.POINTS")
    if name == _armed.name:
        _armed.left -= 1
        if _armed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def pieces(name: str, data: bytes) -> Iterator[bytes]:
    """`data` as it should be written: whole, or, where the point `name` is armed, in two halves around it."""
    if _armed is None or _armed.name != name:
        yield data
        return
    half = len(data) // 2
    yield data[:half]
    hit(name)
    yield data[half:]
