"""From judged groups to what objectives take: pairs and demonstrations, decided before anything is scored.

A group's order comes from ranks where every response has one, else from rewards, else from labels. Equal scores make
no pair and are counted as ties; responses whose reward is None ('not applicable') take no part. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from trueline.groups import Group


@dataclass
class Item:
    """A group pruned to the responses that some objective uses, with the views of it as response indices."""

    group: Group
    pairs: list[tuple[int, int]] = field(default_factory=list)  # (chosen, rejected)
    demonstrations: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """The items of one optimiser step and what could not be used: groups with ties only, groups nobody judged."""

    items: list[Item]
    ties: int = 0
    unjudged: int = 0


def order_scores(group: Group) -> list[float | None]:
    """One comparable number a response, higher is better; None where nobody judged it."""
    responses = group.responses
    if responses and all(r.rank is not None for r in responses):
        return [-float(r.rank) for r in responses]  # type: ignore[arg-type]
    if any(r.reward is not None for r in responses):
        return [r.reward for r in responses]
    return [None if r.label is None else float(r.label) for r in responses]


def candidate_pairs(scores: list[float | None], rule: str) -> Iterator[tuple[int, int]]:
    """Index pairs (better or equal, worse) that a pair rule proposes; the caller applies the margin.

    best_worst: the first best against the first worst. all_pairs: every two. adjacent: neighbours in the order.
    """
    judged = sorted((i for i, s in enumerate(scores) if s is not None), key=lambda i: -scores[i])  # type: ignore[operator]
    if len(judged) < 2:
        return
    if rule == "best_worst":
        worst = min(judged, key=lambda i: scores[i])  # type: ignore[arg-type,return-value]
        yield judged[0], (worst if worst != judged[0] else judged[-1])
    elif rule == "adjacent":
        yield from pairwise(judged)
    else:
        yield from ((judged[a], judged[b]) for a in range(len(judged)) for b in range(a + 1, len(judged)))


def demonstrations(group: Group) -> list[int]:
    """Responses to imitate: the best of a ranked or scored group, all with a thumb up, or the only one."""
    scores = order_scores(group)
    judged = [s for s in scores if s is not None]
    if not judged:
        return [0] if len(group.responses) == 1 else []
    if all(r.rank is None and r.reward is None for r in group.responses):
        return [i for i, r in enumerate(group.responses) if r.label]
    return [scores.index(max(judged))]


def _apart(group: Group, better: int, worse: int, margin: float) -> bool:
    """Whether the rewards of two responses differ by more than the margin; without rewards their order is all there is."""
    high, low = group.responses[better].reward, group.responses[worse].reward
    return not margin or high is None or low is None or high - low > margin


def plan(groups: list[Group], *, pairs: bool, demos: bool, rule: str = "best_worst", margin: float = 0.0) -> Plan:
    """Decide the pairs and demonstrations of a step and drop every response that neither uses."""
    result = Plan(items=[])
    for group in groups:
        scores = order_scores(group)
        candidates = list(candidate_pairs(scores, rule)) if pairs else []
        kept = [(w, r) for w, r in candidates if scores[w] != scores[r] and _apart(group, w, r, margin)]
        shown = demonstrations(group) if demos else []
        result.ties += len(candidates) - len(kept)
        if not candidates and not shown:
            result.unjudged += 1
        if kept or shown:
            used = sorted({i for pair in kept for i in pair} | set(shown))
            place = {old: new for new, old in enumerate(used)}
            pruned = replace(group, responses=[group.responses[i] for i in used])
            result.items.append(Item(pruned, [(place[w], place[r]) for w, r in kept], [place[i] for i in shown]))
    return result
