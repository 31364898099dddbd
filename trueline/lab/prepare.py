"""The lab's artefacts: data, the model everyone starts from, labelled pairs and the proxy, cached by fingerprint.

    demonstrations.jsonl   mixed-quality replies of `corpus.py`
    policy/                a run folder: SFT on them; start and reference of every lab run
    train_pairs.jsonl      two samples of the policy to a training prompt, labelled by gold
    held_out_pairs.jsonl   the same on held-out prompts, one pair each
    train_prompts.jsonl, eval_prompts.jsonl
    proxy/                 a run folder: the reward model that one would train on the same pairs

Everything is trained through `align`, as a user would. The proxy is DPO at beta = 1/2 from the policy, read as the
implicit reward 1/2 sum_t (log pi - log pi_sft): a scalar head on the last token reads too little (.67 of held-out pairs
against .76-.80 in a prototype), and a proxy that classifies worse than an offline policy makes online learning lose for
a dull reason.

Artefacts live in the user's cache folder (TRUELINE_CACHE, else the platform's) under a fingerprint of the lab's sources,
its settings and the libraries' versions. Each is built in a folder of its own and renamed into place, so a killed or a
concurrent preparation leaves nothing half done.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trueline
from trueline.cachefolder import cache_folder
from trueline.errors import TruelineError
from trueline.lab.gold import reward
from trueline.lab.settings import LAB, LabSettings, Training
from trueline.lab.world import MAX_REPLY, SPECIAL, Size, World, world
from trueline.randomness import derive

LIBRARIES = ("torch", "transformers", "numpy")
MAX_LENGTH = 96  # tokens: the longest prompt has 21, a reply up to MAX_REPLY


@dataclass(frozen=True)
class LabArtefacts:
    """Where the artefacts of one seed and size are. Files are JSON lines that `align` reads as they are."""

    folder: Path
    size: Size
    seed: int

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def proxy(self) -> Path:
        return self.folder / "proxy"

    @property
    def demonstrations(self) -> Path:
        return self.folder / "demonstrations.jsonl"

    @property
    def train_pairs(self) -> Path:
        return self.folder / "train_pairs.jsonl"

    @property
    def held_out_pairs(self) -> Path:
        return self.folder / "held_out_pairs.jsonl"

    @property
    def train_prompts(self) -> Path:
        return self.folder / "train_prompts.jsonl"

    @property
    def eval_prompts(self) -> Path:
        return self.folder / "eval_prompts.jsonl"


def prepare(seed: int = 0, size: Size = "full", cache: Path | None = None, *, proxy: bool = True) -> LabArtefacts:
    """Artefacts of this seed, built where the cache lacks them. proxy=False leaves out the proxy.

    "full" takes about two minutes on one core the first time, "unit" a few seconds. The same seed gives the same files.
    """
    known, settings = world(size), LAB[size]
    at = locate(seed, size, cache)
    at.folder.mkdir(parents=True, exist_ok=True)
    _build(at.train_prompts, lambda to: _write(to, ({"prompt": p} for p in known.train)))
    _build(at.eval_prompts, lambda to: _write(to, ({"prompt": p} for p in known.held_out)))
    _build(at.demonstrations, lambda to: _demonstrate(to, known, settings, seed))
    _build(at.policy, lambda to: _train_policy(to, at, known, settings))
    train = known.train, settings.samples_per_prompt
    held_out = known.held_out[: settings.held_out_pairs], 2
    _build(at.train_pairs, lambda to: _sample_pairs(to, at, known, *train, "train pairs"))
    _build(at.held_out_pairs, lambda to: _sample_pairs(to, at, known, *held_out, "held-out pairs"))
    if proxy:
        _build(at.proxy, lambda to: _train_proxy(to, at, settings))
    return at


def locate(seed: int, size: Size = "full", cache: Path | None = None) -> LabArtefacts:
    """Where `prepare` puts the artefacts, whether they exist or not."""
    if size not in LAB:
        raise TruelineError(f"There is no lab of size '{size}'. Valid sizes: {', '.join(LAB)}.")
    folder = (cache or cache_folder()) / "lab" / f"{size}-seed{seed}-{fingerprint(size)}"
    return LabArtefacts(folder.absolute(), size, seed)


@functools.cache
def fingerprint(size: Size) -> str:
    """Hash of what the artefacts follow from: the lab's sources, settings, library versions and the processor.

    The engine's sources are left out on purpose: it promises the same numbers from one version to the next.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("world.py", "gold.py", "corpus.py", "model.py", "prepare.py"):
        digest.update((here / name).read_bytes())
    digest.update(repr(LAB[size]).encode())
    digest.update(json.dumps([trueline.__version__, *map(version, LIBRARIES), platform.machine()]).encode())
    return digest.hexdigest()[:12]


def training_options(training: Training) -> dict[str, Any]:
    """`align` options of a training: AdamW, linear decay to a share of the peak."""
    return {
        "steps": training.steps,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "schedule": "constant" if training.final_learning_rate == 1.0 else "linear",
        **({} if training.final_learning_rate == 1.0 else {"final_learning_rate": training.final_learning_rate}),
        "warmup": training.warmup,
        "weight_decay": training.weight_decay,
    }


def _build(target: Path, make: Callable[[Path], None]) -> None:
    """Make a file or folder beside its place, then rename it there; whoever comes second keeps the first one's."""
    if target.exists():
        return
    beside = target.with_name(f".building-{os.getpid()}-{target.name}")
    _remove(beside)
    try:
        make(beside)
        if beside.is_dir() and target.exists():  # a concurrent preparation was faster; both made the same
            return
        os.replace(beside, target)
    except OSError:
        if not target.exists():
            raise
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(target: Path, rows: Iterable[dict[str, Any]]) -> None:
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _demonstrate(target: Path, known: World, settings: LabSettings, seed: int) -> None:
    from trueline.lab.corpus import corpus

    _write(target, corpus(known, settings.replies, seed))


def _train_policy(target: Path, at: LabArtefacts, known: World, settings: LabSettings) -> None:
    """Supervised fine-tuning of a fresh model on the demonstrations."""
    from trueline.align import align
    from trueline.lab.model import language_model, tokenizer

    start = target.with_name(f"{target.name}-start")
    _remove(start)
    language_model(known, settings.shape, derive(at.seed, "lab model")).save_pretrained(start)
    tokenizer(known).save_pretrained(start)
    try:
        align(
            model=str(start),
            data=[str(at.demonstrations)],
            output=str(target),
            objective={"sft": 1.0},
            seed=at.seed,
            max_length=MAX_LENGTH,
            max_response_length=MAX_REPLY,
            **training_options(settings.sft),
        )
    finally:
        _remove(start)


def _train_proxy(target: Path, at: LabArtefacts, settings: LabSettings) -> None:
    """A Bradley-Terry reward model of the form beta sum_t (log pi - log pi_sft): DPO on the labelled pairs."""
    from trueline.align import align

    align(
        model=str(at.policy),
        data=[str(at.train_pairs)],
        eval_data=[str(at.held_out_pairs)],
        eval_steps=settings.proxy.steps,
        eval_prompts=2,
        output=str(target),
        objective={"dpo": 1.0},
        method_options={"objectives.dpo": {"beta": settings.proxy_beta}},
        seed=at.seed,
        max_length=MAX_LENGTH,
        max_response_length=MAX_REPLY,
        **training_options(settings.proxy),
    )


def _sample_pairs(
    target: Path, at: LabArtefacts, known: World, prompts: tuple[str, ...], samples: int, stream: str
) -> None:
    """Pairs of the policy's own replies, the one with more gold first.

    Left out: exact ties, empty replies, and replies with a special token inside, which text cannot carry.
    """
    replies = sample_replies(at.policy, prompts, samples, derive(at.seed, "lab", stream))
    rows = []
    for prompt, said in zip(prompts, replies, strict=True):
        golds = reward(known, [prompt] * len(said), said)
        for i in range(0, len(said) - 1, 2):
            better, worse = (i, i + 1) if golds[i] > golds[i + 1] else (i + 1, i)
            usable = all(said[j] and not set(said[j].split()) & set(SPECIAL.values()) for j in (i, i + 1))
            if usable and golds[better] > golds[worse]:
                rows.append({"prompt": prompt, "chosen": said[better], "rejected": said[worse]})
    _write(target, rows)


def sample_replies(model: Path, prompts: Iterable[str], samples: int, seed: int) -> list[list[str]]:
    """Replies of a lab model at temperature 1, in words, special tokens included except the final EOS."""
    from trueline.encode import Limits, encode
    from trueline.engine.policy import Policy
    from trueline.engine.sampler import sample
    from trueline.feedback.lab import spoken
    from trueline.groups import Group, Response
    from trueline.models import load

    loaded = load(str(model), for_training=False)
    policy = Policy(loaded.model, reference="none")
    groups, audit = encode([Group(p) for p in prompts], loaded.tokenizer, Limits(), eos_ids=loaded.eos_ids)
    if audit.dropped:
        raise TruelineError(f"Lab prompts could not be encoded: {audit.dropped}.")
    ids = [list(g.prompt_ids or ()) for g in groups]
    drawn = sample(policy, ids, samples, max_new_tokens=MAX_REPLY, eos_ids=loaded.eos_ids, seed=seed)
    return [
        [spoken(Response(ids=s.ids, source="policy", finish=s.finish), loaded.tokenizer) for s in rows]
        for rows in drawn
    ]
