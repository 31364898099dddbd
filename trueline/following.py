"""What only the first process of a run writes, and how the others go along.

Every rank runs the same loop. The first one has the run folder; the others have a `FollowedFolder` of the same place, whose
journals and files take in nothing, so that no code on the way asks who it is. Judges are asked about a response once: each
rank judges its share of the groups, or the first one all where a judge may compare groups, and all get all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueline.config import AlignConfig
from trueline.engine.parallel import alone, world
from trueline.errors import TruelineError
from trueline.feedback._specification import every
from trueline.feedback.contract import Feedback, counters, is_relative
from trueline.groups import Group
from trueline.pairing import Plan
from trueline.registry import load
from trueline.run import JOURNALS, RunFolder

if TYPE_CHECKING:
    from trueline.assemble import Parts

# Judges that are given a batch as it comes and may compare its groups: a person's functions.
WHOLE_BATCH = {"rule", "verifier"}


class Silent:
    """A journal that keeps nothing."""

    def append(self, record: dict[str, Any]) -> None: ...

    def truncate_after(self, step: int) -> int:
        return 0

    def sync(self) -> None: ...

    def close(self) -> None: ...


class FollowedFolder(RunFolder):
    """The run folder as the other ranks have it: there to read."""

    def write_json(self, name: str, content: dict[str, Any]) -> None: ...


def open_folder(config: AlignConfig) -> RunFolder:
    """The run folder, opened by the first rank and followed by the others."""
    opened: list[RunFolder] = []

    def root() -> str:
        opened.append(RunFolder.open(config))
        return str(opened[0].root)

    place = world().from_first(root)
    journals: dict[str, Any] = {name: Silent() for name in JOURNALS}
    return opened[0] if opened else FollowedFolder(Path(place), journals)


class Together:
    """A judge asked by all ranks together. counters: sums over the ranks. relative: as the judge's own."""

    def __init__(self, judge: Feedback, spec: str):
        self.judge = judge
        self.relative = is_relative(judge)
        self.counters = counters(judge)
        self.split = not {inner.name for inner in every([spec])} & WHOLE_BATCH

    def __call__(self, groups: list[Group], /) -> None:
        together(self.judge, groups, split=self.split)
        self.counters = {}
        for own in world().gather(counters(self.judge)):
            for name, value in own.items():
                self.counters[name] = self.counters.get(name, 0.0) + value


def fingerprint(plan: Plan) -> str:
    """Content of a step's items: ranks that plan different steps would sum gradients of different batches."""
    digest = hashlib.sha256()
    for item in plan.items:
        views = {name: value for name, value in vars(item).items() if name not in ("group", "judged", "mismatched")}
        rows = [(g.prompt_ids, [(r.ids, r.mask, r.reward) for r in g.responses]) for g in item.groups]
        digest.update(repr((sorted(views.items()), rows)).encode())
    return digest.hexdigest()[:16]


def refuse_shard(parts: Parts) -> None:
    """Raise TruelineError for what moves or samples weights in ways that sharded ones are not made for."""
    declared = ("update", "masks", "moves_reference", "critic")
    if clash := [o.method.name for o in parts.objectives if any(o.declares(fact) for fact in declared)]:
        raise TruelineError(
            f"{clash[0]} is not made for sharded weights: it reads or moves them outside one forward pass. Leave out shard "
            "(replicated weights on every process)."
        )
    config = parts.config
    judges = [s.name for s in every([*config.feedback, *config.eval_feedback])]
    draws = [j for j in judges if load("feedback", j).declared.get("draws_reference")]
    if draws:
        raise TruelineError(
            f"{draws[0]} samples the reference while it judges, which sharded weights do not allow. Leave out shard."
        )
    if config.reference_cache and load("sources", config.source).declared["samples"]:
        raise TruelineError(
            "reference_cache scores the data and not fresh samples, so that some forward passes of the reference would be left "
            "out on some processes alone. Leave it out where weights are sharded and samples are drawn."
        )


def together(fill: Callable[[list[Group]], None], groups: list[Group], *, split: bool) -> None:
    """fill(groups) in place, done once: each rank its share (split), or the first rank all; every rank has the result."""
    if world().size == 1:
        fill(groups)
        return
    shares = world().shares([1 + len(g.responses) for g in groups])
    own = [groups[i] for i in shares[world().rank]] if split else groups if world().first else []
    if own:
        with alone():
            fill(own)
    filled = [(g.preferences, [vars(r) for r in g.responses]) for g in own]
    for group, (preferences, responses) in zip(
        groups, (x for part in world().gather(filled) for x in part), strict=True
    ):
        group.preferences = preferences
        for response, values in zip(group.responses, responses, strict=True):
            vars(response).update(values)
