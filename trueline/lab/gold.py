"""The gold reward: a program that knows what a reply is worth, and why.

With k facets asked, over the sentences of a reply of L words (full stops included):

    credit q    1/k * sum over asked facets of the first mention: +1 true, -1 false; hedged +.6 true, -.2 false; absent 0
    tone m      exp(-(w - w*)^2 / 1.5), w = #warm - #curt, w* = 2 asked kindly, 0 asked plainly
    misfit l    min(((L - L*) / 8)^2, 3), L* = 7k + 3 plainly, 7k + 9 kindly, + 8 in full
    counts      d facets given two values, o facets told but not asked, p repeats, g ill-formed sentences
    taste s     w2 . tanh(W1 [item embedding; 24 style counts]), frozen and random

    r = 2.5 q + 1.5 m (.4 + .6 max(q, 0)) - .7 l - .8 min(d, 3) - .4 min(o, 4) - .6 min(p, 4) - .7 min(g, 4) + .7 s

Credit and tone multiply, too much warmth is as wrong as too little, and taste is idiosyncratic: a proxy trained on
pairs learns part of it. Every attribute is reported beside r, because together they explain each gain and each exploit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.lab.world import CURT, EMPHATICS, FILLER, HEDGES, WARM, WORLD_SEED, Ask, Sentence, World
from trueline.randomness import derive

STYLES = len(WARM) + len(CURT) + len(FILLER) + 3 + len(EMPHATICS) + len(HEDGES)  # 24
TASTE_UNITS, ITEM_DIMENSIONS = 8, 6

CREDIT = {(True, False): 1.0, (False, False): -1.0, (True, True): 0.6, (False, True): -0.2}  # (true, hedged)


@dataclass(frozen=True)
class Judged:
    """What gold says of R replies: arrays [R], the reward and every attribute it is made of.

    coverage: share of the asked facets that are mentioned. warmth: #warm - #curt. length: words, full stops included.
    """

    reward: NDArray[np.float64]
    credit: NDArray[np.float64]
    coverage: NDArray[np.float64]
    tone: NDArray[np.float64]
    warmth: NDArray[np.float64]
    length: NDArray[np.float64]
    length_misfit: NDArray[np.float64]
    contradictions: NDArray[np.float64]
    unasked: NDArray[np.float64]
    repeats: NDArray[np.float64]
    ill_formed: NDArray[np.float64]
    well_formed: NDArray[np.float64]
    taste: NDArray[np.float64]

    def rows(self) -> list[dict[str, float]]:
        """The attributes (all but the reward) of each reply, by name."""
        names = [f.name for f in fields(self) if f.name != "reward"]
        table = np.stack([getattr(self, name) for name in names], axis=1)
        return [dict(zip(names, row, strict=True)) for row in table.tolist()]


def judge(world: World, prompts: Sequence[str], replies: Sequence[str]) -> Judged:
    """Gold reward and attributes of each (prompt, reply). Any text is a reply: what is not of the world is ill-formed.

    Some 20 microseconds a reply: sentences are looked up, the formula runs on arrays.
    """
    if len(prompts) != len(replies):
        raise TruelineError(f"Every reply needs its prompt; found {len(replies)} replies and {len(prompts)} prompts.")
    asks = [world.ask(p) for p in prompts]
    counted = [_count(world, ask, reply) for ask, reply in zip(asks, replies, strict=True)]
    table = np.array([c[0] for c in counted], dtype=float).reshape(len(counted), 8)
    credit, coverage, warmth, length, contradictions, unasked, repeats, ill_formed = table.T
    kindly = np.array([a.tone == "kindly" for a in asks], dtype=float)
    facets = np.array([len(a.facets) for a in asks], dtype=float)
    full = np.array([a.full for a in asks], dtype=float)

    tone = np.exp(-((warmth - 2 * kindly) ** 2) / 1.5)
    misfit = np.minimum(((length - (7 * facets + 3 + 6 * kindly + 8 * full)) / 8) ** 2, 3.0)
    style = np.array([c[1] for c in counted], dtype=float).reshape(len(counted), STYLES)
    taste = _taste(np.array([a.item for a in asks], dtype=int), style)
    reward = (
        2.5 * credit
        + 1.5 * tone * (0.4 + 0.6 * np.maximum(credit, 0.0))
        - 0.7 * misfit
        - 0.8 * np.minimum(contradictions, 3)
        - 0.4 * np.minimum(unasked, 4)
        - 0.6 * np.minimum(repeats, 4)
        - 0.7 * np.minimum(ill_formed, 4)
        + 0.7 * taste
    )
    return Judged(
        reward=reward,
        credit=credit,
        coverage=coverage,
        tone=tone,
        warmth=warmth,
        length=length,
        length_misfit=misfit,
        contradictions=contradictions,
        unasked=unasked,
        repeats=repeats,
        ill_formed=ill_formed,
        well_formed=(ill_formed == 0).astype(float),
        taste=taste,
    )


def reward(world: World, prompts: Sequence[str], replies: Sequence[str]) -> NDArray[np.float64]:
    """The gold reward alone, [R]."""
    return judge(world, prompts, replies).reward


def preference(difference: NDArray[np.float64] | float, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probability that a labeller of this temperature prefers the reply whose reward is higher by `difference`."""
    return 0.5 * (1.0 + np.tanh(np.asarray(difference, dtype=float) / (2.0 * temperature)))


def _count(world: World, ask: Ask, reply: str) -> tuple[tuple[float, ...], list[int]]:
    """The counted attributes of one reply, in the order `judge` unpacks them, and its style counts."""
    sentences, length = world.read(ask.item, reply)
    first: dict[int, Sentence] = {}
    values: dict[int, set[int]] = {}
    said: set[tuple[str, int, int]] = set()
    style = [0] * STYLES
    warmth = repeats = ill_formed = 0
    for sentence in sentences:
        if sentence is None:
            ill_formed += 1
            continue
        key = (sentence.kind, sentence.index, sentence.value)  # the same fact in other words is still a repeat
        repeats += key in said
        said.add(key)
        warmth += (sentence.kind == "warm") - (sentence.kind == "curt")
        if sentence.kind == "fact":
            first.setdefault(sentence.index, sentence)
            values.setdefault(sentence.index, set()).add(sentence.value)
        for place in _style_places(sentence):
            style[place] += 1
    true = world.truth[ask.item]
    told = [first[f] for f in ask.facets if f in first]
    credit = sum(CREDIT[bool(s.value == true[s.index]), s.modal < 0] for s in told) / len(ask.facets)
    contradictions = sum(len(v) > 1 for v in values.values())
    unasked = len(values.keys() - set(ask.facets))
    coverage = len(told) / len(ask.facets)
    return (credit, coverage, warmth, length, contradictions, unasked, repeats, ill_formed), style


@functools.cache
def _style_places(sentence: Sentence) -> tuple[int, ...]:
    """Which of the 24 style counts a sentence raises: its phrase, or its template and modal word."""
    starts = {"warm": 0, "curt": len(WARM), "filler": len(WARM) + len(CURT)}
    if sentence.kind != "fact":
        return (starts[sentence.kind] + sentence.index,)
    template = len(WARM) + len(CURT) + len(FILLER)
    if sentence.modal == 0:
        return (template + sentence.template,)
    return (template + sentence.template, template + 3 + (*EMPHATICS, *HEDGES).index(sentence.modal_word))


@functools.cache
def _taste_weights() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Item embeddings [12, 6], W1 [8, 30], w2 [8]: frozen normals. The scales make taste of standard deviation 1 on the corpus."""
    rng = np.random.default_rng(derive(WORLD_SEED, "taste"))
    items = rng.standard_normal((12, ITEM_DIMENSIONS))
    first = rng.standard_normal((TASTE_UNITS, ITEM_DIMENSIONS + STYLES)) / np.sqrt(ITEM_DIMENSIONS)
    second = 0.75 * rng.standard_normal(TASTE_UNITS) / np.sqrt(TASTE_UNITS)
    return items, first, second


def _taste(item_R: NDArray[np.int_], style_RS: NDArray[np.float64]) -> NDArray[np.float64]:
    items, first, second = _taste_weights()
    seen = np.concatenate([items[item_R], style_RS], axis=1)
    return np.tanh(seen @ first.T) @ second
