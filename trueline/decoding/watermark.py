"""Marks in sampled text and their detectors: the green list of KGW and the Gumbel mark.

Both seed pseudo-random numbers with a key and the last h tokens (prompt included) and let them lean on the next draw:

    KGW     a green list of size gamma V; green logits rise by delta.        z = (green - gamma T) / sqrt(T gamma (1 - gamma))
    Gumbel  u_v in (0, 1); the token is argmax u_v^(1/p_v), or (randomised) is drawn in proportion to u_v^(1/p_v).
            S = sum -log(1 - u of the token), on unmarked text Gamma(T, 1).  z = (S - T) / sqrt(T)

The argmax is distortion-free: over keys its law is p itself. The randomised draw is not: three tokens of p = (.6, .3, .1) are drawn
with (.5695, .3163, .1143). Its samples differ, so that one can choose among them; those of the argmax are all the same.

Detectors score each (context, token) pair once: repeated pairs are not independent, and counting them inflates z. p is exact
(binomial, gamma); z is what the literature reports. The public Gumbel detector divides by (pi / sqrt 6) sqrt T, the spread of a
Gumbel variable instead of an exponential one, and so flags too little; gamma is counted from the list as it is, not as it was asked for. A green list of one context token is that of `transformers` (left hash), so its `WatermarkDetector` reads our text; it is always
made on the CPU, whose numbers a GPU's generator does not repeat. Two settings of that library are not: with a left hash it ignores all but the last of
several context tokens, and its self-hash looks at 40 candidates only.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from trueline.errors import TruelineError
from trueline.randomness import derive

KEY = 15485863  # transformers' hashing key
CONTEXTS = 256  # whose numbers are kept: neighbours in a batch often share them


@dataclass(frozen=True)
class Detection:
    """tokens: pairs scored. score: green ones (KGW) or S (Gumbel). z: in standard deviations of unmarked text. p: chance of such a score
    without a mark."""

    tokens: int
    score: float
    z: float
    p: float


class GreenList:
    """KGW. gamma: share of the vocabulary that is green; delta: what its logits gain; context: tokens that seed it."""

    def __init__(self, vocabulary: int, gamma: float, delta: float, context: int, key: int):
        self.size = int(vocabulary * gamma) if math.isfinite(gamma) else 0
        if not 0 < gamma < 1 or self.size == 0:
            raise TruelineError(
                f"gamma is {gamma} of {vocabulary} tokens; expected a share between 0 and 1 that leaves tokens both in and out of the "
                "green list. With all tokens green or none, nothing is marked and nothing can be detected."
            )
        if not (math.isfinite(delta) and delta >= 0):
            raise TruelineError(f"delta is {delta}; expected a finite number of nats, 0 (no mark) or above.")
        self.vocabulary, self.delta, self.context, self.key = vocabulary, delta, _context(context), key
        self.green = lru_cache(maxsize=CONTEXTS)(self._green)

    def _green(self, context: tuple[int, ...]) -> Tensor:
        """Which tokens are green after these, [V]."""
        one = len(context) == 1
        seed = (self.key * context[0]) % (2**64 - 1) if one else derive(self.key, "green", *context)
        order = torch.randperm(self.vocabulary, generator=torch.Generator().manual_seed(seed))
        green = torch.zeros(self.vocabulary, dtype=torch.bool)
        green[order[: self.size]] = True
        return green

    def shape(self, ids: list[int], logits_V: Tensor) -> Tensor:
        """Logits of the token after these ids (the prompt's included), marked; as they were where there are too few ids."""
        if len(ids) < self.context:
            return logits_V
        green_V = self.green(tuple(ids[-self.context :])).to(logits_V.device)[: len(logits_V)]
        return torch.where(green_V, logits_V + self.delta, logits_V)

    def draw(self, ids: list[int], logp_V: Tensor, uniform: float) -> int | None:
        """The ordinary draw, from marked logits."""
        return None

    def detect(self, ids: Sequence[int], *, unique: bool = True) -> Detection:
        """Score tokens; the first `context` of them only seed. unique=False counts repeated pairs, as other detectors do."""
        pairs = _pairs(ids, self.context, self.vocabulary, unique)
        total = len(pairs)
        green = sum(int(self.green(context)[token]) for context, token in pairs)
        gamma = self.size / self.vocabulary
        z = (green - gamma * total) / math.sqrt(total * gamma * (1 - gamma))
        return Detection(total, green, z, float(stats.binom.sf(green - 1, total, gamma)))


class GumbelMark:
    """context: tokens that seed the numbers; randomised: draw in proportion to u^(1/p) instead of taking the largest."""

    def __init__(self, vocabulary: int, context: int, key: int, randomised: bool):
        self.vocabulary, self.context, self.key = vocabulary, _context(context), key
        self.randomised = randomised
        self.uniforms = lru_cache(maxsize=CONTEXTS)(self._uniforms)

    def _uniforms(self, context: tuple[int, ...]) -> NDArray[np.float64]:
        """u_v in (0, 1) of every token after these, [V]."""
        seed = np.uint64(derive(self.key, "gumbel", *context))
        return uniforms_of(seed, np.arange(self.vocabulary, dtype=np.uint64))

    def shape(self, ids: list[int], logits_V: Tensor) -> Tensor:
        """Logits stay: the mark is made by the draw."""
        return logits_V

    def keys(self, ids: Sequence[int], logp_V: NDArray[np.float64]) -> NDArray[np.float64]:
        """log u_v^(1/p_v) of every token that may follow these ids, -inf of the others. The power itself would underflow."""
        p_V = np.exp(logp_V)
        u_V = self.uniforms(tuple(ids[-self.context :]))[: len(p_V)]
        return np.where(p_V > 0, np.log(u_V) / np.where(p_V > 0, p_V, 1.0), -np.inf)

    def draw(self, ids: list[int], logp_V: Tensor, uniform: float) -> int | None:
        """The token after these ids (the prompt's included) from the law's log-probs; None where there are too few ids to seed it."""
        if len(ids) < self.context:
            return None
        keys_V = self.keys(ids, logp_V.double().cpu().numpy())
        if not self.randomised:
            return int(keys_V.argmax())
        weights = np.exp(keys_V - keys_V.max())
        edges = np.cumsum(weights)
        found = int(np.searchsorted(edges, uniform * edges[-1], side="right"))
        return min(found, int(np.flatnonzero(weights)[-1]))

    def detect(self, ids: Sequence[int], *, unique: bool = True) -> Detection:
        """Score tokens; the first `context` of them only seed."""
        pairs = _pairs(ids, self.context, self.vocabulary, unique)
        total = len(pairs)
        score = -sum(math.log1p(-float(self.uniforms(context)[token])) for context, token in pairs)
        return Detection(total, score, (score - total) / math.sqrt(total), float(stats.gamma.sf(score, total)))


def uniforms_of(seed: np.uint64, names: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in (0, 1) a name: SplitMix64's output function on seed + (name + 1) golden ratios."""
    with np.errstate(over="ignore"):
        x = seed + (names + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52


def watermark(method: str, vocabulary: int, options: dict[str, object]) -> GreenList | GumbelMark:
    """The mark of a decoding method by its name and options, as `kgw` and `gumbel` build it: what a detector needs."""
    makers: dict[str, Callable[..., GreenList | GumbelMark]] = {"kgw": GreenList, "gumbel": GumbelMark}
    if method not in makers:
        raise TruelineError(f"'{method}' is no watermark; expected one of {', '.join(makers)}.")
    from trueline.catalogue import entry

    known = {option.name: option.default for option in entry("decode", method).options}
    if unknown := sorted(set(options) - set(known)):
        raise TruelineError(f"{method} has no option '{unknown[0]}'; it has {', '.join(known)}.")
    return makers[method](vocabulary, **{**known, **options})


def _context(context: int) -> int:
    if context < 1:
        raise TruelineError(f"context is {context}; expected at least 1 token that seeds the mark.")
    return context


def _pairs(ids: Sequence[int], context: int, vocabulary: int, unique: bool) -> list[tuple[tuple[int, ...], int]]:
    if wrong := [i for i in ids if not 0 <= i < vocabulary]:
        raise TruelineError(
            f"Token id {wrong[0]} is beyond the {vocabulary} of the mark; give the vocabulary that it was made with."
        )
    pairs = [(tuple(ids[t - context : t]), ids[t]) for t in range(context, len(ids))]
    if not pairs:
        raise TruelineError(f"{len(ids)} tokens are too few to look for a mark: the first {context} only seed it.")
    return list(dict.fromkeys(pairs)) if unique else pairs
