"""What the study is about: a start with its golden judge, golden-labelled pairs and proxy, in the lab or of a user's own.

In the lab they are the lab's artefacts: gold is exact, the start imitates demonstrations of mixed quality, the pairs
are its own samples. On a user's model (`Own`) they are made as in the paper: the data are relabelled by the golden
feedback, the start is supervised fine-tuning on both responses of every pair, and the proxy is trained on the golden
labels from that start, in the implicit form beta sum_t (log pi - log pi_sft), which reads every token.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError
from trueline.groups import Group, Response, response_text
from trueline.jobs import Job
from trueline.lab.prepare import MAX_LENGTH, locate, training_options
from trueline.lab.world import MAX_REPLY, Size
from trueline.randomness import derive
from trueline.studies.conduct import lab_job, train
from trueline.studies.settings import OnlineOfflineSettings, Scale
from trueline.wholefile import write_lines


@dataclass(frozen=True)
class Own:
    """A user's model and data. golden: feedback that plays the truth. scales: models of other sizes, same tokenizer."""

    model: str
    data: tuple[str, ...]
    golden: str
    scales: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """Where the start of one seed and what belongs to it are. options: `align` options that all its runs share."""

    seed: int
    start: Path
    proxy: Path
    pairs: Path
    held_out: Path
    prompts: Path
    golden: str
    options: dict[str, Any]
    prepared: str  # the job after which all of this exists

    @property
    def proxy_spec(self) -> str:
        return f"implicit:{self.proxy}"


def subject(root: Path, settings: OnlineOfflineSettings, seed: int, own: Own | None) -> Subject:
    """The study's subject for a seed, whether it exists yet or not."""
    if own is None:
        return lab_subject(seed, settings.size)
    options = {"max_length": settings.max_length, "max_response_length": settings.max_response_length}
    data, models = (root / "data").absolute(), (root / "models").absolute()
    pairs, held_out, prompts = (data / name for name in ("pairs.jsonl", "held_out.jsonl", "prompts.jsonl"))
    start, proxy = models / f"start-{seed}", models / f"proxy-{seed}"
    return Subject(seed, start, proxy, pairs, held_out, prompts, own.golden, options, f"proxy {seed}")


def lab_subject(seed: int, size: Size) -> Subject:
    """The lab's artefacts as a subject."""
    at = locate(seed, size)
    options = {"max_length": MAX_LENGTH, "max_response_length": MAX_REPLY, "feedback.lab.size": size}
    files = at.policy, at.proxy, at.train_pairs, at.held_out_pairs, at.train_prompts
    return Subject(seed, *files, "lab", options, f"lab {seed}")


def preparation(root: Path, settings: OnlineOfflineSettings, seed: int, own: Own | None) -> list[Job]:
    """Jobs that make a seed's subject."""
    if own is None:
        return [lab_job(root, seed, settings.size)]
    at = subject(root, settings, seed, own)
    made = partial(_model_job, root)
    return [
        made(f"start {seed}", at.start, _sft(at, settings, own.model), ("golden labels",)),
        made(f"proxy {seed}", at.proxy, _proxy(at, settings), (f"start {seed}",)),
    ]


def golden_labels(root: Path, settings: OnlineOfflineSettings, own: Own) -> Job:
    """The job that relabels a user's data."""
    at = subject(root, settings, 0, own)
    arguments = (own, settings, str(at.pairs.parent))
    log = root / "logs" / "golden-labels.log"
    return Job("golden labels", relabel, arguments, (), 1, (root, "none"), log, at.prompts)


def scaled(root: Path, settings: OnlineOfflineSettings, seed: int, own: Own | None) -> list[tuple[str, Subject, Job]]:
    """Starts of other sizes: name, subject and the job that makes it. Data, golden judge and proxy stay the same."""
    at = subject(root, settings, seed, own)
    found = []
    for scale in settings.scales if own is None else ():
        place = (root / "models").absolute() / f"{scale.name}-{seed}"
        job = _job(
            root, f"{scale.name} start {seed}", scaled_start, (scale, settings.size, seed, str(place)), at, place
        )
        found.append((scale.name, replace(at, start=place, prepared=job.name), job))
    places = [Path(model).name for model in own.scales] if own else []
    if len(set(places)) < len(places):
        raise TruelineError(
            f"Models of other sizes go by the name of their folder; found {', '.join(places)}. Rename one."
        )
    for model in own.scales if own else ():
        name = Path(model).name
        place = (root / "models").absolute() / f"{name}-{seed}"
        job = _model_job(root, f"{name} start {seed}", place, _sft(at, settings, model), (at.prepared,))
        found.append((name, replace(at, start=place, prepared=job.name), job))
    return found


def _job(
    root: Path, name: str, call: Callable[..., None], arguments: tuple[Any, ...], at: Subject, product: Path
) -> Job:
    journal = (product.parent, f".building-*-{product.name}/trueline/metrics.jsonl")
    log = root / "logs" / f"{name.replace(' ', '-')}.log"
    return Job(name, call, arguments, (at.prepared,), 1, journal, log, product)


def _model_job(root: Path, name: str, place: Path, options: dict[str, Any], after: tuple[str, ...]) -> Job:
    journal = (place.parent, f".building-*-{place.name}/trueline/metrics.jsonl")
    log = root / "logs" / f"{name.replace(' ', '-')}.log"
    return Job(name, train, (options, str(place)), after, options["steps"], journal, log, place)


def _sft(at: Subject, settings: OnlineOfflineSettings, model: str) -> dict[str, Any]:
    """Supervised fine-tuning on both responses of every pair: coverage, not quality."""
    return {
        **training_options(settings.sft),
        **at.options,
        "model": model,
        "data": [str(at.pairs.with_name("both.jsonl"))],
        "objective": {"sft": 1.0},
        "seed": at.seed,
    }


def _proxy(at: Subject, settings: OnlineOfflineSettings) -> dict[str, Any]:
    return {
        **training_options(settings.proxy),
        **at.options,
        "model": str(at.start),
        "data": [str(at.pairs)],
        "objective": {"dpo": 1.0},
        "objectives.dpo.beta": settings.proxy_beta,
        "seed": at.seed,
    }


def scaled_start(scale: Scale, size: Any, seed: int, target: str) -> None:
    """The lab's supervised fine-tuning on the same demonstrations with a model of another shape."""
    import shutil

    from trueline.lab.model import language_model, tokenizer
    from trueline.lab.world import world

    fresh = Path(f"{target}-fresh-{os.getpid()}")
    known, at = world(size), locate(seed, size)
    language_model(known, scale.shape, derive(seed, "lab model", scale.name)).save_pretrained(fresh)
    tokenizer(known).save_pretrained(fresh)
    options = {"max_length": MAX_LENGTH, "max_response_length": MAX_REPLY, "objective": {"sft": 1.0}, "seed": seed}
    try:
        train({**options, **training_options(scale.sft), "model": str(fresh), "data": [str(at.demonstrations)]}, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


# ---- a user's data --------------------------------------------------------------------------------------------------


def judged_by(spec: str, tokenizer: Any, options: dict[str, Any], groups: list[Group], *, seed: int = 0) -> list[Group]:
    """The same groups with the rewards of this feedback and no other label. `options`: those of `Subject.options`."""
    from trueline.assemble import add_rewards
    from trueline.feedback.contract import FeedbackContext
    from trueline.options import resolve

    known = {k: v for k, v in options.items() if k.startswith("feedback.")}
    config = resolve({"model": "-", "data": ["-"], "objective": "dpo", "feedback": [spec], **known})
    context = FeedbackContext(tokenizer, 4096, device=_device(), seed=seed, options=config.method_options)
    plain = [
        replace(g, responses=[replace(r, rank=None, label=None, reward=None, rewards={}) for r in g.responses])
        for g in groups
    ]
    add_rewards(plain, {"golden": context.open(spec)})
    return plain


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def relabel(own: Own, settings: OnlineOfflineSettings, folder: str) -> None:
    """Write a user's pairs with golden labels, a part of the prompts held out, and what else training reads.

    pairs.jsonl and held_out.jsonl (prompt, chosen, rejected), both.jsonl (both responses as demonstrations),
    prompts.jsonl last. Pairs that the golden judge ties or cannot judge are left out.
    """
    from trueline.encode import split_by_prompt
    from trueline.measuring.contract import Request
    from trueline.measuring.scorer import Scorer
    from trueline.readers import read

    groups, _ = read(list(own.data))
    pairs = [replace(g, responses=g.responses[:2]) for g in groups if len(g.responses) >= 2]
    if not pairs:
        raise TruelineError(f"{', '.join(own.data)}: no row has two responses, and the study begins with pairs.")
    scorer = Scorer.open(Request("study", model=own.model, max_length=settings.max_length), own.model)
    judged = judged_by(own.golden, scorer.loaded.tokenizer, {}, scorer.encoded(pairs))
    labelled = [g for g in (ordered(group) for group in judged) if g is not None]
    kept, held_out = split_by_prompt(labelled, settings.held_out, 0)
    if len(kept) < settings.training.batch_size or not held_out:
        raise TruelineError(
            f"The golden feedback tells {len(labelled)} of {len(pairs)} pairs apart, of which {len(held_out)} are held out; a "
            f"step takes {settings.training.batch_size}. Give more data."
        )
    place = Path(folder)
    write_lines(place / "pairs.jsonl", [_preference(g) for g in kept])
    write_lines(place / "held_out.jsonl", [_preference(g) for g in held_out])
    write_lines(place / "both.jsonl", [_demonstration(g, r) for g in kept for r in g.responses])
    write_lines(place / "prompts.jsonl", [{"prompt": p} for p in {g.prompt_key(): g.prompt for g in kept}.values()])


def ordered(group: Group) -> Group | None:
    """The pair with the better response first; None for a tie or where one has no reward."""
    first, second = group.responses
    if first.reward is None or second.reward is None or first.reward == second.reward:
        return None
    return group if first.reward > second.reward else replace(group, responses=[second, first])


def _preference(group: Group) -> dict[str, Any]:
    better, worse = (_answer(group, r) for r in group.responses)
    return {"prompt": group.prompt, "chosen": better, "rejected": worse}


def _demonstration(group: Group, response: Response) -> dict[str, Any]:
    return {"prompt": group.prompt, "completion": _answer(group, response)}


def _answer(group: Group, response: Response) -> Any:
    """Text after a text prompt, messages after a conversation."""
    if isinstance(group.prompt, str):
        return response_text(response)
    return response.messages or [{"role": "assistant", "content": response.text}]
