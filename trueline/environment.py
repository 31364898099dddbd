"""What a run ran on: versions, processor, memory, threads. Written into every run and printed by `trueline env`.

Nothing here identifies a person or a place: no host name, no user name, and the home folder is written as `~`.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from trueline import __version__

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "safetensors",
    "datasets",
    "numpy",
    "scipy",
    "bitsandbytes",
)


def environment() -> dict[str, Any]:
    """Versions {package: version or None}, processor, memory in GB (10^9 bytes), threads, date (UTC) and command."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {
            "python": platform.python_version(),
            "trueline": __version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_gb": _memory_gb(),
        "gpu": ", ".join(gpus) or None,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def environment_text() -> str:
    """The same as aligned lines, for bug reports. The command is left out: it would only say `trueline env`."""
    facts = environment()
    versions = facts.pop("versions")
    del facts["command"]
    rows = [*versions.items(), *facts.items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {'-' if value is None else value}" for name, value in rows)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Model name of the processor; `platform` knows it on macOS and Windows, Linux keeps it in /proc."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may use, which in a container or under taskset is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    """Physical memory in GB; None where the system does not tell (Windows)."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _command() -> str:
    """The command line as typed, the program by its base name."""
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    home = str(Path.home())
    line = shlex.join(words)
    return line if home == "/" else line.replace(home, "~")
