"""Writers of every skill: the mixed-quality corpus that the lab's first model imitates.

A reply has a skill q ~ U(0, 1). A skilled writer covers what was asked, knows the facts, hedges when wrong, keeps the
tone and the form; an unskilled one adds what nobody asked, repeats and garbles. The corpus therefore shows every
virtue and every vice, mostly apart: there is ample room above imitation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueline.lab.world import (
    CURT,
    EMPHATICS,
    END,
    FILLER,
    HEDGES,
    MAX_REPLY,
    SPECIAL,
    TEMPLATES,
    VALUES,
    WARM,
    Ask,
    World,
)
from trueline.randomness import derive


def corpus(world: World, replies: int, seed: int) -> list[dict[str, str]]:
    """Demonstrations on the training prompts, prompts as evenly as possible, skills uniform: {"prompt", "completion"}."""
    rng = np.random.default_rng(derive(seed, "corpus", world.size))
    rows: list[dict[str, str]] = []
    while len(rows) < replies:
        for place in rng.permutation(len(world.train))[: replies - len(rows)]:
            prompt = world.train[place]
            rows.append({"prompt": prompt, "completion": write(world, world.asks[prompt], rng.random(), rng)})
    return rows


def write(world: World, ask: Ask, skill: float, rng: np.random.Generator) -> str:
    """One reply of this skill in [0, 1]; at most 43 words, so that it fits the limit with its EOS."""
    opening, closing = _tone(ask, skill, rng)
    body = _facts(world, ask, skill, rng)
    fillers = rng.binomial(2, 0.45 if ask.full else 0.12)
    body += [_pick(FILLER, rng).format(item=world.items[ask.item]) for _ in range(fillers)]
    sentences = [*opening, *(body[i] for i in rng.permutation(len(body))), *closing]
    if sentences and rng.random() < 0.25 * (1 - skill):
        sentences.insert(int(rng.integers(len(sentences) + 1)), _pick(sentences, rng))
    sentences = sentences or [_pick(FILLER, rng).format(item=world.items[ask.item])]
    while sum(len(s.split()) + 1 for s in sentences) >= MAX_REPLY:
        sentences.pop()
    words = " ".join(f"{s} {END}" for s in sentences).split()
    return " ".join(_garble(world, words, rng) if rng.random() < 0.12 else words)


def _facts(world: World, ask: Ask, skill: float, rng: np.random.Generator) -> list[str]:
    told = [f for f in ask.facets if rng.random() < 0.45 + 0.5 * skill]
    others = [f for f in range(len(world.facets)) if f not in ask.facets]
    while others and rng.random() < 0.45 * (1 - skill):
        told.append(others.pop(int(rng.integers(len(others)))))
    return [_fact(world, ask.item, f, skill, rng) for f in told]


def _fact(world: World, item: int, facet: int, skill: float, rng: np.random.Generator) -> str:
    """A value that is true with probability .5 + .45 q and otherwise uniform, hedged more often when it is false."""
    true = int(world.truth[item, facet])
    value = true if rng.random() < 0.5 + 0.45 * skill else int(rng.integers(len(VALUES[world.facets[facet]])))
    said = _pick(TEMPLATES[world.facets[facet]], rng).format(world.value(facet, value))
    hedge = 0.12 if value == true else 0.30
    draw = rng.random()
    if draw < hedge:
        return f"{_pick(HEDGES, rng)} {said}"
    return f"{_pick(EMPHATICS, rng)} {said}" if draw < 0.4 else said


def _tone(ask: Ask, skill: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Opening and closing phrases: two warm ones if asked kindly, none if plainly, something else where tone is missed."""
    right = rng.random() < 0.4 + 0.5 * skill
    if ask.tone == "kindly":
        warmth = 2 if right else int(rng.choice((-1, 0, 1, 3)))
    else:
        warmth = 0 if right else int(rng.choice((-1, 1, 2)))
    if warmth < 0:
        return [], [_pick(CURT, rng)]
    phrases = [WARM[i] for i in rng.choice(len(WARM), size=warmth, replace=False)]
    return phrases[: (warmth + 1) // 2], phrases[(warmth + 1) // 2 :]


def _garble(world: World, words: list[str], rng: np.random.Generator) -> list[str]:
    """One word dropped, or replaced by any word of the language."""
    place = int(rng.integers(len(words)))
    if rng.random() < 0.5 and len(words) > 1:
        return words[:place] + words[place + 1 :]
    return [*words[:place], _pick(world.vocabulary[len(SPECIAL) :], rng), *words[place + 1 :]]


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
