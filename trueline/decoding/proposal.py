"""The proposal: what tokens are drawn from. In this order: mix, mask, mark, law.

    mix    logits of several models (or of one model after several prompts), summed with their weights in fp32
    mask   which tokens may follow; the others get a logit that no softmax gives weight to
    mark   per-row changes that depend on the tokens before (watermarks): of the logits, or the draw itself
    law    temperature, top-k, top-p (`engine/draw.py`)

A proposal with none of the first three is `plain`: whole batches are drawn at once then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from trueline.decoding.chance import law_logp
from trueline.decoding.lines import Line, Voice
from trueline.decoding.request import Allowed
from trueline.engine.draw import Law
from trueline.errors import TruelineError

OUT_OF_REACH = -1e30  # finite, so that a temperature and a mixture leave it one


@dataclass(frozen=True)
class Term:
    """A share of the mixture. model: "policy" or a second model's name. prompt_ids: read instead of the request's prompt."""

    model: str
    weight: float
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Mix:
    """logits = sum of weight * logits over the terms; the weights sum to 1, so the mixture is geometric."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        total = sum(term.weight for term in self.terms)
        if not self.terms or not math.isclose(total, 1.0, abs_tol=1e-9):
            raise TruelineError(f"The weights of a mixture sum to {total:g}; expected 1. Lower or raise the policy's.")


class Shaper(Protocol):
    """A mark. Both get all tokens before the next one, the prompt's included."""

    def shape(self, ids: list[int], logits_V: Tensor) -> Tensor:
        """Logits before the law; return them unchanged where the mark is made by the draw."""
        ...

    def draw(self, ids: list[int], logp_V: Tensor, uniform: float) -> int | None:
        """The token, from the law's log-probs (-inf outside its truncation); None: the ordinary draw."""
        ...


class Gate(Protocol):
    """Where a token search is worth its cost."""

    def certain(self, here: Position) -> bool:
        """Whether the next token is to be drawn plainly."""
        ...


@dataclass(eq=False)
class Position:
    """The place after a line. raw_V: the policy's own logits; mixed_V: after mixing; logits_V: after masks and marks too."""

    line: Line
    raw_V: Tensor
    mixed_V: Tensor
    logits_V: Tensor
    law: Law
    branches: dict[int, Line] = field(default_factory=dict)

    @property
    def base_V(self) -> Tensor:
        """log pi0(token), [V], float64."""
        if "base" not in self.line.extra or self.line.extra["base"][0] is not self.raw_V:
            self.line.extra["base"] = (self.raw_V, self.raw_V.double().log_softmax(-1))
        return self.line.extra["base"][1]

    @property
    def logp_V(self) -> Tensor:
        """Log-probs of the proposal at temperature 1 without truncation, [V], float64."""
        return self.logits_V.double().log_softmax(-1)

    @property
    def law_V(self) -> Tensor:
        """Log-probs under the law that tokens are drawn from, [V], -inf outside its truncation."""
        return law_logp(self.law, self.logits_V[None])[0]

    @property
    def entropy(self) -> float:
        """Of the untempered, untruncated and unmasked next-token distribution, in nats."""
        return float(entropy(self.mixed_V[None])[0])

    def top(self, k: int) -> tuple[list[int], Tensor]:
        """The k likeliest tokens that may follow, and their logits [k]; fewer where fewer may. k = 0: all that may."""
        known = self.logits_V.shape[-1]
        values, ids = self.logits_V.topk(min(k or known, known))
        may = values > OUT_OF_REACH / 2
        return ids[may].tolist(), values[may].double()


def entropy(logits_BV: Tensor) -> Tensor:
    """Nats, [B]."""
    logp_BV = logits_BV.log_softmax(-1)
    return -(logp_BV.exp() * logp_BV).sum(-1)


@dataclass(eq=False)
class Proposal:
    """Voices with their weights, the policy's first (its weight may be 0), and what follows."""

    policy: Voice
    law: Law
    voices: list[tuple[Voice, float]] = field(default_factory=list)
    masks: list[Allowed] = field(default_factory=list)
    marks: list[Shaper] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        return not (self.voices or self.masks or self.marks)

    def all_voices(self) -> list[Voice]:
        """Everybody who must have read a line: the policy, whose log-probs are reported, and who takes part."""
        return list(dict.fromkeys([self.policy, *(voice for voice, _ in self.voices)]))

    def mixed(self, logits: dict[Voice, Tensor]) -> Tensor:
        """[V of the smallest vocabulary]: models of one tokenizer may have embeddings padded to different sizes."""
        if not self.voices:
            return logits[self.policy]
        if len(self.voices) == 1:
            return logits[self.voices[0][0]]
        known = min(logits[voice].shape[-1] for voice, _ in self.voices)
        wide = [
            (w, logits[v][..., :known].to(torch.promote_types(logits[v].dtype, torch.float32))) for v, w in self.voices
        ]
        return torch.stack([w * z.to(wide[0][1].device) for w, z in wide]).sum(0)

    def position(self, line: Line, logits: dict[Voice, Tensor], length: int | None = None) -> Position:
        """The place after the first `length` new tokens of this line (all of them), from each voice's logits [V]."""
        return self.place(line, logits[self.policy], self.mixed(logits), length)

    def place(self, line: Line, raw_V: Tensor, mixed_V: Tensor, length: int | None = None) -> Position:
        """The same from logits that have been mixed."""
        new = line.new if length is None else line.new[:length]
        shaped_V = self._masked(new, mixed_V)
        for mark in self.marks:
            shaped_V = mark.shape([*line.root.prompt_ids, *new], shaped_V)
        return Position(line, raw_V, mixed_V, shaped_V, self.law)

    def _masked(self, new: list[int], logits_V: Tensor) -> Tensor:
        for mask in self.masks:
            allowed = mask(list(new))
            if allowed is None:
                continue
            known = [token for token in allowed if 0 <= token < logits_V.shape[-1]]
            if not known:
                raise TruelineError(
                    f"The mask allows no token after {len(new)} new tokens. Check the constraint: nothing can satisfy it here."
                )
            kept_V = torch.full_like(logits_V, OUT_OF_REACH)
            where = torch.tensor(known, device=logits_V.device)
            kept_V[where] = logits_V[where]
            logits_V = kept_V
        return logits_V

    def marked(self, here: Position, uniform: float) -> int | None:
        """The token that a mark draws by itself, if one does."""
        for mark in self.marks:
            token = mark.draw([*here.line.root.prompt_ids, *here.line.new], here.law_V, uniform)
            if token is not None:
                return token
        return None


def likeliest(logp_V: Tensor, count: int) -> list[tuple[int, float]]:
    values, ids = logp_V.topk(min(count, len(logp_V)))
    return [(int(i), float(v)) for i, v in zip(ids, values, strict=True) if v > -math.inf]


def voices_of(terms: Sequence[Term], models: dict[str, Voice], policy: Voice) -> list[tuple[Voice, float]]:
    """Who takes part with which weight. A voice that reads the request's prompt is the model's own, so that what it has read serves
    rollouts too."""
    voices = []
    for number, term in enumerate(terms):
        voice = policy if term.model == "policy" else models[term.model]
        if term.prompt_ids is not None:
            voice = Voice(f"{term.model}#{number}", voice.model, list(term.prompt_ids))
        voices.append((voice, term.weight))
    return voices
