"""One run of a study: done in a worker, measured, kept as one small JSON row, its weights thrown away.

A row holds the options, the readings of every evaluation, the share of wins on every held-out prompt there, and the
KL: all that tables, figures and verdicts are made of. A run that a later job reads (its weights, its recorded stream)
keeps its folder beside the row, which that job removes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trueline.engine import journal
from trueline.errors import TruelineError
from trueline.wholefile import write_json


@dataclass(frozen=True)
class Row:
    """wins_CP: share of wins on each prompt at each evaluation (empty for reward models). readings: at the end."""

    method: str
    arm: str
    seed: int
    readings: dict[str, float]
    prompts: tuple[str, ...]
    step_C: tuple[float, ...]
    kl_C: tuple[float, ...]
    wins_CP: np.ndarray
    seconds: float
    options: dict[str, Any]
    path_C: tuple[dict[str, float], ...] = ()  # readings of every evaluation
    digest: str = ""  # of the weights it ended with and of every step's loss and gradient norm
    extra: dict[str, Any] = field(default_factory=dict)  # what a study's own `measure` found

    @property
    def win_rate(self) -> float:
        return float(self.wins_CP[-1].mean()) if len(self.wins_CP) else float("nan")

    def reading(self, name: str) -> float:
        return self.win_rate if name == "win_rate" else self.readings.get(name, float("nan"))


def execute(
    name: tuple[str, str, int],
    options: dict[str, Any],
    target: str,
    judge: str | None,
    keep: bool = False,
    measure: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """Run `align` with these options and write the row. name: method, arm and seed. judge: whose wins are kept.

    keep: leave the run's folder beside the row. measure: called with that folder, adds what it returns.
    """
    from trueline.align import align
    from trueline.lab.frontier import read

    file = Path(target)
    folder = file.with_suffix("")
    begun = time.perf_counter()
    run = align(**options, output=str(folder), overwrite=True)
    if run.status != "finished":
        raise TruelineError(f"The run {name} was {run.status}; start the study again.")
    summary = json.loads((folder / "trueline" / "summary.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = {
        "method": name[0],
        "arm": name[1],
        "seed": name[2],
        "readings": {k: r["value"] for k, r in summary["final"].items()},
        "prompts": [],
        "step": [],
        "kl": [],
        "wins": [],
        "seconds": time.perf_counter() - begun,
        "options": options,
        "path": [{k: r["value"] for k, r in e["readings"].items()} for e in run.evals],
        "digest": digest(folder),
    }
    if judge is not None:
        path = read(folder, judge)
        row |= {"prompts": list(path.prompts), "step": path.step_C.tolist(), "kl": path.kl_C.tolist()}
        row["wins"] = np.round(path.wins_CP, 6).tolist()
    if measure is not None:
        row["extra"] = measure(folder)
    write_json(file, row, indent=None)
    if not keep:
        shutil.rmtree(folder)


def digest(folder: Path) -> str:
    """Hash of a run's final weights and of the loss and gradient norm of every step, bit for bit."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    for step in journal.read(folder / "trueline" / "metrics.jsonl"):
        found.update(json.dumps([step["step"], step["loss"], step["grad_norm"]]).encode())
    return found.hexdigest()[:24]


def read_row(file: Path) -> Row:
    """A row that `execute` wrote."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return Row(
        found["method"],
        found["arm"],
        found["seed"],
        found["readings"],
        tuple(found["prompts"]),
        tuple(found["step"]),
        tuple(found["kl"]),
        np.array(found["wins"], dtype=float),
        found["seconds"],
        found["options"],
        tuple(found.get("path", ())),
        found.get("digest", ""),
        found.get("extra", {}),
    )


def read_rows(folder: Path) -> list[Row]:
    """All rows of a study's folder, in order of name."""
    return [read_row(file) for file in sorted(folder.glob("*.json"))]
