"""Instruction evolution: each instruction becomes harder step by step (Evol-Instruct, arXiv 2304.12244).

    x_0 -> x_1 -> ... -> x_rounds,    each step one of: deepen, add a constraint, make concrete, ask for more reasoning

The chain is kept: `level` (0 is the seed) and `chain` (which seed) are columns, so a chain can be ranked together, as deita
(arXiv 2312.15685) does to teach a scorer what complex means (5 rounds, 6 levels: its description as far as it could be
checked). `breadth` asks instead for a new instruction of the same kind on a rarer subject.

A step is refused, and the chain ends there, where nothing came or it was cut off, where it copies the prompt's own words ("the given
prompt", "rewritten prompt"), equals or nearly equals what came before (cosine of words above `similarity`), or is more than
`longest` times as long as the last step. The wording is ours; so are similarity and longest. Temperature 1, --temperature to change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from trueline.curate.contract import Made, Pool, curator, positive
from trueline.curating.embedding import word_vectors
from trueline.curating.neighbours import most_alike
from trueline.curating.text import plain_prompt, text_key
from trueline.curating.writing import from_parent
from trueline.errors import TruelineError
from trueline.randomness import derive

STEPS = {
    "deepen": "Ask for more depth and breadth on what it is about.",
    "constrain": "Add one more constraint or requirement.",
    "concrete": "Replace general terms by more specific ones.",
    "reason": "If a few steps of thinking solve it, change it so that several are asked for expressly.",
}
DEPTH = (
    "Rewrite the instruction below into one that is somewhat harder. {how} It must stay answerable, and keep tables, code "
    "and inputs. Write the new instruction and nothing else.\n\n{instruction}"
)
BREADTH = (
    "Write a new instruction of the same field and difficulty as the one below, on a rarer subject. Write the new instruction "
    "and nothing else.\n\n{instruction}"
)
_LEAK = re.compile(r"\b(given|rewritten|new|above) (prompt|instruction)\b|^#", re.I)


@curator(kind="make", reads="prompts", model="needed", arxiv="2304.12244", paper="WizardLM: Evol-Instruct")
def evolve(
    pool: Pool,
    *,
    rounds: int = 4,
    how: Literal["depth", "breadth"] = "depth",
    similarity: float = 0.97,
    longest: float = 4.0,
) -> Iterator[Made]:
    positive("evolve", rounds=rounds, longest=longest)
    if not 0 < similarity <= 1:
        raise TruelineError(f"evolve.similarity is {similarity:g}; expected above 0 and up to 1.")
    names = list(STEPS)
    for batch in pool.batches(64):
        chains = [[plain_prompt(g.prompt).strip()] for g in batch]
        growing = list(range(len(batch)))
        for i, group in enumerate(batch):
            yield Made(_row(group, chains[i][0], 0, "seed"), prompt=chains[i][0])
        for level in range(1, rounds + 1):
            steps = [names[derive(pool.seed, "evolve", batch[i].prompt_key(), level) % len(names)] for i in growing]
            asked: Any = [[{"role": "user", "content": _question(chains[i][-1], how, step)}] for i, step in zip(growing, steps, strict=True)]  # fmt: skip
            answers = pool.workshop.answers(asked, must_end=True) if asked else []
            going = []
            for i, step, answer in zip(growing, steps, answers, strict=True):
                text = (answer or "").strip()
                reason = refused(text, chains[i], similarity, longest)
                row = _row(batch[i], text, level, step if how == "depth" else "breadth")
                yield Made(row, reason, prompt=text)
                if reason is None:
                    chains[i].append(text)
                    going.append(i)
            growing = going


def refused(text: str, chain: list[str], similarity: float, longest: float) -> str | None:
    """Why a step is no step."""
    if not text:
        return "nothing came, or it was cut off"
    if _LEAK.search(text) and not _LEAK.search(chain[0]):
        return "the prompt's own words leaked"
    if text_key(text) in {text_key(t) for t in chain}:
        return "equal to an earlier step"
    vectors = word_vectors([text, *chain])
    if most_alike(vectors[:1], vectors[1:])[0] > similarity:
        return "nearly an earlier step"
    return "far longer than the last step" if len(text) > longest * max(40, len(chain[-1])) else None


def _question(text: str, how: str, step: str) -> str:
    asked = DEPTH.replace("{how}", STEPS[step]) if how == "depth" else BREADTH
    return asked.replace("{instruction}", text)


def _row(group: Any, text: str, level: int, step: str) -> dict[str, Any]:
    return {"prompt": text, "level": level, "step": step, "chain": group.prompt_key(), **from_parent(group)}
