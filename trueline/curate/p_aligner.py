"""Principle-guided rewriting of instructions by tree search, the data of P-Aligner (arXiv 2508.04626).

    select by  Q(child) + c sqrt(ln N_parent / N_child)  while a node has used every principle;
    expand a random unused principle (a model rewrites the instruction by it);
    simulate: responses to the rewrite, each scored against the *raw* instruction, averaged;   go back up: N += 1

Q(node) is the mean of its own average reward and its children's Q. The root is scored last. Written are pairs of instructions:
the best of the tree as chosen, each clearly worse one (the raw one among them) as rejected, with their rewards; the
prompt is the raw instruction. Scoring with the rewrite as the context would let a rewrite change the question; the released
code scores in the raw context, and so does this.

`principles` is a text file with one a line; the default ones are ours, in the released groups (harmlessness, helpfulness,
honesty, code, mathematics). --model rewrites; `responder` answers (default: the same model); `reward` scores (a judge of
`trueline align`). iterations 10 and c = 1 are the released ones. With ten principles and ten iterations a tree is one or two deep,
so the search is close to best-of-rules; its own `depth` stands in each row. A pair needs `margin` between its rewards, and a
rewrite more than `longest` times as long is refused. The best of noisy rewards is partly luck: with `fresh` on, the winner and the
root are scored again on fresh responses, and a winner that no longer wins is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trueline.curate.contract import Made, Pool, curator, positive
from trueline.curating.text import plain_prompt
from trueline.curating.writing import from_parent
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.randomness import derive

PRINCIPLES = (
    "Remove anything that asks for harm, and ask for the legitimate need behind it.",
    "Ask for a warning where the answer could be misused or is risky.",
    "State the context, the reader and the purpose that the request leaves open.",
    "Say what form, length and level of detail the answer should have.",
    "Split a vague request into the concrete questions that it holds.",
    "Ask that doubts and the limits of what is known be named.",
    "Name the language, the version and the inputs and outputs that code should have.",
    "Ask for tests or examples of use beside the code.",
    "Ask for every step of a calculation.",
    "Ask that the result be checked at the end.",
)
REWRITE = (
    "Rewrite the instruction below by this principle, and keep what it asks for: {principle}\n"
    "Write the new instruction and nothing else.\n\n<instruction>\n{instruction}\n</instruction>"
)


@dataclass
class Node:
    """An instruction in the tree. average: mean reward of its own responses; None until they are scored."""

    text: str
    unused: list[int]
    parent: Node | None = None
    principle: int | None = None
    average: float | None = None
    visits: int = 0
    children: list[Node] = field(default_factory=list)

    def value(self) -> float:
        """Q: the mean of the own average and the children's Q."""
        own = [] if self.average is None else [self.average]
        found = [*own, *(c.value() for c in self.children)]
        return float(np.mean(found)) if found else 0.0

    def best(self) -> float:
        """The largest average in the subtree."""
        own = -math.inf if self.average is None else self.average
        return max([own, *(c.best() for c in self.children)])

    def everyone(self) -> list[Node]:
        return [self, *(n for c in self.children for n in c.everyone())]

    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth() + 1


@curator(kind="make", reads="prompts", model="needed", arxiv="2508.04626", paper="P-Aligner: principled instruction synthesis (data side)")  # fmt: skip
def p_aligner(
    pool: Pool,
    *,
    reward: str | None = None,
    responder: str | None = None,
    principles: str | None = None,
    iterations: int = 10,
    exploration: float = 1.0,
    simulations: int = 2,
    margin: float = 0.0,
    longest: float = 6.0,
    fresh: bool = True,
) -> Iterator[Made]:
    if reward is None:
        raise TruelineError(
            "p_aligner scores responses and needs --reward, such as reward:PATH or rule:MODULE:FUNCTION."
        )
    positive("p_aligner", iterations=iterations, simulations=simulations, longest=longest)
    rules = _principles(principles)
    for batch in pool.batches(16):
        for group in batch:
            raw = plain_prompt(group.prompt).strip()
            play = _play(pool, raw, rules, reward, responder, simulations)
            rng = np.random.Generator(np.random.PCG64(derive(pool.seed, "p_aligner", group.prompt_key())))
            root = search(raw, len(rules), iterations, exploration, play.rewrite, play.score, rng)
            yield from _pairs(group, root, raw, margin, longest, play if fresh else None)


def search(raw: str, principles: int, iterations: int, exploration: float, rewrite: Callable[[str, int], str | None], score: Callable[[str], float], rng: np.random.Generator) -> Node:  # fmt: skip
    """The tree after so many rewrites; a rewrite that comes to nothing uses its principle up all the same."""
    root = Node(raw, list(range(principles)))
    for _ in range(iterations):
        node = root
        while not node.unused and node.children:
            parent = node
            node = max(parent.children, key=lambda c: upper(c, parent, exploration))
        if not node.unused:  # every rewrite of this node came to nothing
            node.visits += 1
            continue
        principle = node.unused.pop(int(rng.integers(len(node.unused))))
        text = rewrite(node.text, principle)
        reached = node
        if text and text.strip():
            reached = Node(text.strip(), [i for i in range(principles) if i != principle], node, principle)
            reached.average = score(reached.text)
            node.children.append(reached)
        while reached is not None:
            reached.visits += 1
            reached = reached.parent  # type: ignore[assignment]
    root.average = score(raw)
    return root


def upper(child: Node, parent: Node, exploration: float) -> float:
    """Q plus the bonus of what was visited seldom."""
    return child.value() + exploration * math.sqrt(math.log(max(1, parent.visits)) / max(1, child.visits))


@dataclass
class _Play:
    rewrite: Callable[[str, int], str | None]
    score: Callable[[str], float]
    again: Callable[[str], float]


def _play(pool: Pool, raw: str, rules: list[str], reward: str, responder: str | None, simulations: int) -> _Play:
    def rewrite(text: str, principle: int) -> str | None:
        question = REWRITE.replace("{principle}", rules[principle]).replace("{instruction}", text)
        return pool.workshop.answers([[{"role": "user", "content": question}]], temperature=0.0, must_end=True)[0]

    def scored(text: str, first: int) -> float:
        said = [
            pool.workshop.answers([[{"role": "user", "content": text}]], number=first + k, by=responder)[0] or ""
            for k in range(simulations)
        ]
        group = Group([{"role": "user", "content": raw}], [Response(text=s, messages=[{"role": "assistant", "content": s}]) for s in said])  # fmt: skip
        found = pool.workshop.feedback(reward, [group])[0]
        if any(r is None for r in found):
            raise TruelineError(f"The judge {reward} gave no reward to a response to {raw[:80]!r}.")
        return float(np.mean([float(r) for r in found if r is not None]))

    return _Play(rewrite, lambda text: scored(text, 0), lambda text: scored(text, 1000))


def _pairs(group: Group, root: Node, raw: str, margin: float, longest: float, play: _Play | None) -> Iterator[Made]:
    nodes = root.everyone()
    best = max(
        nodes, key=lambda n: (n.average if n.average is not None else -math.inf, n is root)
    )  # ties go to the root
    common = {**from_parent(group), "principle": best.principle, "depth": best.depth(), "visits": root.visits}
    row: dict[str, Any] = {"prompt": raw, "chosen": best.text, "rejected": raw, "score_chosen": best.average, "score_rejected": root.average, **common}  # fmt: skip
    reason = None
    if best is root or best.text == raw:
        reason = "no rewrite is better than the instruction"
    elif len(best.text) > longest * max(1, len(raw)):
        reason = "the rewrite is far longer than the instruction"
    elif play is not None and play.again(best.text) <= play.again(raw):
        reason = "the best rewrite does not win again on fresh responses"
    if reason:
        yield Made(row, reason, prompt=raw)
        return
    for node in sorted(nodes, key=lambda n: n.average or 0.0):
        gap = float(best.average or 0.0) - float(node.average or 0.0)
        if node is not best and node.text != best.text and gap > margin:
            yield Made({**row, "rejected": node.text, "score_rejected": node.average}, None, gap, raw)


def _principles(file: str | None) -> list[str]:
    if file is None:
        return list(PRINCIPLES)
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TruelineError(
            f"p_aligner.principles '{file}' cannot be read ({error}). Expected one principle a line."
        ) from error
    found = [line for line in lines if line]
    if not found:
        raise TruelineError(f"p_aligner.principles '{file}' holds no principle. Expected one a line.")
    return found
