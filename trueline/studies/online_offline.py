"""`trueline study online-offline`: why fresh samples beat fixed pairs, hypothesis by hypothesis (arXiv 2405.08448).

    headline       online (one setting, judged by the proxy; also by gold) against offline pooled over a sweep
    coverage       the online run's own stream replayed in order, in shuffled windows, fully shuffled
    quality        offline on pairs of better policies: start against mid, mid against late, late against late, and the
                   online stream, all with golden labels
    classification who tells pairs apart, on golden pairs and along the online stream, and whether that goes with winning
    contrast       the same comparison with a loss that has no rejected response (best of two)
    scale          the same comparison for policies of three sizes with one proxy

Win rates are by gold against the samples of one fixed golden policy (trained online against gold from a start of its
own seed), at the KL to the start. A method is summarised by the 90 % quantile over its checkpoints and settings.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError
from trueline.feedback.contract import judge_labels
from trueline.jobs import WORKERS, Failure, Job
from trueline.lab.prepare import training_options
from trueline.lab.settings import Training
from trueline.studies import rows as row_files
from trueline.studies.conduct import conduct, train
from trueline.studies.online_offline_data import PAIRS, classify, draw_pairs
from trueline.studies.online_offline_subject import Own, Subject, golden_labels, preparation, scaled, subject
from trueline.studies.settings import (
    ONLINE_OFFLINE,
    ONLINE_OFFLINE_OWN,
    ONLINE_OFFLINE_QUICK,
    OnlineOfflineSettings,
)
from trueline.workers import Crew

ONLINE, GOLD, OFFLINE = "online", "online-gold", "offline"


@dataclass(frozen=True)
class Arm:
    """One run of one seed. part: the hypothesis it belongs to. after: jobs it waits for beside its subject's."""

    part: str
    name: str
    at: Subject
    options: dict[str, Any]
    after: tuple[str, ...] = ()
    keep: bool = False

    @property
    def label(self) -> str:
        return f"{self.part}-{self.name}-{self.at.seed}".replace(" ", "_").replace("=", "")

    @property
    def job(self) -> str:
        return f"{self.part} {self.name} {self.at.seed}"


def study(
    output: str = "study-online-offline",
    *,
    seeds: int | None = None,
    quick: bool = False,
    workers: int | Crew = WORKERS,
    own: Own | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Run what is missing in `output` and write its page, table and figures. Returns the page's path.

    own: a user's model in place of the lab. changes: settings other than the committed ones (own models only).
    Raises TruelineError after the page is written where the replay in order was not the online run on a CPU.
    """
    from trueline.studies.online_offline_page import write

    settings = ONLINE_OFFLINE_QUICK if quick else ONLINE_OFFLINE_OWN if own else ONLINE_OFFLINE
    settings = replace(settings, seeds=seeds or settings.seeds, **_stepped(settings, changes or {}, own))
    root = Path(output)
    further = {"own": vars(own)} if own else {}
    todo = jobs(root, settings, own)

    def page(failures: Sequence[Failure]) -> Path:
        return write(root, settings, failures, own=own, quick=quick)

    return conduct(root, settings, todo, page, workers=workers, quick=quick, further=further)


def _stepped(settings: OnlineOfflineSettings, changes: dict[str, Any], own: Own | None) -> dict[str, Any]:
    """Changed settings, the evaluations and the mid checkpoint moved with the steps."""
    if changes and own is None:
        raise TruelineError(
            "The lab's study has committed settings, which flags do not change. Give --model to use your own."
        )
    steps = changes.pop("steps", None)
    if steps is None:
        return changes
    ratio = steps / settings.training.steps
    moved = {name: max(1, round(getattr(settings, name) * ratio)) for name in ("eval_steps", "offline_eval_steps")}
    mid = max(1, round(settings.mid * ratio))
    warmup = max(1, round(settings.training.warmup * ratio))
    training = replace(settings.training, steps=steps, warmup=warmup)
    return {**changes, **moved, "mid": mid, "training": training}


# ---- jobs -----------------------------------------------------------------------------------------------------------


def jobs(root: Path, settings: OnlineOfflineSettings, own: Own | None = None) -> list[Job]:
    """Everything the study runs, seed by seed."""
    found = [golden_labels(root, settings, own)] if own else []
    found += [job for seed in _lab_seeds(settings) for job in preparation(root, settings, seed, own)]
    found.append(_golden_policy(root, settings, own))
    for seed in range(settings.seeds):
        at = subject(root, settings, seed, own)
        sizes = scaled(root, settings, seed, own)
        runs = [*_headline(at, settings), *_coverage(root, at, settings), *_quality(root, at, settings)]
        runs += [*_contrast(at, settings), *(a for name, big, _ in sizes for a in _scale(name, big, settings))]
        made = [_run(root, settings, arm) for arm in runs]
        found += [*made[:1], *(job for _, _, job in sizes), *made[1:], *_readers(root, at, settings, made)]
    return found


def _lab_seeds(settings: OnlineOfflineSettings) -> list[int]:
    if settings.golden_seed < settings.seeds:
        raise TruelineError(f"Seed {settings.golden_seed} is the golden policy's and cannot be a reported one.")
    return [settings.golden_seed, *range(settings.seeds)]


def golden_folder(root: Path) -> Path:
    return (root / "models").absolute() / "golden"


def _golden_policy(root: Path, settings: OnlineOfflineSettings, own: Own | None) -> Job:
    at, place = subject(root, settings, settings.golden_seed, own), golden_folder(root)
    options = {**_common(at, settings), **_ipo(settings), **_online(at, [at.golden]), "record_stream": False}
    place.parent.mkdir(parents=True, exist_ok=True)
    journal = (place.parent, ".building-*-golden/trueline/metrics.jsonl")
    log, steps = root / "logs" / "golden.log", settings.training.steps
    return Job("golden policy", train, (options, str(place)), (at.prepared,), steps, journal, log, place)


def _readers(root: Path, at: Subject, settings: OnlineOfflineSettings, made: Sequence[Job]) -> list[Job]:
    """Jobs that read the kept runs of a seed: pairs drawn from their policies, classification, and clearing up."""
    online = _folder(root, f"headline-{ONLINE}-{at.seed}")
    centre = _folder(root, Arm("headline", _centre(settings), at, {}).label)
    ours = (f"headline {ONLINE} {at.seed}",)
    logs, none = root / "logs", (root, "none")
    last = quality_file(root, at.seed, PAIRS[-1])
    drawing = (at, settings, str(online), str(last.parent))
    target = classification_file(root, at.seed)
    reading = (at, str(online), str(centre), str(target))
    both = (*ours, f"headline {_centre(settings)} {at.seed}")
    gone = root / "logs" / f"cleared-{at.seed}"
    after = (f"pairs {at.seed}", f"classification {at.seed}", *(j.name for j in made))
    cleared = (str(online), str(centre), str(gone))
    return [
        Job(f"pairs {at.seed}", draw_pairs, drawing, ours, 1, none, logs / f"pairs-{at.seed}.log", last),
        Job(f"classification {at.seed}", classify, reading, both, 1, none, logs / f"classify-{at.seed}.log", target),
        Job(f"clearing {at.seed}", clear, cleared, after, 1, none, logs / f"clear-{at.seed}.log", gone),
    ]


def clear(*places: str) -> None:
    """Remove folders that nothing reads any more; the last place is the mark that this was done."""
    *folders, mark = places
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    Path(mark).touch()


def _folder(root: Path, label: str) -> Path:
    return (root / "rows" / label).absolute()


def classification_file(root: Path, seed: int) -> Path:
    return (root / "data").absolute() / f"classification-{seed}.json"


def quality_file(root: Path, seed: int, name: str) -> Path:
    return (root / "data").absolute() / f"{name}-{seed}.jsonl"


# ---- arms -----------------------------------------------------------------------------------------------------------


def _common(at: Subject, settings: OnlineOfflineSettings, training: Training | None = None) -> dict[str, Any]:
    return {**training_options(training or settings.training), **at.options, "model": str(at.start), "seed": at.seed}


def _ipo(settings: OnlineOfflineSettings, beta: float | None = None) -> dict[str, Any]:
    beta = settings.beta if beta is None else beta
    return {
        "objective": {"ipo": 1.0},
        "objectives.ipo.beta": beta,
        "max_grad_norm": settings.clip / beta**2,
        "adam_epsilon": settings.adam_epsilon / beta**2,
    }


def _online(at: Subject, feedback: list[str]) -> dict[str, Any]:
    return {"data": [str(at.prompts)], "source": "policy", "feedback": feedback, "sources.policy.samples": 2}


def _offline(at: Subject, settings: OnlineOfflineSettings, rate: float, beta: float, factor: int) -> dict[str, Any]:
    training = replace(settings.training, learning_rate=rate, steps=factor * settings.training.steps)
    return {**_common(at, settings, training), **_ipo(settings, beta), "data": [str(at.pairs)]}


def _centre(settings: OnlineOfflineSettings) -> str:
    """The offline run at the online run's own setting."""
    rates = settings.learning_rates
    rate = min(rates, key=lambda r: abs(math.log(r / settings.training.learning_rate)))
    return offline_name(rate, min(settings.betas, key=lambda b: abs(b - settings.beta)))


def offline_name(rate: float, beta: float) -> str:
    return f"{OFFLINE} lr={rate:g} beta={beta:g}"


def _headline(at: Subject, settings: OnlineOfflineSettings) -> Iterator[Arm]:
    base = {**_common(at, settings), **_ipo(settings)}
    stream = {"record_stream": True, "save_steps": settings.mid}
    yield Arm("headline", ONLINE, at, {**base, **_online(at, [at.proxy_spec]), **stream}, keep=True)
    yield Arm("headline", GOLD, at, {**base, **_online(at, [at.golden]), "record_stream": False})
    for rate in settings.learning_rates:
        for beta in settings.betas:
            name = offline_name(rate, beta)
            options = _offline(at, settings, rate, beta, settings.offline_factor)
            yield Arm("headline", name, at, options, keep=name == _centre(settings))


def _coverage(root: Path, at: Subject, settings: OnlineOfflineSettings) -> Iterator[Arm]:
    """The stream of the online run with its own labels, in order and shuffled."""
    stream = str(_folder(root, f"headline-{ONLINE}-{at.seed}") / "trueline" / "stream.jsonl")
    base = {**_common(at, settings), **_ipo(settings), "source": "replay", "data": [stream]}
    for window in (0, *settings.windows):
        options = {**base, "sources.replay.window": window, "record_stream": False}
        yield Arm("coverage", window_name(window), at, options, (f"headline {ONLINE} {at.seed}",))


def window_name(window: int) -> str:
    return {0: "in order", -1: "all shuffled"}.get(window, f"windows of {window}")


def _quality(root: Path, at: Subject, settings: OnlineOfflineSettings) -> Iterator[Arm]:
    """Offline, at the online run's setting, on golden-labelled pairs of better and better policies."""
    base = {**_common(at, settings), **_ipo(settings)}
    for name in PAIRS:
        data = {"data": [str(quality_file(root, at.seed, name))]}
        yield Arm("quality", name, at, {**base, **data}, (f"pairs {at.seed}",))
    stream = str(_folder(root, f"headline-{ONLINE}-{at.seed}") / "trueline" / "stream.jsonl")
    replayed = {"source": "replay", "sources.replay.window": -1, "data": [stream], "feedback": [at.golden]}
    options = {**base, **replayed, "record_stream": False}
    yield Arm("quality", "online stream", at, options, (f"headline {ONLINE} {at.seed}",))


def _contrast(at: Subject, settings: OnlineOfflineSettings) -> Iterator[Arm]:
    """Best of two: the likelihood of the better response alone."""
    loss: dict[str, Any] = {"objective": {"sft": 1.0}, "eval_reference": True}
    online = {**_common(at, settings), **loss, **_online(at, [at.proxy_spec]), "record_stream": False}
    yield Arm("contrast", ONLINE, at, online)
    for rate in settings.learning_rates:
        training = replace(settings.training, learning_rate=rate)
        offline = {**_common(at, settings, training), **loss, "data": [str(at.pairs)]}
        yield Arm("contrast", f"{OFFLINE} lr={rate:g}", at, offline)


def _scale(name: str, at: Subject, settings: OnlineOfflineSettings) -> Iterator[Arm]:
    """The headline's comparison for another size, with the same data, golden judge and proxy."""
    base = {**_common(at, settings), **_ipo(settings)}
    yield Arm("scale", f"{name} {ONLINE}", at, {**base, **_online(at, [at.proxy_spec]), "record_stream": False})
    for rate in settings.learning_rates:
        options = _offline(at, settings, rate, settings.beta, 1)
        yield Arm("scale", f"{name} {OFFLINE} lr={rate:g}", at, options)


def _run(root: Path, settings: OnlineOfflineSettings, arm: Arm) -> Job:
    """The run of an arm, evaluated against the golden policy by gold and by the proxy."""
    at, target = arm.at, (root / "rows" / f"{arm.label}.json").absolute()
    judges = [at.golden, at.proxy_spec]
    online = ONLINE in arm.name
    options = {
        **arm.options,
        "eval_data": [str(at.held_out)],
        "eval_steps": settings.eval_steps if online else settings.offline_eval_steps,
        "eval_prompts": settings.eval_prompts,
        "eval_opponent": str(golden_folder(root)),
        "eval_opponent_samples": settings.opponent_samples,
        "eval_feedback": judges,
    }
    if arm.part == "coverage":  # the very evaluations of the online run, which it is compared with
        options["eval_steps"] = settings.eval_steps
    labels = judge_labels([*options.get("feedback", ["data"]), *judges])
    gold = next(label for label, spec in labels.items() if spec == at.golden)
    name = (arm.part, arm.name, at.seed)
    return Job(
        arm.job,
        row_files.execute,
        (name, options, str(target), gold, arm.keep),
        (at.prepared, "golden policy", *arm.after),
        options["steps"],
        (target.with_suffix(""), "trueline/metrics.jsonl"),
        root / "logs" / f"{arm.label}.log",
        target,
    )
