"""Tasks for worker processes, in a module that imports next to nothing: every worker imports it anew."""

import os
import signal
import time
from pathlib import Path

from trueline.errors import TruelineError
from trueline.wholefile import write_whole


def square(number, folder, kill_once=False):
    """A task: its product, and a line for every time it was begun. Once it kills its own process while at work."""
    place = Path(folder)
    with (place / f"begun-{number}").open("a") as begun:
        begun.write(f"{os.getpid()}\n")
    killed = place / f"killed-{number}"
    if kill_once and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write_whole(place / f"{number}.txt", str(number * number))


def always_killed(number, folder):
    os.kill(os.getpid(), signal.SIGKILL)


def refused(number, folder):
    raise TruelineError(f"row {number} is no number")


def endless(folder):
    (Path(folder) / f"pid-{os.getpid()}").touch()
    time.sleep(600)


def longest(completions, **columns):
    """A judge that kills its own process once, where the environment names a file that says it has."""
    target = os.environ.get("TRUELINE_TEST_KILL")
    if target and any(c.endswith("x") for c in completions):
        try:
            Path(target).touch(exist_ok=False)
        except FileExistsError:
            return [float(len(c)) for c in completions]
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(c)) for c in completions]
