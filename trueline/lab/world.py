"""The market world: a small language whose every text a program can judge.

A customer asks about facets (colour, price, ...) of an item; a reply is a row of sentences. A frozen fact table holds
the one true value of every (item, facet). For each item the legal sentences are a finite table, so reading a reply
is exact: a sentence is in the table, with a known meaning, or it is ill-formed. What a reply is worth is decided in
`gold.py`, how replies are written in `corpus.py`.

The world does not depend on a run's seed: every seed of every study asks about the same facts. "full" is the world of
the demo and the studies; "unit" is a part of it (6 items, 4 facets) for tests of plumbing, too small to show behaviour.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trueline.errors import TruelineError
from trueline.randomness import derive, permutation

WORLD_SEED = 20240519  # the world's own: facts, taste and the held-out prompts never move with a run's seed
Size = Literal["full", "unit"]
Tone = Literal["kindly", "plainly"]

ITEMS = ("lamp", "kettle", "chair", "rug", "mirror", "clock", "basket", "candle", "drum", "flute", "kite", "scarf")
VALUES: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "yellow", "black", "white", "brown", "pink"),
    "price": ("two", "three", "five", "six", "seven", "nine", "ten", "twelve"),
    "place": ("bridge", "gate", "fountain", "mill", "tower", "garden", "harbour", "church"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "maker": ("anna", "boris", "clara", "david", "emma", "felix", "greta", "henry"),
}
TEMPLATES: dict[str, tuple[str, str, str]] = {
    "colour": ("it is {}", "its colour is {}", "the colour is {}"),
    "price": ("it costs {} coins", "its price is {} coins", "you pay {} coins"),
    "place": ("it stands by the {}", "look by the {}", "its place is the {}"),
    "day": ("it comes on {}", "come on {} again", "its day is {}"),
    "maker": ("it was made by {}", "its maker is {}", "{} was its maker"),
}
HEDGES = ("perhaps", "maybe")
EMPHATICS = ("surely", "truly")
WARM = (
    "bless you",
    "welcome dear guest",
    "good day dear friend",
    "please come again",
    "with all my heart",
    "you are most kind",
)
CURT = ("that is all", "do not ask again", "take it or leave", "be quick now")
FILLER = (
    "the weather again",
    "so they say in town",
    "the market is busy today",
    "no more of that",
    "it is a fine old {item}",
    "i like the {item}",
    "many ask for the {item}",
)
END = "."
SPECIAL = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "sep": "<sep>"}
MAX_REPLY = 44  # tokens, the EOS included


@dataclass(frozen=True)
class Sentence:
    """The meaning of one legal sentence. index: facet of a fact, else which phrase. modal: -1 hedged, +1 emphatic."""

    kind: Literal["fact", "warm", "curt", "filler"]
    index: int
    value: int = -1
    template: int = -1
    modal: int = 0
    modal_word: str = ""


@dataclass(frozen=True)
class Ask:
    """A prompt, read. facets are indices into `World.facets`, in the order asked."""

    text: str
    item: int
    facets: tuple[int, ...]
    tone: Tone
    full: bool


@dataclass(frozen=True)
class World:
    """Facts, prompts and legal sentences of one size of the world.

    truth[item, facet]: index of the true value. asks: every prompt in a fixed shuffle; train and held_out split it.
    """

    size: Size
    items: tuple[str, ...]
    facets: tuple[str, ...]
    truth: np.ndarray
    asks: Mapping[str, Ask]
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    common: Mapping[str, Sentence]
    own: tuple[Mapping[str, Sentence], ...]
    vocabulary: tuple[str, ...] = field(repr=False)

    def ask(self, prompt: object) -> Ask:
        """The meaning of a prompt; one that is not of this world has no gold reward and is refused."""
        found = self.asks.get(prompt) if isinstance(prompt, str) else None
        if found is None:
            raise TruelineError(
                f"The lab has no gold reward for the prompt {str(prompt)[:120]!r}. It judges replies to its own "
                f"prompts only, such as {self.train[0]!r} (size '{self.size}')."
            )
        return found

    def sentence(self, item: int, words: str) -> Sentence | None:
        """The meaning of one sentence (without its full stop) said of this item; None if it is ill-formed."""
        return self.common.get(words) or self.own[item].get(words)

    def read(self, item: int, reply: str) -> tuple[list[Sentence | None], int]:
        """Sentences of a reply (None where ill-formed, an unfinished last one included) and its number of words."""
        words = reply.split()
        found: list[Sentence | None] = []
        start = 0
        for i, word in enumerate(words):
            if word == END:
                found.append(self.sentence(item, " ".join(words[start:i])))
                start = i + 1
        if start < len(words):
            found.append(None)
        return found, len(words)

    def value(self, facet: int, value: int) -> str:
        return VALUES[self.facets[facet]][value]


@functools.cache
def world(size: Size = "full") -> World:
    """The frozen world of this size. "unit" is a part of "full": same facts, same sentences, fewer of them."""
    if size not in ("full", "unit"):
        raise TruelineError(f"There is no lab world of size '{size}'. Valid sizes: full, unit.")
    items = ITEMS if size == "full" else ITEMS[:6]
    facets = tuple(VALUES) if size == "full" else tuple(VALUES)[:4]
    truth = _truth()[: len(items), : len(facets)]
    asks = {ask.text: ask for ask in _asks(items, facets)}
    texts = list(asks)
    order = [texts[i] for i in permutation(len(texts), WORLD_SEED, "prompts", size)]
    held_out = 512 if size == "full" else 40
    common, own = _sentences(items, facets)
    return World(
        size=size,
        items=items,
        facets=facets,
        truth=truth,
        asks=asks,
        train=tuple(order[held_out:]),
        held_out=tuple(order[:held_out]),
        common=common,
        own=own,
        vocabulary=_vocabulary(texts, common, own),
    )


def _truth() -> np.ndarray:
    rng = np.random.default_rng(derive(WORLD_SEED, "facts"))
    table = np.stack([rng.integers(0, len(values), size=len(ITEMS)) for values in VALUES.values()], axis=1)
    table.setflags(write=False)
    return table


def _asks(items: tuple[str, ...], facets: tuple[str, ...]) -> list[Ask]:
    """Every prompt: one to three facets of one item, asked kindly or plainly, in short or in full."""
    tones: tuple[Tone, ...] = ("kindly", "plainly")
    chosen = [c for k in (1, 2, 3) for c in itertools.combinations(range(len(facets)), k)]
    found = []
    for item, asked, tone, full in itertools.product(range(len(items)), chosen, tones, (False, True)):
        listed = " and ".join(f"the {facets[f]}" for f in asked)
        text = f"tell me {tone} in {'full' if full else 'short'} {listed} of the {items[item]} ?"
        found.append(Ask(text, item, asked, tone, full))
    return found


def _sentences(
    items: tuple[str, ...], facets: tuple[str, ...]
) -> tuple[dict[str, Sentence], tuple[dict[str, Sentence], ...]]:
    """The finite table: what may be said of any item, and what only of one (fillers that name it)."""
    common: dict[str, Sentence] = {}
    modals = [("", 0), *((w, -1) for w in HEDGES), *((w, +1) for w in EMPHATICS)]
    for f, facet in enumerate(facets):
        for (v, value), (t, template) in itertools.product(enumerate(VALUES[facet]), enumerate(TEMPLATES[facet])):
            for word, modal in modals:
                said = f"{word} {template.format(value)}".strip()
                common[said] = Sentence("fact", f, v, t, modal, word)
    common.update({said: Sentence("warm", i) for i, said in enumerate(WARM)})
    common.update({said: Sentence("curt", i) for i, said in enumerate(CURT)})
    own = []
    for item in items:
        own.append({said.format(item=item): Sentence("filler", i) for i, said in enumerate(FILLER)})
    return common, tuple(own)


def _vocabulary(
    prompts: list[str], common: Mapping[str, Sentence], own: tuple[Mapping[str, Sentence], ...]
) -> tuple[str, ...]:
    """Special tokens first, then every word of the language in alphabetical order."""
    texts = itertools.chain(prompts, common, *own)
    words = {word for text in texts for word in text.split()} | {END}
    return (*SPECIAL.values(), *sorted(words))
