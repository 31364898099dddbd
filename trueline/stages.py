"""Runs in stages: supervised fine-tuning, then offline, then online, each on what the one before it made.

    output: runs/lions          a recipe with shared options and a list of stages
    max_length: 512
    stages:
      - {name: sft, objective: sft, model: base, data: [demonstrations.jsonl]}
      - {name: offline, objective: dpo, data: [pairs.jsonl]}
      - {name: rm, from: sft, objective: bt, data: [pairs.jsonl]}
      - {name: online, from: offline, objective: dpo, source: policy, feedback: ["reward:{stages.rm}"], data: [prompts.jsonl]}

A stage takes the shared options, its own over them, and flags over both (`--stages.online.beta 0.2` for one stage
alone). It starts from the model of the stage before it, or of the one that `from` names; that model is also its
reference unless it names another, so every stage's KL is to its own start (LIONs, arXiv 2407.06542; Cascade RL,
arXiv 2508.18265). `{stages.NAME}` in a text is that stage's folder. Each is a run folder OUTPUT/stage-N-NAME.

`stages.json` has every stage's resolved options. With resume, a stage that is finished is not run again, one that was
cut short goes on from its checkpoint, and options of a finished stage must be as they were.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError, nearest
from trueline.launch import read_launch
from trueline.options import Layer, Resolved, canonical, resolve_layers
from trueline.run import FREE_ON_RESUME, Run
from trueline.saving import MARKERS
from trueline.wholefile import write_json

FILE = "stages.json"
NAME = re.compile(r"^[a-z0-9][a-z0-9_-]*$")
PLACE = re.compile(r"\{stages\.([^}]*)\}")
WHOLE_RUN = ("output", "resume", "overwrite", "accept_changes", "dry_run")  # said of the whole, not of a stage


@dataclass(frozen=True)
class Stage:
    """One stage. resolved: its options in full; folder: its run."""

    name: str
    folder: Path
    resolved: Resolved

    @property
    def finished(self) -> bool:
        """Whether its run ended and its model is there: a process may die between the two."""
        summary = self.folder / "trueline" / "summary.json"
        if not summary.exists() or not any((self.folder / marker).exists() for marker in MARKERS):
            return False
        return str(json.loads(summary.read_text(encoding="utf-8"))["status"]) == "finished"

    def standing(self) -> tuple[bool, bool]:
        """Whether it is finished, and whether it was begun; what died before its first record is removed."""
        begun = (self.folder / "trueline" / "config.json").exists()
        if self.folder.exists() and not begun:
            shutil.rmtree(self.folder)
        return self.finished, begun


def align_stages(recipe: Mapping[str, Any], origin: str = "align_stages()", **flags: Any) -> list[Run]:
    """Run the stages that are not finished, in order, and return their runs. flags: options over the recipe's.

    Ends early after a stage that was interrupted. Raises TruelineError before anything is run where a stage's options
    cannot work.
    """
    from trueline.engine.parallel import joined, world

    root, whole, stages = plan(recipe, origin, flags)
    if whole.get("dry_run"):
        raise TruelineError("dry_run shows a run's first batch, and later stages have no model yet. Leave it out.")
    with joined(read_launch(os.environ)):  # one group of processes for all stages
        world().from_first(lambda: _open(root, whole, stages))
        return _run(stages, whole)


def _run(stages: list[Stage], whole: Mapping[str, Any]) -> list[Run]:
    """Over several processes the first one looks at the disk, and all do what it found."""
    from trueline.align import align
    from trueline.engine.parallel import world

    runs = []
    for stage in stages:
        config = stage.resolved.config
        finished, begun = world().from_first(stage.standing)
        if finished:
            continue
        accept = bool(begun and whole.get("accept_changes"))
        runs.append(align(**{**config.model_dump(), "resume": begun, "accept_changes": accept}))
        if runs[-1].status != "finished":
            break
    return runs


def plan(recipe: Mapping[str, Any], origin: str, flags: Mapping[str, Any]) -> tuple[Path, dict[str, Any], list[Stage]]:
    """The output folder, the options of the whole, and every stage with its options resolved."""
    shared = {k: v for k, v in recipe.items() if k != "stages"}
    blocks = _blocks(recipe["stages"], origin)
    general, own = _split(flags, [b["name"] for b in blocks])
    said = {canonical(k): v for k, v in (*shared.items(), *general.items())}
    whole = {name: said[name] for name in WHOLE_RUN if name in said}
    if not whole.get("output"):
        raise TruelineError(f"{origin} has stages and needs output, the folder that holds them all.")
    root = Path(str(whole["output"]))
    folders = {b["name"]: root / f"stage-{i}-{b['name']}" for i, b in enumerate(blocks, 1)}
    stages: list[Stage] = []
    for block in blocks:
        name = block["name"]
        values = {k: v for k, v in block.items() if k not in ("name", "from")}
        before = _before(block, [s.name for s in stages], origin)
        inherited = {"output": str(folders[name])}
        if before is not None:
            inherited["model"] = str(folders[before])
        known = [s.name for s in stages]
        layers = (
            Layer(_placed(_without(shared, ("model",) if before else ()), folders, known), origin),
            Layer(_placed(values, folders, known), f"stage {name} of {origin}"),
            Layer(_placed(_without(general, ("model",) if before else ()), folders, known), "command line"),
            Layer(_placed(own.get(name, {}), folders, known), f"command line, stage {name}"),
            Layer(inherited, f"stage {name}"),
        )
        stages.append(Stage(name, folders[name], resolve_layers(*layers)))
        _refuse_unusable_start(block, stages[:-1], before)
    return root, whole, stages


def _blocks(stages: Any, origin: str) -> list[dict[str, Any]]:
    """The stages as written, each with a name of its own."""
    if not isinstance(stages, list) or not stages or not all(isinstance(s, Mapping) for s in stages):
        raise TruelineError(f"stages ({origin}): expected a list of blocks of options, one a stage.")
    blocks = [dict(stage) for stage in stages]
    for number, block in enumerate(blocks, 1):
        name = str(block.setdefault("name", f"{number}"))
        block["name"] = name
        if not NAME.match(name):
            raise TruelineError(
                f"Stage {number} of {origin} is named '{name}': expected small letters, digits, - and _, for a folder."
            )
        if clash := [k for k in map(canonical, block) if k in WHOLE_RUN]:
            raise TruelineError(
                f"Stage '{name}' of {origin} gives {clash[0]}, which is said once for the whole recipe."
            )
        if number > 1 and "model" in block:
            raise TruelineError(
                f"Stage '{name}' of {origin} gives model. It starts from the stage before it; write from: NAME for another."
            )
    names = [b["name"] for b in blocks]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise TruelineError(f"{origin} has two stages named '{twice}'. Give each a name of its own.")
    return blocks


def _split(flags: Mapping[str, Any], names: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Flags for every stage, and those of single stages (`stages.NAME.OPTION`)."""
    general: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for written, value in flags.items():
        if not written.startswith("stages."):
            general[written] = value
            continue
        name, _, option = written.removeprefix("stages.").partition(".")
        if name not in names or not option:
            raise TruelineError(f"'{written}': there is no stage '{name}'. {nearest(name, names)}")
        own.setdefault(name, {})[option] = value
    return general, own


def _without(values: Mapping[str, Any], further: Iterable[str]) -> dict[str, Any]:
    left_out = {*WHOLE_RUN, *further}
    return {k: v for k, v in values.items() if canonical(k) not in left_out}


def _before(block: Mapping[str, Any], earlier: list[str], origin: str) -> str | None:
    """The stage whose model this one starts from; None for the first."""
    if "from" not in block:
        return earlier[-1] if earlier else None
    if block["from"] not in earlier:
        raise TruelineError(
            f"Stage '{block['name']}' of {origin} starts from '{block['from']}', which is no earlier stage. "
            f"{nearest(str(block['from']), earlier) if earlier else 'It is the first.'}"
        )
    return str(block["from"])


def _refuse_unusable_start(block: Mapping[str, Any], earlier: list[Stage], before: str | None) -> None:
    """A reward model writes no text, so no stage that trains a language model can start from it."""
    from trueline import catalogue, legality

    start = next((s for s in earlier if s.name == before), None)
    heads = [catalogue.entry("objectives", n) for n in start.resolved.config.objective] if start else []
    if any(legality.scalar_head(e) for e in heads):
        raise TruelineError(
            f"Stage '{block['name']}' would start from '{before}', which trains a reward model. Write from: with a stage that "
            f"trains a policy, and use the reward model as feedback: reward:{{stages.{before}}}."
        )


def _placed(value: Any, folders: Mapping[str, Path], earlier: list[str]) -> Any:
    """`{stages.NAME}` replaced by that stage's folder, in every text of a nested value."""
    if isinstance(value, Mapping):
        return {k: _placed(v, folders, earlier) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(v, folders, earlier) for v in value]
    if not isinstance(value, str):
        return value

    def folder(match: re.Match[str]) -> str:
        if match[1] not in earlier:
            raise TruelineError(f"'{match[0]}' names no earlier stage. There are: {', '.join(earlier) or 'none'}.")
        return str(folders[match[1]])

    return PLACE.sub(folder, value)


def _open(root: Path, whole: Mapping[str, Any], stages: list[Stage]) -> None:
    """Make or reopen the folder of all stages, and write what they are."""
    file = root / FILE
    overwrite, resume = (bool(whole.get(name)) for name in ("overwrite", "resume"))
    if overwrite and resume:
        raise TruelineError("overwrite contradicts resume: one deletes the stages and the other goes on with them.")
    if file.exists() and not (overwrite or resume):
        raise TruelineError(
            f"'{root}' already holds stages. Give --resume to go on with them, --overwrite to delete them, or another --output."
        )
    if resume and not file.exists():
        raise TruelineError(f"There are no stages to resume in '{root}': {file} is missing.")
    if not file.exists() and root.exists() and any(root.iterdir()):
        raise TruelineError(f"'{root}' is not empty and holds no stages of ours. Give an empty or new --output.")
    if overwrite and file.exists():
        shutil.rmtree(root)
    if resume and not whole.get("accept_changes"):
        _check_same(file, stages)
    root.mkdir(parents=True, exist_ok=True)
    content = [{"name": s.name, "folder": s.folder.name, "config": s.resolved.config.model_dump(mode="json")} for s in stages]  # fmt: skip
    write_json(file, content)


def _check_same(file: Path, stages: list[Stage]) -> None:
    """Stages must be those that were begun, with the options that they had."""
    recorded = json.loads(file.read_text(encoding="utf-8"))
    names = [s.name for s in stages]
    if [r["name"] for r in recorded] != names:
        raise TruelineError(
            f"'{file.parent}' was begun with the stages {', '.join(r['name'] for r in recorded)}, now they are "
            f"{', '.join(names)}. Give another --output, or --accept-changes if you mean it."
        )
    for row, stage in zip(recorded, stages, strict=True):
        now = stage.resolved.config.model_dump(mode="json")
        changed = [k for k in now if k not in FREE_ON_RESUME and row["config"].get(k) != now[k]]
        if changed:
            raise TruelineError(
                f"Stage '{stage.name}' was begun with other options ({', '.join(changed)}). Give --accept-changes if you mean it."
            )
