"""What is watched while a run goes on, so that one which trains, logs plausible numbers and is wrong gets noticed.

Each rule (`alarm_rules.py`) looks at a few of the metrics of a step or the readings of an evaluation and fires at most
once, with a message that says what was seen, why it matters and what to do. Pure Python: nothing here is slow.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from trueline.alarm_rules import RULES, Facts, Rule, Thresholds, Windows


class Alarm(NamedTuple):
    """One thing that looks wrong. step: the optimiser step after which it was seen."""

    step: int
    name: str
    message: str


class Alarms:
    """All rules of one run.

    kl_budget: nats to the reference that are allowed. starts_at_reference: the reference is the starting model and
    nothing random (dropout) stands between them. initial_loss: what the objective gives where they are equal
    (log 2 for dpo). learning_rate: its peak. training_judges: labels J of the judges that training optimises, as in
    the readings `reward/J`; without them any judge that rises while another falls counts.
    """

    def __init__(
        self,
        *,
        kl_budget: float | None = None,
        starts_at_reference: bool = True,
        initial_loss: float | None = None,
        learning_rate: float | None = None,
        training_judges: Collection[str] = (),
        thresholds: Thresholds | None = None,
    ):
        facts = Facts(kl_budget, starts_at_reference, initial_loss, learning_rate, frozenset(training_judges))
        self._rules = [rule(facts, thresholds or Thresholds()) for rule in RULES]

    @property
    def watched(self) -> dict[str, str]:
        """Name of each alarm whose numbers have appeared, with what it looks at."""
        return {rule.name: rule.looks_at for rule in self._rules if rule.seen}

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Alarms raised by the metrics of step `step` (from 1), each at most once in a run."""
        return self._fire(step, [(rule, rule.on_step(step, metrics)) for rule in self._rules])

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> list[Alarm]:
        """Alarms raised by the readings after `step` steps: {name: {value, low, high}}."""
        return self._fire(step, [(rule, rule.on_eval(step, readings)) for rule in self._rules])

    def _fire(self, step: int, found: list[tuple[Rule, str | None]]) -> list[Alarm]:
        raised = []
        for rule, message in found:
            if message and not rule.fired:
                rule.fired = True
                raised.append(Alarm(step, rule.name, message))
        return raised

    def state(self) -> dict[str, Any]:
        """Everything the rules remember, as JSON: a resumed run raises the alarms of an uninterrupted one."""
        return {
            rule.name: {
                "seen": rule.seen,
                "fired": rule.fired,
                "windows": {name: asdict(w) for name, w in rule.windows.items()},
                "memory": copy.deepcopy(rule.memory),
            }
            for rule in self._rules
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        for rule in self._rules:
            held = state[rule.name]
            rule.seen, rule.fired, rule.memory = held["seen"], held["fired"], copy.deepcopy(held["memory"])
            rule.windows = {name: Windows(**w) for name, w in held["windows"].items()}
