"""Feedback: who says which response is better.

A feedback method is a factory: it gets a `FeedbackContext`, an argument (what stands after the colon in
`--feedback reward:PATH`) and its own options, and returns `(groups) -> None`, which fills `reward` (and the breakdown
in `rewards`) of every response in place. None means 'not applicable'; NaN, a wrong number of rewards and an exception
are errors that name the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trueline.groups import Group
from trueline.registry import method

Feedback = Callable[[list[Group]], None]


@dataclass
class FeedbackContext:
    """What feedback may use. tokenizer: the policy's. token_budget: tokens per scoring micro-batch."""

    tokenizer: Any
    token_budget: int
    precision: str = "exact"
    device: str = "cpu"


def feedback(*, arxiv: str | None = None, paper: str | None = None, argument: str | None = None) -> Callable[..., Any]:
    """Register a feedback. argument: what must stand after the colon (`PATH`), None if nothing may."""
    return method("feedback", arxiv=arxiv, paper=paper, argument=argument)
