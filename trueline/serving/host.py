"""What a server serves, and the limits it keeps: fixed at start-up, only read afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trueline.decoding.request import Request
from trueline.decoding.rewards import RewardModel
from trueline.serving.grammar import Grammars
from trueline.serving.scheduler import Engine


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server, and how much of it at once.

    body: bytes of a request. new_tokens: of one answer, also where a client names no limit. prompts: open at once over all
    requests; beyond, 429. connections: HTTP requests under way, those that only read included. rows: choices times candidates
    of one request. responses: of one /v1/score. seconds: of work on one prompt. patience: seconds that a client may take to
    send or read the next piece. drain: seconds that open requests get after SIGTERM.
    """

    body: int = 4 << 20
    new_tokens: int = 1024
    prompts: int = 64
    connections: int = 512
    rows: int = 64
    responses: int = 64
    seconds: float = 600.0
    patience: float = 60.0
    drain: float = 30.0
    keep_alive: float = 10.0


@dataclass(frozen=True)
class Host:
    """One policy with its tokenizer, and the names that a request may use.

    name: the model id of the API. context: positions of the model, None where it has no limit. vocabulary: ids that it knows.
    as_run: a request as the engine runs it, after methods that change prompts and stops. capabilities: what `DecodeEngine.capabilities()` says of every method. rewards: by name; weights: of each in the sum that a search
    goes by where a request names none; models: names of second models.
    method, options: what answers where a request does not say.
    """

    name: str
    tokenizer: Any
    eos_ids: list[int]
    vocabulary: int
    context: int | None
    make_engine: Callable[[], Engine]
    grammars: Grammars
    capabilities: Mapping[str, Mapping[str, Any]]
    as_run: Callable[[Any, Request], Request] = lambda _, request: request
    rewards: Mapping[str, RewardModel] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    method: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self.tokenizer.chat_template)
