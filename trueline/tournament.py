"""Who meets whom: single-elimination brackets, round robins, an anchor, and placing a newcomer. No torch.

A schedule asks `compare` for verdicts in batches, so that a judge's requests run together: every match of a round, of
all prompts at once. Who stands first in a match is drawn, because a judge may favour a position.

    single elimination   (M - 1) N matches: per prompt the systems are shuffled and the list is halved until one is left
    round robin          M (M - 1) / 2 N matches
    anchor               (M - 1) N matches, all against one system
    insertion            at most ceil(log2(M + 1)) N matches of a new system: a binary search over the current ranking
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trueline.errors import TruelineError
from trueline.ratings import Matches


@dataclass(frozen=True)
class Match:
    """One comparison. share: what the first side got, NaN without a verdict. advanced: who stays in: the winner, or a draw
    where it was a tie or nobody judged."""

    prompt: int
    first: int
    second: int
    share: float
    advanced: int

    @property
    def out(self) -> int:
        return self.first if self.advanced == self.second else self.second


Pairing = tuple[int, int, int]  # prompt, first system, second system
Compare = Callable[[list[Pairing]], Sequence[float | None]]  # share of the first system, None for no verdict
Tree = int | tuple["Tree", "Tree"]


def single_elimination(systems: int, prompts: int, compare: Compare, *, seed: int = 0) -> list[Match]:
    """One bracket a prompt. Every prompt has systems - 1 matches, one undefeated system, and each other one lost once.

    A tie advances one side by a draw and stays a tie in the log.
    """
    _at_least_two(systems)
    rng = np.random.default_rng(seed)
    trees: list[Tree] = [_halved([int(i) for i in rng.permutation(systems)]) for _ in range(prompts)]
    played: list[Match] = []
    while any(not isinstance(tree, int) for tree in trees):
        ready = [(p, a, b) for p, tree in enumerate(trees) for a, b in _ready(tree)]
        met = _met(ready, compare, rng)
        played += met
        winner = {(m.prompt, frozenset((m.first, m.second))): m.advanced for m in met}
        trees = [_advanced(tree, p, winner) for p, tree in enumerate(trees)]
    return played


def round_robin(systems: int, prompts: int, compare: Compare, *, seed: int = 0) -> list[Match]:
    """Every two systems on every prompt."""
    _at_least_two(systems)
    pairs = [(p, a, b) for p in range(prompts) for a in range(systems) for b in range(a + 1, systems)]
    return _met(pairs, compare, np.random.default_rng(seed))


def anchored(systems: int, prompts: int, compare: Compare, *, anchor: int, seed: int = 0) -> list[Match]:
    """Every system against one of them on every prompt."""
    _at_least_two(systems)
    pairs = [(p, a, anchor) for p in range(prompts) for a in range(systems) if a != anchor]
    return _met(pairs, compare, np.random.default_rng(seed))


def insertion(newcomer: int, ranking: Sequence[int], prompts: int, compare: Compare, *, seed: int = 0) -> list[Match]:
    """Matches that place a new system: on every prompt a binary search down the ranking, best first."""
    if newcomer in ranking or not ranking:
        raise TruelineError(
            f"System {newcomer} cannot be placed in the ranking {list(ranking)}: it must be new to one."
        )
    rng = np.random.default_rng(seed)
    low, high = [0] * prompts, [len(ranking)] * prompts
    played: list[Match] = []
    while open_ := [p for p in range(prompts) if low[p] < high[p]]:
        met = _met([(p, newcomer, ranking[(low[p] + high[p]) // 2]) for p in open_], compare, rng)
        played += met
        for match in met:
            middle = (low[match.prompt] + high[match.prompt]) // 2
            if match.advanced == newcomer:
                high[match.prompt] = middle
            else:
                low[match.prompt] = middle + 1
    return played


def as_matches(played: Sequence[Match], systems: Sequence[str]) -> Matches:
    """The table that ratings are made from."""
    return Matches.of(
        [systems[m.first] for m in played],
        [systems[m.second] for m in played],
        [m.share for m in played],
        [m.prompt for m in played],
        systems=systems,
    )


def _at_least_two(systems: int) -> None:
    if systems < 2:
        raise TruelineError(f"Systems are compared with each other: found {systems}, expected 2 or more.")


def _halved(order: list[int]) -> Tree:
    if len(order) == 1:
        return order[0]
    middle = len(order) // 2
    return _halved(order[:middle]), _halved(order[middle:])


def _ready(tree: Tree) -> list[tuple[int, int]]:
    """Matches whose two sides are known."""
    if isinstance(tree, int):
        return []
    left, right = tree
    if isinstance(left, int) and isinstance(right, int):
        return [(left, right)]
    return _ready(left) + _ready(right)


def _advanced(tree: Tree, prompt: int, winner: dict[tuple[int, frozenset[int]], int]) -> Tree:
    """The tree with the matches that were played replaced by who advanced."""
    if isinstance(tree, int):
        return tree
    left, right = tree
    if isinstance(left, int) and isinstance(right, int):
        return winner[prompt, frozenset((left, right))]
    return _advanced(left, prompt, winner), _advanced(right, prompt, winner)


def _met(pairs: list[Pairing], compare: Compare, rng: np.random.Generator) -> list[Match]:
    """Ask for these matches, who stands first drawn for each."""
    turned = rng.integers(2, size=len(pairs))
    asked = [(p, b, a) if t else (p, a, b) for (p, a, b), t in zip(pairs, turned, strict=True)]
    shares = list(compare(asked))
    if len(shares) != len(asked):
        raise TruelineError(f"The judge returned {len(shares)} verdicts for {len(asked)} matches.")
    toss = rng.integers(2, size=len(pairs))
    found = []
    for (p, a, b), share, coin in zip(asked, shares, toss, strict=True):
        s = math.nan if share is None else float(share)
        first_wins = s > 0.5 or ((s == 0.5 or math.isnan(s)) and bool(coin))
        found.append(Match(p, a, b, s, a if first_wins else b))
    return found
