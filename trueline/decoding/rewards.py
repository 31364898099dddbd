"""Rewards: who says how good a line is. One interface with declared capabilities, and the rewards that read ids.

    ScalarReward     a sequence classifier that shares the policy's tokenizer, on a cache of its own
    ImplicitReward   beta * (log pi - log pi_ref) of two language models; says something of every prefix by construction
    TableReward      a function of ids (tabular oracles, tests)

Rewards of text are in `text_rewards.py`; sums are the engine's (a request names rewards with weights), calibration is `Calibrated`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from trueline.decoding.lines import Line, Root, Voice, read, read_logp
from trueline.decoding.models import Scorer, language_model
from trueline.decoding.request import Counters
from trueline.engine.policy import Policy
from trueline.errors import TruelineError
from trueline.inference_aware import calibrate

Encode = Callable[[Any, str], tuple[list[int], list[int]]]  # (prompt, response text) -> prompt ids, response ids


@dataclass(frozen=True)
class Capabilities:
    """What a reward can be asked. unit: "prefix" (unfinished text too) or "whole". reads: "ids" or "text". cacheable: whether it keeps
    what it has read of a line. low, high: its range, None where unbounded. trained_on_prefixes: False where it says a number about
    unfinished text but was trained on whole responses: such scores of prefixes may be arbitrary (arXiv 2406.07780)."""

    unit: str = "whole"
    reads: str = "text"
    cacheable: bool = False
    low: float | None = None
    high: float | None = None
    trained_on_prefixes: bool = False


class RewardModel(Protocol):
    """Higher is better. One object serves every request of an engine and is called from its thread alone."""

    capabilities: Capabilities

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        """One number a line, in order; NaN where it failed on that line alone. counters: where each line's cost is added.

        A line's new tokens are `line.new`, its prompt's `line.root.prompt_ids`, the request is `line.extra["request"]` and
        `line.extra["text"](line)` its text. A reward that keeps caches keeps them in `line.readings`, which fork and close with it.
        """
        ...

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        """The same of finished texts, without caches (`/v1/score`). prompt: text or conversation."""
        ...


def text_line(prompt_ids: list[int], ids: list[int]) -> Line:
    """A finished line of given ids, for scoring outside a request."""
    line = Line(Root(prompt_ids, Counters()), max(1, len(ids)), (0, 0, 0), list(ids))
    line.finish = "stop"
    return line


def score_encoded(reward: RewardModel, encode: Encode | None, prompt: Any, responses: Sequence[str]) -> list[float]:
    """Scores of texts by a reward that reads ids."""
    if encode is None:
        raise TruelineError("This reward reads token ids; give it `encode` to score texts.")
    lines = [text_line(*encode(prompt, response)) for response in responses]
    try:
        return reward.score(lines, [line.root.counters for line in lines])
    finally:
        for line in lines:
            line.close()
            line.root.close()


class ScalarReward:
    """A reward model with one scalar head that reads the policy's own ids; read at the last token, whatever it is.

    (The head of `transformers` reads the last token that is not padding, so that a candidate equal to the padding token, often
    the end token, would be judged one token too early.) prefixes: whether it was trained on unfinished responses too; it says a
    number about any prefix either way. encode: (prompt, text) -> ids, for `score_text`.
    """

    def __init__(self, policy: Policy, *, prefixes: bool = False, encode: Encode | None = None):
        self.voice = Voice("reward", Scorer.of(policy), rewards=True)
        self.models = [self.voice.model]
        self.encode = encode
        self.capabilities = Capabilities("prefix", "ids", True, trained_on_prefixes=prefixes)

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        model = self.voice.model
        read(model, [(self.voice, line) for line in lines])
        states = torch.stack([line.readings[self.voice].state for line in lines])  # type: ignore[misc]
        return [float(value) for value in model.values(states).tolist()]

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        return score_encoded(self, self.encode, prompt, responses)


class ImplicitReward:
    """r(x, y) = beta * [log pi(y|x) - log pi_ref(y|x)] (arXiv 2305.18290), of a line as far as it goes."""

    def __init__(self, aligned: Any, reference: Any, *, beta: float = 0.1, encode: Encode | None = None):
        if beta <= 0:
            raise TruelineError(f"beta of an implicit reward is {beta}; expected a number above 0.")
        self.beta = beta
        self.voices = [
            Voice(name, language_model(m), rewards=True) for name, m in (("aligned", aligned), ("reference", reference))
        ]
        self.models = [voice.model for voice in self.voices]
        self.encode = encode
        self.capabilities = Capabilities("prefix", "ids", True, trained_on_prefixes=True)

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        aligned, reference = (read_logp(voice.model, voice, lines) for voice in self.voices)
        return [self.beta * (sum(a) - sum(b)) for a, b in zip(aligned, reference, strict=True)]

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        return score_encoded(self, self.encode, prompt, responses)


class TableReward:
    """A function of a line's new tokens: (ids) -> number. prefix: whether it may be asked about unfinished lines."""

    def __init__(
        self, function: Callable[[tuple[int, ...]], float], *, prefix: bool = True, encode: Encode | None = None
    ):
        self.function = function
        self.encode = encode
        self.capabilities = Capabilities("prefix" if prefix else "whole", "ids", trained_on_prefixes=prefix)

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        for line, count in zip(lines, counters, strict=True):
            count.rm_tf += len(line.root.prompt_ids) + len(line.new)
        return [float(self.function(tuple(line.new))) for line in lines]

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        return score_encoded(self, self.encode, prompt, responses)


class Calibrated:
    """Another reward on the scale of its own values for samples of the policy: C(r) = share below + half the ties, in [0, 1].

    InfAlign's calibration (arXiv 2412.19792). reference: rewards of such samples, pooled over prompts, at least two.
    """

    def __init__(self, reward: RewardModel, reference: Sequence[float]):
        self.reward = reward
        self.reference = np.asarray(reference, dtype=np.float64)
        if len(self.reference) < 2 or not np.isfinite(self.reference).all():
            raise TruelineError(
                f"Calibration needs at least two finite rewards of samples; found {len(self.reference)}."
            )
        self.models = getattr(reward, "models", [])
        self.capabilities = replace(reward.capabilities, low=0.0, high=1.0)

    def _of(self, values: Sequence[float]) -> list[float]:
        given = np.asarray(values, dtype=np.float64)
        return [float(c) for c in np.where(np.isfinite(given), calibrate(given, self.reference), np.nan)]

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        return self._of(self.reward.score(lines, counters))

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        return self._of(self.reward.score_text(prompt, responses, columns))
