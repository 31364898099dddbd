"""What is asked of the decode engine and what comes back: requests, events, results and counters. No model here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trueline.engine.draw import Law
from trueline.errors import TruelineError
from trueline.groups import Prompt

Allowed = Callable[[list[int]], "Iterable[int] | None"]  # new tokens so far -> ids that may follow; None: all may


@dataclass
class Counters:
    """What a request has cost so far (spec A.3). One set is shared by all choices of a request.

    lm_tf: positions that language models processed (the policy and second models; a prompt once, however many rows share
    it). lm_calls: rows fed. rm_tf: the same for reward models that read ids through a cache, and for others the tokens of
    every text they read. rm_calls: candidates that a reward judged. depth: model rounds one after the other, which is what
    latency is made of. retries: candidates that were rejected and drawn again. discarded_tokens: drawn and not kept.
    failed: candidates that a reward could not judge. seconds: wall time since the request was admitted.
    """

    lm_tf: int = 0
    lm_calls: int = 0
    rm_tf: int = 0
    rm_calls: int = 0
    depth: int = 0
    retries: int = 0
    discarded_tokens: int = 0
    failed: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Budget:
    """Limits of one request; None is none. Where one is reached, every choice ends with what it has committed and
    finish "budget"."""

    lm_tf: int | None = None
    rm_calls: int | None = None
    seconds: float | None = None

    def spent(self, counters: Counters) -> bool:
        pairs = ((self.lm_tf, counters.lm_tf), (self.rm_calls, counters.rm_calls), (self.seconds, counters.seconds))
        return any(limit is not None and value >= limit for limit, value in pairs)


@dataclass
class Request:
    """One prompt to be continued. The result is a function of the request alone, never of what runs beside it.

    prompt_ids: the prompt in the policy's tokens, at least one. method: a name of the family `decode`, or several joined by
    '+': hooks and one search, as in 'dera+args' (order does not matter). options: of the method; of several, by name:
    {'dera': {...}, 'args': {...}}. max_new_tokens: limit of a response, its end token included. law: temperature, top-k and
    top-p of the *proposal*, after mixing and masks. eos_ids: any of them ends a response and is part of it. stop: texts that
    end a response, matched across tokens and units; they need a tokenizer. seed, stream: name the random numbers, together
    with choice, candidate and position. n: choices, each an independent run of the method.
    prompt, columns: what text rewards read (the prompt as text or conversation; further columns by name).
    rewards: weight by name of the engine's rewards; empty: the engine's only reward, if the method takes one.
    models: role to name of the engine's second models, {'aligned': 'dpo'}; a role that is not given is looked up by its own
    name. allowed: the mask hook, called with the new tokens so far; returns the ids that may follow, or None for all.
    top_logprobs: alternatives to report beside every committed token, under the proposal's law.
    scored: score the finished response even where the method did not (one more reward call a choice).
    judged_ids: what rewards that read ids take for the prompt, where a prompt hook has put something else before the model.
    overlap: text at the prompt's end that the model is to write again (token alignment): part of the response's ids, not of its text.
    """

    prompt_ids: list[int]
    method: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 128
    law: Law = field(default_factory=Law)
    eos_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    seed: int = 0
    stream: int = 0
    n: int = 1
    prompt: Prompt = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    allowed: Allowed | None = None
    top_logprobs: int = 0
    scored: bool = False
    judged_ids: list[int] | None = None
    overlap: str = ""
    budget: Budget = field(default_factory=Budget)


@dataclass
class Result:
    """One finished choice.

    ids: new tokens, the one that ended it included. text: of those tokens, cut before a stop text; "" without a tokenizer.
    finish: "stop" (end token or stop text), "length", "budget", "cancelled" or "error". stopped_by: the stop text found.
    reward: the weighted sum as the method saw it, of the whole response; None where nothing was scored. rewards: its parts.
    behaviour_logp: log-prob of each token under the law it was committed by, exact for token methods; None where a method
    has no law a token (a whole sample chosen among several). base_logp: log-prob of each token under the policy itself, at
    temperature 1, without mixing, masks and truncation. kl: estimate of KL(method || policy) from this one draw, in nats;
    kl_kind says by what: "law" (sum of behaviour - base), "bound", "acceptance"; None where there is none.
    counters: of the whole request at the moment this choice ended. error: what went wrong where finish is "error".
    details: what the method wants to tell beside (candidates and their rewards, thresholds, ...), JSON-ready.
    """

    number: int
    choice: int
    ids: list[int]
    text: str
    finish: str
    stopped_by: str | None = None
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    behaviour_logp: list[float] | None = None
    base_logp: list[float] = field(default_factory=list)
    kl: float | None = None
    kl_kind: str | None = None
    counters: Counters = field(default_factory=Counters)
    error: TruelineError | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Event:
    """Tokens that one choice has just committed for good (they are never retracted), and its result if that was the end.

    number: what `open` returned. ids, behaviour_logp, base_logp: as in Result, of the new tokens only. reward: of the line up to
    here where the method scored it. top: per token, (id, log-prob) of the likeliest alternatives, where asked for.
    """

    number: int
    choice: int
    ids: list[int]
    behaviour_logp: list[float] | None
    base_logp: list[float]
    reward: float | None = None
    top: list[list[tuple[int, float]]] | None = None
    finished: Result | None = None
