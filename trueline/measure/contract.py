"""What a measurement gives: a `Reading`, a number with its interval, its unit and what it speaks for.

A measure is a function of numbers that something else has scored (log-probs, rewards, KL values): it never sees a
model. Intervals come from `trueline.intervals`; values of one prompt are resampled together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trueline.errors import TruelineError
from trueline.intervals import Interval, bootstrap_mean
from trueline.registry import method

SMALLER_IS_BETTER = ("eval_loss", "kl")  # of the readings that may pick the best checkpoint


@dataclass(frozen=True)
class Reading:
    """A measured value. low and high: its 95 % interval, None where there is none. n: independent units behind it.

    scope: what the interval allows for ("prompts": other prompts of this kind, with this very policy).
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    scope: str = "prompts"

    @classmethod
    def of_interval(cls, name: str, interval: Interval, *, unit: str, scope: str = "prompts") -> Reading:
        return cls(name, interval.value, interval.low, interval.high, interval.n, unit, scope)

    @classmethod
    def of_mean(
        cls,
        name: str,
        values: Sequence[float],
        *,
        unit: str,
        clusters: Sequence[Hashable] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Reading:
        """The mean of values with its bootstrap interval over prompts; a single prompt has no interval."""
        units = len(values) if clusters is None else len(set(clusters))
        if units == 1:
            return cls(name, sum(values) / len(values), None, None, 1, unit)
        return cls.of_interval(name, bootstrap_mean(values, clusters, bounds=bounds), unit=unit)

    def renamed(self, name: str) -> Reading:
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """What `evals.jsonl` holds under the reading's name."""
        return {k: v for k, v in asdict(self).items() if k != "name"}


def measure(*, arxiv: str | None = None, paper: str | None = None) -> Callable[..., Any]:
    """Register a measure: `def name(values..., clusters=None, *, options) -> Reading`."""
    return method("measure", arxiv=arxiv, paper=paper)


def share(
    name: str, chosen_P: Sequence[float], rejected_P: Sequence[float], clusters: Sequence[Hashable] | None, ties: float
) -> Reading:
    """Share of pairs whose chosen side has the larger number; an exact tie counts `ties`."""
    if len(chosen_P) != len(rejected_P) or not len(chosen_P):
        raise TruelineError(
            f"{name} needs as many chosen as rejected scores, and at least one pair; "
            f"found {len(chosen_P)} and {len(rejected_P)}."
        )
    for side, values in (("chosen", chosen_P), ("rejected", rejected_P)):
        bad = next((i for i, v in enumerate(values) if v != v), None)
        if bad is not None:
            raise TruelineError(f"{name}: the {side} score of pair {bad} is NaN. Find out why that row has no score.")
    outcomes = [ties if w == l else float(w > l) for w, l in zip(chosen_P, rejected_P, strict=True)]  # noqa: E741
    return Reading.of_mean(name, outcomes, unit="share", clusters=clusters, bounds=(0.0, 1.0))
