"""Feedback: who says which response is better.

A feedback method is a factory: it gets a `FeedbackContext`, an argument (what stands after the colon in
`--feedback reward:PATH`) and its own options, and returns `(groups) -> None`, which fills `reward` (and the breakdown
in `rewards`) of every response in place. None means 'not applicable'; NaN, a wrong number of rewards and an exception
are errors that name the row: `write_rewards` sees to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.registry import method

Feedback = Callable[[list[Group]], None]


@dataclass
class FeedbackContext:
    """What feedback may use. tokenizer: the policy's. token_budget: tokens per scoring micro-batch. offline: no hub."""

    tokenizer: Any
    token_budget: int
    precision: str = "exact"
    device: str = "cpu"
    offline: bool = False


def feedback(*, arxiv: str | None = None, paper: str | None = None, argument: str | None = None) -> Callable[..., Any]:
    """Register a feedback. argument: what must stand after the colon (`PATH`), None if nothing may."""
    return method("feedback", arxiv=arxiv, paper=paper, argument=argument)


def judge_labels(specs: Sequence[str]) -> dict[str, str]:
    """Label to specification: 'reward:runs/rm' is 'reward'; a second one the last of its path, then the whole text."""
    labels: dict[str, str] = {}
    for spec in dict.fromkeys(specs):
        name, _, argument = spec.partition(":")
        last = f"{name}:{argument.rstrip('/').split('/')[-1]}"
        labels[next(label for label in (name, last, spec) if label not in labels)] = spec
    return labels


def write_rewards(groups: list[Group], values: Sequence[float | None], who: str) -> None:
    """Give every response its reward, in order. Raises TruelineError for a wrong number of them or one not finite."""
    rows = [(g, r) for g in groups for r in g.responses]
    if not isinstance(values, (list, tuple)) or len(values) != len(rows):
        got = len(values) if isinstance(values, (list, tuple)) else type(values).__name__
        raise TruelineError(f"{who} returned {got} rewards for {len(rows)} responses. Return a list with one each.")
    rewards = [_number(value, group, response, who) for value, (group, response) in zip(values, rows, strict=True)]
    for reward, (_, response) in zip(rewards, rows, strict=True):
        response.reward = reward


def _number(value: Any, group: Group, response: Response, who: str) -> float | None:
    """A reward as a float; None stays None."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise TruelineError(
            f"{who} returned {repr(value)[:80]} for a response to {group.origin or 'a sampled prompt'}: "
            f"{response.text[:80]!r}. Return a finite number, or None for 'not applicable'."
        )
    return number
