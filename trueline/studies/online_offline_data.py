"""What the study makes of a finished online run: pairs written by its policies, and who classifies its stream.

Pairs are kept as recorded groups (token ids, no text to encode again) with golden rewards, which order them.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from trueline.engine import journal
from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.randomness import derive
from trueline.studies.online_offline_subject import Subject, judged_by, ordered
from trueline.studies.settings import OnlineOfflineSettings
from trueline.wholefile import write_json, write_lines

PAIRS = ("start against mid", "mid against late", "late against late")


def draw_pairs(at: Subject, settings: OnlineOfflineSettings, online: str, folder: str) -> None:
    """Golden-labelled pairs of the start, the online run at step `mid`, and its end: one file for each of PAIRS."""
    half = settings.pairs_per_prompt
    start = _drawn(at, str(at.start), half, "start")
    with tempfile.TemporaryDirectory() as temporary:
        middle = _drawn(at, str(at_step(Path(online), settings.mid, Path(temporary))), half, "mid")
    late = _drawn(at, online, 2 * half, "late")
    first, second = ([replace(g, responses=g.responses[a:b]) for g in late] for a, b in ((0, half), (half, 2 * half)))
    for name, one, other in zip(PAIRS, (start, middle, first), (middle, first, second), strict=True):
        pairs = [
            replace(a, responses=[x, y])
            for a, b in zip(one, other, strict=True)
            for x, y in zip(a.responses, b.responses, strict=True)
        ]
        told = [g for g in (ordered(p) for p in pairs) if g is not None]
        if not told:
            raise TruelineError(f"Gold tells no pair of '{name}' apart: the policies always say the same.")
        write_lines(Path(folder) / f"{name}-{at.seed}.jsonl", [{"step": 0, **g.to_json()} for g in told])


def draw_groups(at: Subject, samples: int, target: str) -> None:
    """So many samples of the start for every training prompt, with golden rewards, as recorded groups."""
    write_lines(Path(target), [{"step": 0, **g.to_json()} for g in _drawn(at, str(at.start), samples, "groups")])


def _drawn(at: Subject, model: str, samples: int, stream: str) -> list[Group]:
    """Samples of a model for every training prompt, with golden rewards."""
    from trueline.measuring.contract import Request
    from trueline.measuring.scorer import Scorer, prompts

    request = Request(
        "study",
        data=[str(at.prompts)],
        max_length=at.options["max_length"],
        max_new_tokens=at.options["max_response_length"],
        seed=derive(at.seed, "online-offline", stream),
    )
    scorer = Scorer.open(request, model)
    groups = scorer.drawn(prompts(request, scorer), samples, stream)
    return judged_by(at.golden, scorer.loaded.tokenizer, at.options, groups, seed=at.seed)


def at_step(run: Path, step: int, target: Path) -> Path:
    """The model of a run (all parameters trained) as it was at a checkpoint, written as a model folder."""
    from safetensors.torch import load_file, save_file

    from trueline.engine import checkpoint

    tensors, _ = checkpoint.load(run / "trueline" / "checkpoints" / f"step-{step}")
    for file in run.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy2(file, target / file.name)
    for file in run.glob("*.safetensors"):
        stored = load_file(file)
        if missing := stored.keys() - tensors["model"].keys():
            raise TruelineError(f"The checkpoint of step {step} in '{run}' lacks {sorted(missing)[:3]}.")
        kept = {name: tensors["model"][name].to(value.dtype).contiguous() for name, value in stored.items()}
        save_file(kept, target / file.name, metadata={"format": "pt"})
    return target


def classify(at: Subject, online: str, offline: str, target: str) -> None:
    """Share of the online stream's pairs told apart as gold does, by step: by both final policies and by the proxy.

    A policy classifies by its log-ratio to the start, a tie counts one half. Pairs that gold ties are left out.
    """
    from trueline.measuring.contract import Request
    from trueline.measuring.scorer import Scorer

    lines = journal.read(Path(online) / "trueline" / "stream.jsonl")
    steps = [line.pop("step") for line in lines]
    recorded = [Group.from_json(line) for line in lines]
    request = Request("study", max_length=at.options["max_length"])
    right: dict[str, list[float]] = {}
    gold: np.ndarray | None = None
    for name, model in (("online", online), ("offline", offline)):
        scorer = Scorer.open(request, model, reference=str(at.start))
        if gold is None:
            judged = judged_by(at.golden, scorer.loaded.tokenizer, at.options, recorded, seed=at.seed)
            gold = _margins([[r.reward for r in g.responses] for g in judged])
            right["proxy"] = _right(_margins([[r.reward for r in g.responses] for g in recorded]), gold)
        own, start = scorer.logps(recorded), scorer.logps(recorded, reference=True)
        ratios = [[sum(a) - sum(b) for a, b in zip(x, y, strict=True)] for x, y in zip(own, start, strict=True)]
        right[name] = _right(_margins(ratios), gold)  # type: ignore[arg-type]
    write_json(Path(target), {"seed": at.seed, **by_step(steps, right)})


def _margins(values: list[list[float | None]]) -> np.ndarray:
    return np.array([np.nan if None in row else row[0] - row[1] for row in values], dtype=float)  # type: ignore[operator]


def _right(margin: np.ndarray, gold: np.ndarray) -> list[float]:
    """1 where both have one sign, 1/2 for a margin of zero, NaN where gold has none."""
    agree = np.where(margin == 0, 0.5, np.sign(margin) == np.sign(gold)).astype(float)
    return np.where((gold == 0) | np.isnan(gold) | np.isnan(margin), np.nan, agree).tolist()


def by_step(steps: list[int], right: dict[str, list[float]], bins: int = 12) -> dict[str, list[float]]:
    """Means over at most so many stretches of equal length, and the last step of each. Empty stretches are left out."""
    step_G = np.array(steps)
    edges = np.unique(np.linspace(0, step_G.max(), min(bins, int(step_G.max())) + 1).round().astype(int))
    inside = [(step_G > low) & (step_G <= high) for low, high in pairwise(edges)]
    known = ~np.isnan(np.array(list(right.values()))).any(axis=0)
    used = [i for i, rows in enumerate(inside) if (rows & known).any()]
    found = {name: [float(np.array(v)[inside[i] & known].mean()) for i in used] for name, v in right.items()}
    return {"step": [float(edges[i + 1]) for i in used], **found}
