"""`trueline study methods`: every objective under one common budget in the lab, offline and online side by side.

Each legal pair of objective and source is an arm: `offline` on the gold-labelled pairs of the start, `online` on fresh
samples that gold judges, `noisy` on pairs with flipped labels, `sweep` with one number moved. Everything else is equal:
start, prompts, responses and steps. Results: gold win rate against fixed samples of the start, KL, length, ranking and
reward accuracy, log-ratios of held-out pairs; two-level intervals; a verdict for every claim in `claims.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trueline import catalogue, legality
from trueline.jobs import WORKERS, Job
from trueline.lab.prepare import MAX_LENGTH, LabArtefacts, locate, training_options
from trueline.lab.world import MAX_REPLY
from trueline.studies import rows as row_files
from trueline.studies.conduct import conduct, lab_job
from trueline.studies.settings import (
    LEFT_OUT,
    MANY_SAMPLES,
    METHODS,
    METHODS_QUICK,
    NOISY,
    ONLINE_ONLY,
    SCORED,
    SOURCES,
    SUMS,
    TEACHERS,
    MethodsSettings,
)
from trueline.wholefile import write_lines
from trueline.workers import Crew

STRENGTH = ("beta", "tau", "margin", "weight", "clip")  # the option that a sweep moves: the first one a method has


@dataclass(frozen=True)
class Arm:
    """One line of the table: a method, how its groups come about, and the options that make it so."""

    method: str
    name: str
    options: dict[str, Any]


def study(
    output: str = "study-methods",
    *,
    seeds: int | None = None,
    quick: bool = False,
    workers: int | Crew = WORKERS,
    only: tuple[str, ...] = (),
    sweep: bool = True,
) -> Path:
    """Run what is missing in `output` and write its page, table and figures. Returns the page's path.

    only: these methods (and dpo, which every claim is measured against). sweep: also move one number at a time.
    """
    from trueline.studies.methods_page import write

    settings = METHODS_QUICK if quick else METHODS
    settings = replace(settings, seeds=seeds or settings.seeds)
    root = Path(output)
    wanted = jobs(root, settings, only, sweep=sweep)
    return conduct(
        root,
        settings,
        wanted,
        lambda failures: write(root, settings, failures, quick=quick),
        workers=workers,
        quick=quick,
    )


def jobs(root: Path, settings: MethodsSettings, only: tuple[str, ...] = (), *, sweep: bool = True) -> list[Job]:
    """Lab preparation of every seed, then every arm seed after seed, so that early rows compare; sweeps come last."""
    found: list[Job] = []
    for seed in range(settings.seeds):
        found += _preparation(root, settings, seed)
    for swept in (False, True) if sweep else (False,):
        for seed in (settings.sweep_seed,) if swept else range(settings.seeds):
            at = locate(seed, settings.size)
            for arm in arms(at, root, settings, seed, sweep=swept):
                if arm.name.startswith("sweep") == swept and (not only or arm.method in (*only, "dpo")):
                    found.append(_job(arm, root, settings, seed))
    return found


@dataclass(frozen=True)
class Files:
    """A seed's data: pairs to train on, the same with flipped labels, pairs held out."""

    pairs: Path
    noisy: Path
    held_out: Path

    @classmethod
    def of(cls, root: Path, seed: int) -> Files:
        return cls(*(root / "data" / f"{name}-{seed}.jsonl" for name in ("pairs", "noisy", "held_out")))


def _preparation(root: Path, settings: MethodsSettings, seed: int) -> list[Job]:
    """The lab's artefacts, and this study's files of them."""
    done = Files.of(root, seed).held_out  # written last
    log = root / "logs" / f"data-{seed}.log"
    arguments = (str(root), settings, seed)
    after = lab_job(root, seed, settings.size)
    return [after, Job(f"data {seed}", write_files, arguments, (after.name,), 1, (root, "none"), log, done)]


def write_files(root: str, settings: MethodsSettings, seed: int) -> None:
    """Draw this seed's pairs from the lab's, and turn a share of them round for the noisy arm."""
    at, files = locate(seed, settings.size), Files.of(Path(root), seed)
    draw = random.Random(f"methods:{seed}")
    pairs = _lines(at.train_pairs)
    kept = draw.sample(pairs, min(settings.train_pairs, len(pairs)))
    write_lines(files.pairs, kept)
    flipped = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in kept]
    write_lines(files.noisy, [f if draw.random() < settings.noise else p for p, f in zip(kept, flipped, strict=True)])
    write_lines(files.held_out, _lines(at.held_out_pairs)[: settings.held_out_pairs])


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def arms(at: LabArtefacts, root: Path, settings: MethodsSettings, seed: int, *, sweep: bool) -> Iterator[Arm]:
    """Every arm of one seed."""
    names = [e.name for e in catalogue.entries("objectives") if e.name not in LEFT_OUT]
    for name in [*names, *SUMS]:
        entries = [catalogue.entry("objectives", n) for n in SUMS.get(name, {name: 1.0})]
        files = Files.of(root, seed)
        own = {kind: _options(name, entries, kind, at, files, settings) for kind in ("offline", "online")}
        for kind, options in own.items():
            if options is not None:
                yield Arm(name, kind, options)
        if name in NOISY and own["offline"] is not None:
            yield Arm(name, "noisy", {**own["offline"], "data": [str(files.noisy)]})
        if sweep and name not in SUMS:
            yield from _swept(name, own, settings)


def _options(
    name: str, entries: list[catalogue.Entry], kind: str, at: LabArtefacts, files: Files, settings: MethodsSettings
) -> dict[str, Any] | None:
    """The options that make an arm, or None where the combination is illegal or would be the other arm again."""
    sampled = {"source": "policy", **SOURCES.get(name, {})} if kind == "online" else {"source": "data"}
    if sampled["source"] not in catalogue.names("sources"):
        return None
    source = catalogue.entry("sources", sampled["source"])
    unjudged = kind == "online" and all(e.declared.get("judged", True) is False for e in entries)
    if kind == "offline" and name in ONLINE_ONLY:
        return None
    judge = "data" if (kind == "offline" and name not in SCORED) or unjudged else "lab"
    feedback = catalogue.entry("feedback", judge)
    if any(legality.refusal(e, source, feedback) for e in entries):
        return None
    options: dict[str, Any] = {**sampled, "feedback": [judge]}
    grouped = any(e.needs == "GROUPS" for e in entries) or name in MANY_SAMPLES
    samples = settings.group_samples if grouped else 2
    offered = {o.name for o in source.options}
    if kind == "online" and "samples" in offered:
        options["samples"] = samples
    options["batch_size"] = settings.responses // (samples if kind == "online" else 2)
    options["data"] = [str(at.train_prompts if kind == "online" else files.pairs)]
    if source.declared.get("earlier") or sampled["source"] == "hybrid":
        options["data"] = [str(files.pairs)]
    if name in TEACHERS:
        options["teachers"] = [str(getattr(at, which)) for which in TEACHERS[name]]
    options["objective"] = SUMS.get(name, {name: 1.0})
    return {**options, **settings.overrides.get(name, {})}


def _swept(name: str, own: dict[str, dict[str, Any] | None], settings: MethodsSettings) -> Iterator[Arm]:
    """The arm (offline where there is one) with the learning rate or the method's strength moved."""
    kind = "offline" if own["offline"] is not None else "online"
    base = own[kind]
    if base is None:
        return
    numbers = {o.name: o.default for o in catalogue.entry("objectives", name).options}
    strength = next((s for s in STRENGTH if isinstance(numbers.get(s), float) and numbers[s]), None)
    for factor in settings.sweep:
        rate = settings.training.learning_rate * factor
        yield Arm(name, f"sweep {kind} learning_rate x{factor:.3g}", {**base, "learning_rate": rate})
        if strength is not None:
            moved = {f"objectives.{name}.{strength}": numbers[strength] * factor}
            yield Arm(name, f"sweep {kind} {strength} x{factor:.3g}", {**base, **moved})


def _reads_reference(entry: catalogue.Entry, options: dict[str, Any]) -> bool:
    defaults = {o.name: options.get(f"objectives.{entry.name}.{o.name}", o.default) for o in entry.options}
    return legality.reads_reference(entry, defaults)


def _job(arm: Arm, root: Path, settings: MethodsSettings, seed: int) -> Job:
    at = locate(seed, settings.size)
    label = f"{arm.method}-{arm.name}-{seed}".replace(" ", "_").replace("/", "_")
    target = root / "rows" / f"{label}.json"
    scalar = any(catalogue.entry("objectives", n).declared.get("head") == "scalar" for n in arm.options["objective"])
    sampled = {} if scalar else {
        "eval_prompts": settings.eval_prompts,
        "eval_opponent_samples": settings.opponent_samples,
        "eval_feedback": ["lab"],
    }  # fmt: skip
    training = training_options(settings.training)
    options = {
        **training,
        "model": str(at.policy),
        "max_length": MAX_LENGTH,
        "max_response_length": MAX_REPLY,
        "eval_data": [str(Files.of(root, seed).held_out)],
        "eval_steps": settings.training.steps,
        "seed": seed,
        "record_stream": False,
        **sampled,
        **arm.options,
    }
    if not scalar or "lab" in arm.options["feedback"]:
        options["feedback.lab.size"] = settings.size
    judge = None if scalar else "lab"
    chosen = [catalogue.entry("objectives", n) for n in arm.options["objective"]]
    if not scalar and not any(_reads_reference(entry, options) for entry in chosen):
        options["eval_reference"] = True
    return Job(
        f"{arm.method} {arm.name} {seed}",
        row_files.execute,
        ((arm.method, arm.name, seed), options, str(target), judge),
        (f"data {seed}",),
        settings.training.steps,
        (target.with_suffix(""), "trueline/metrics.jsonl"),
        root / "logs" / f"{label}.log",
        target,
    )
