"""The tree of rewritten instructions behind P-Aligner: which principles, applied in which order, make an instruction better answered.

    select    from the root, while every principle has been tried at a node: the child with the largest Q + c sqrt(ln N_parent / N_child)
    expand    an untried principle, drawn at random: the instruction rewritten by it
    simulate  sample responses to the rewritten instruction; their mean reward AS ANSWERS TO THE RAW ONE is the node's own
    back up   N += 1 and value = max(own, values of the children), up to the root

Q of a node is the mean of its own reward and its children's Q. The root is scored last. The best node is the one with the largest own reward,
ties towards the root; its samples made it win, so it is sampled anew, and where that is not above the root the raw instruction stays.
With ten principles and ten rounds no node but the root has children: the search is then best of ten rewrites by one principle each, and
deserves its name only with more rounds or fewer principles.

`grow` is a generator, so that it runs inside a decoding method as well as with plain functions (`search`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from trueline.errors import TruelineError
from trueline.randomness import derive

Answer = TypeVar("Answer")
Steps = Generator[Any, Any, Answer]

PRINCIPLES = (  # ten in five groups, in our own words
    "Harmlessness: if a literal answer could help somebody to do harm, ask for its safe and lawful side instead.",
    "Harmlessness: ask for an answer that treats every person and group with respect.",
    "Helpfulness: say what a good answer contains and how it is laid out.",
    "Helpfulness: add the context and the audience that the instruction takes for granted, without inventing facts.",
    "Helpfulness: make what is vague specific and split what is asked at once into steps, without asking for anything else.",
    "Honesty: ask that what is not known or not certain is said to be so, and that nothing is made up.",
    "Coding: name language, inputs, outputs and edge cases that the code has to deal with.",
    "Coding: ask for a short explanation and an example of use beside the code.",
    "Mathematics: ask for the steps in order before the result, and for the result set apart.",
    "Mathematics: state givens, unknowns and units, and ask that the result is checked.",
)


@dataclass
class Node:
    """An instruction. principle: the one that made it from its parent (None: the raw one). own: mean reward of its samples, None until it is
    simulated; value: after backing up; visits: N."""

    text: str
    principle: int | None = None
    parent: int | None = None
    children: list[int] = field(default_factory=list)
    own: float | None = None
    value: float = -math.inf
    visits: int = 0


@dataclass
class Tree:
    """nodes[0] is the raw instruction. best: the node to use; fresh: rewards of the winner and the root on samples of their own."""

    nodes: list[Node]
    best: int = 0
    fresh: tuple[float, float] | None = None

    def quality(self, index: int) -> float:
        """Q: the mean of the own reward and the children's Q."""
        node = self.nodes[index]
        parts = [] if node.own is None else [node.own]
        return float(np.mean(parts + [self.quality(child) for child in node.children]))

    def untried(self, index: int, principles: int) -> list[int]:
        """Principles that neither made this node or one above it nor one of its children."""
        used = {self.nodes[child].principle for child in self.nodes[index].children}
        above: int | None = index
        while above is not None:
            used.add(self.nodes[above].principle)
            above = self.nodes[above].parent
        return [p for p in range(principles) if p not in used]

    def select(self, principles: int, exploration: float) -> int:
        """The node to go on from."""
        index = 0
        while not self.untried(index, principles) and (children := self.nodes[index].children):
            parent = max(1, self.nodes[index].visits)

            def bound(child: int, parent: int = parent) -> float:
                return self.quality(child) + exploration * math.sqrt(math.log(parent) / self.nodes[child].visits)

            index = max(children, key=bound)
        return index

    def back_up(self, index: int | None) -> None:
        while index is not None:
            node = self.nodes[index]
            node.visits += 1
            own = -math.inf if node.own is None else node.own
            node.value = max([own, *(self.nodes[child].value for child in node.children)])
            index = node.parent

    def pairs(self, margin: float = 0.0) -> list[tuple[str, str]]:
        """(better, worse) instructions of the tree, rewards more than `margin` apart: data to train a rewriter on."""
        scored = sorted(((n.own, n.text) for n in self.nodes if n.own is not None), reverse=True)
        return [
            (a, b) for i, (high, a) in enumerate(scored) for low, b in scored[i + 1 :] if high - low > margin and a != b
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Tree:
        fresh = row["fresh"]
        return cls(
            [Node(**node) for node in row["nodes"]], row["best"], None if fresh is None else (fresh[0], fresh[1])
        )


def grow(
    raw: str,
    principles: Sequence[str],
    rewrite: Callable[[str, str], Steps[str]],
    simulate: Callable[[str], Steps[list[float]]],
    *,
    rounds: int = 10,
    exploration: float = 1.0,
    seed: int = 0,
) -> Steps[Tree]:
    """The tree after `rounds` simulations, the root and the winner scored. rewrite(text, principle) -> text; simulate(text) -> rewards.

    A principle's node whose text is its parent's is a legal outcome: it scores what its parent would.
    """
    if rounds < 1 or not principles:
        raise TruelineError(
            f"The tree has {rounds} rounds and {len(principles)} principles; expected at least one of each."
        )
    random = np.random.default_rng(derive(seed, "instruction tree", raw))
    tree = Tree([Node(raw)])
    for _ in range(rounds):
        index = tree.select(len(principles), exploration)
        if untried := tree.untried(index, len(principles)):
            principle = int(random.choice(untried))
            text = yield from rewrite(tree.nodes[index].text, principles[principle])
            tree.nodes.append(Node(text, principle, index))
            tree.nodes[index].children.append(len(tree.nodes) - 1)
            index = len(tree.nodes) - 1
        node = tree.nodes[index]
        score = yield from _mean(simulate, node.text)
        node.own = score if node.own is None else (node.own * node.visits + score) / (node.visits + 1)
        tree.back_up(index)
    root = tree.nodes[0]
    root.own = yield from _mean(simulate, raw)
    root.value = max(root.value, root.own)
    owns = [-math.inf if node.own is None else node.own for node in tree.nodes]
    tree.best = int(np.argmax(owns))  # the first of the largest: towards the root
    if tree.best:
        winner = yield from _mean(simulate, tree.nodes[tree.best].text)
        again = yield from _mean(simulate, raw)
        tree.fresh = winner, again
        if winner <= again:
            tree.best = 0
    return tree


def _mean(simulate: Callable[[str], Steps[list[float]]], text: str) -> Steps[float]:
    rewards = [reward for reward in (yield from simulate(text)) if math.isfinite(reward)]
    if not rewards:
        raise TruelineError(
            f"No response to the instruction {text[:60]!r} could be scored, so the tree has nothing to go by."
        )
    return float(np.mean(rewards))


def search(
    raw: str,
    principles: Sequence[str],
    rewrite: Callable[[str, str], str],
    simulate: Callable[[str], list[float]],
    **settings: Any,
) -> Tree:
    """`grow` with plain functions."""

    def asked(call: Callable[..., Answer]) -> Callable[..., Steps[Answer]]:
        def wrapped(*arguments: Any) -> Steps[Answer]:
            return call(*arguments)
            yield

        return wrapped

    steps = grow(raw, principles, asked(rewrite), asked(simulate), **settings)
    try:
        next(steps)
    except StopIteration as end:
        found: Tree = end.value
        return found
    raise RuntimeError("a plain function asked for something")


def preference_rows(trees: Sequence[Tree], margin: float = 0.0) -> list[dict[str, str]]:
    """Preference pairs (prompt, chosen, rejected) to train a rewriter on with `trueline align` (sft, then dpo)."""
    return [
        {"prompt": rewriter_prompt(tree.nodes[0].text), "chosen": better, "rejected": worse}
        for tree in trees
        for better, worse in tree.pairs(margin)
    ]


def rewriter_prompt(instruction: str, principle: str = "") -> str:
    """What a rewriter reads before it writes the better instruction. principle: the one to apply; none for a trained rewriter."""
    rule = f"### Principle\n{principle}\n\n" if principle else ""
    return f"Rewrite the instruction so that it will be answered better. Keep what it asks for.\n\n{rule}### Instruction\n{instruction}\n\n### Better instruction\n"
