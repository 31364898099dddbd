"""Metrics to TensorBoard, Weights & Biases or trackio, beside `metrics.jsonl`, which is always written."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError, nearest

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}

Tracker = Callable[[int, dict[str, Any]], None]


def trackers(names: list[str], folder: Path, config: dict[str, Any]) -> list[Tracker]:
    """One function `(step, numbers)` for each name; a missing package is an error before the run starts."""
    for name in names:
        if name not in PACKAGES:
            raise TruelineError(f"report_to does not know '{name}'. {nearest(name, PACKAGES)}")
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise TruelineError(f"report_to {name} needs the package: pip install {PACKAGES[name]}.") from error
    return [_tensorboard(folder) if n == "tensorboard" else _run_tracker(n, folder, config) for n in names]


def _tensorboard(folder: Path) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, numbers: dict[str, Any]) -> None:
        for name, value in _finite(numbers).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _run_tracker(name: str, folder: Path, config: dict[str, Any]) -> Tracker:
    """wandb and trackio share one interface: init(project, config), log(numbers, step)."""
    package = importlib.import_module(PACKAGES[name])
    package.init(project="trueline", name=folder.parent.name, config=config)

    def write(step: int, numbers: dict[str, Any]) -> None:
        package.log(_finite(numbers), step=step)

    return write


def _finite(numbers: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in numbers.items() if isinstance(v, (int, float)) and math.isfinite(v)}
