"""An engine that answers by rote, for tests of what stands around the real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trueline.decoding.request import Counters, Event, Request, Result
from trueline.errors import TruelineError


@dataclass
class Running:
    request: Request
    said: int = 0


@dataclass
class RoteEngine:
    """Every choice says `script(request)` token by token, `tokens_a_round` a round. broken: a round raises.

    opened and cancelled list the numbers as they came; pause: seconds that a round takes.
    """

    script: Callable[[Request], list[int]]
    pause: float = 0.0
    broken: bool = False
    opened: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)

    def open(self, request: Request) -> int:
        if request.method == "refused":
            raise TruelineError("this one is refused")
        number = len(self.opened)
        self.opened.append(number)
        self.running[number] = Running(request)
        return number

    def step(self) -> list[Event]:
        time.sleep(self.pause)
        if self.broken:
            self.broken = False
            raise RuntimeError("planted")
        events: list[Event] = []
        for number, run in list(self.running.items()):
            ids = self.script(run.request)[: run.request.max_new_tokens]
            new = ids[run.said : run.said + 1]
            run.said += 1
            over = run.said >= len(ids)
            if over:
                del self.running[number]
            for choice in range(run.request.n):
                finish = "stop" if ids[-1] in run.request.eos_ids else "length"
                result = Result(number, choice, ids, "", finish, base_logp=[-1.0] * len(ids)) if over else None
                if result is not None:
                    result.counters = Counters(lm_tf=len(run.request.prompt_ids) + len(ids), seconds=1.0)
                events.append(Event(number, choice, new, [-0.5] * len(new), [-1.0] * len(new), finished=result))
        return events

    def cancel(self, number: int) -> list[Event]:
        self.cancelled.append(number)
        self.running.pop(number)
        return []

    @property
    def busy(self) -> bool:
        return bool(self.running)

    @property
    def waiting(self) -> int:
        return 0

    @property
    def rows(self) -> int:
        return len(self.running)

    def capabilities(self) -> dict[str, dict[str, Any]]:
        return {"plain": {"runs": True, "why": "", "options": {}, "unit": "token"}}
