"""What a decoding method sees: one response in the making, and what can be asked about it.

Methods are generators. `yield from loop.something(...)` waits for a model, everything else is immediate. An `Ask` is what a
generator yields to the engine, which answers those of all open responses together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from trueline.decoding.chance import Chance
from trueline.decoding.lines import Line, Root, Voice
from trueline.decoding.models import check_room
from trueline.decoding.proposal import Gate, Position, Proposal, likeliest
from trueline.decoding.request import Counters, Request
from trueline.engine.draw import Law
from trueline.errors import TruelineError

Until = Callable[[Line, float], bool]  # (line, entropy of its next token in nats) -> stop before drawing that token
Answer = TypeVar("Answer")
Asking = Generator["Ask", Any, Answer]
Steps = Generator["Ask", Any, None]


@dataclass(eq=False)
class Ask:
    """A question to the models. lines: about which lines."""

    lines: list[Line]


@dataclass(eq=False)
class Look(Ask):
    """Next-token distributions -> [Position]."""

    proposal: Proposal


@dataclass(eq=False)
class Draw(Ask):
    """One more token each, unless `until` says stop -> [bool], whether one was drawn. Lines are extended in place."""

    proposal: Proposal
    until: Until | None = None
    top: int = 0


@dataclass(eq=False)
class Score(Ask):
    """Rewards, by name and weight -> None: they are written to the lines."""

    rewards: dict[str, float]


@dataclass(eq=False)
class LogP(Ask):
    """Log-prob of every new token under a voice -> [[float]]."""

    voice: Voice


@dataclass(eq=False)
class Trail(Ask):
    """The places along one line after its first `start` new tokens, after one more, ... -> [Position]."""

    proposal: Proposal
    start: int


@dataclass(eq=False)
class Loop:
    """One choice of one request. line: what has been committed (and may be grown by the method before it commits more).

    rewards: weights of the request's rewards; judges: every reward of the engine by name.
    """

    request: Request
    choice: int
    proposal: Proposal
    rewards: dict[str, float]
    counters: Counters
    chance: Chance
    root: Root
    models: dict[str, Any]
    available: tuple[str, ...]
    text_of: Callable[[Line], str]
    stops: Callable[[Line], str | None]
    tokenizer: Any = None
    judges: Mapping[str, Any] = field(default_factory=dict)
    gate: Gate | None = None
    details: dict[str, Any] = field(default_factory=dict)
    kl: tuple[float, str] | None = None
    line: Line = field(init=False)
    committed: int = 0
    behaviour: list[float] | None = field(default_factory=list)
    emitted: list[dict[str, Any]] = field(default_factory=list)
    _lines: list[Line] = field(default_factory=list)
    _roots: list[Root] = field(default_factory=list)
    _serial: int = 0

    def __post_init__(self) -> None:
        name = (self.request.seed, self.request.stream, self.choice)
        self.line = Line(self.root, self.request.max_new_tokens, name)
        self._lines.append(self.line)

    # -- lines -------------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.line.finish is not None

    @property
    def prompt_ids(self) -> list[int]:
        return self.root.prompt_ids

    @property
    def limit(self) -> int:
        return self.request.max_new_tokens

    @property
    def law(self) -> Law:
        return self.proposal.law

    def fork(self, n: int = 1, of: Line | None = None) -> list[Line]:
        """n copies of a line (the committed one), each with a random stream of its own."""
        source = of or self.line
        made = [source.fork((*self._names(), self._next())) for _ in range(n)]
        self._lines += made
        return made

    def branch(self, here: Position, ids: Sequence[int]) -> list[Line]:
        """One line per id: the line of this position and that token."""
        lines = self.fork(len(ids), of=here.line)
        for line, token in zip(lines, ids, strict=True):
            self._extend(line, here, token, math.nan)
            here.branches[token] = line
        return lines

    def extend(self, line: Line, ids: Sequence[int]) -> Asking[Line]:
        """Append given tokens to a line and look up what the policy thinks of them; stops at an end token or the limit."""
        for token in ids:
            if line.finish is None:
                line.append(token, math.nan, math.nan)
                self.settle(line)
        yield from self.base_logp([line])
        return line

    def append(self, line: Line, token: int, law_logp: float, base_logp: float = math.nan) -> None:
        """Put a token that was drawn somewhere else behind a line; says whether the line is over then."""
        line.append(token, law_logp, base_logp)
        self.settle(line)

    def base_logp(self, lines: Sequence[Line]) -> Asking[list[list[float]]]:
        """The policy's log-prob of every new token of these lines, also written to them."""
        found: list[list[float]] = yield LogP(list(lines), self.proposal.policy)
        for line, logp in zip(lines, found, strict=True):
            line.base_logp[:] = logp
        return found

    def open(self, prompt_ids: list[int], limit: int, model: str | None = None) -> Line:
        """A line after another prompt, read by the policy or a second model alone (rewriters); grow it with `model`."""
        name = model or "policy"
        check_room(name, self.voice(name).model, len(prompt_ids), limit)
        root = Root(list(prompt_ids), self.counters)
        line = Line(root, limit, (*self._names(), self._next()))
        line.extra["root"] = root
        line.extra["model"] = model
        self._lines.append(line)
        return line

    def restart(self, prompt_ids: Sequence[int]) -> None:
        """Decode after another prompt from here on; rewards go on reading the old one. Only before anything was drawn."""
        if self.line.new or self.committed:
            raise RuntimeError("a method tried to change the prompt of a response that had begun")
        old = self.root
        self.root = Root(list(prompt_ids), self.counters, judged_ids=old.judged_ids or old.prompt_ids)
        self._roots.append(self.root)
        self._lines.remove(self.line)
        self.line.close()
        self.line = Line(self.root, self.request.max_new_tokens, self._names())
        self._lines.append(self.line)

    def replace(self, ids: Sequence[int]) -> Asking[Line]:
        """Put other tokens in the place of the whole response, for rewriters: what was committed so far has not been sent yet."""
        self.counters.discarded_tokens += len(self.line.new)
        self.committed, self.behaviour, self.kl = 0, [], None
        self.emitted.clear()
        line = Line(self.root, self.request.max_new_tokens, (*self._names(), self._next()))
        self._lines.append(line)
        yield from self.extend(line, ids)
        self.commit(line)
        return self.line

    def close(self, lines: Sequence[Line]) -> None:
        """Give lines up; what was drawn for them counts as discarded."""
        for line in lines:
            if not line.closed:
                self.counters.discarded_tokens += line.drawn
                line.close()
                if "root" in line.extra:
                    line.extra["root"].close()
                self._lines.remove(line)

    def close_all(self) -> None:
        self.close([line for line in self._lines if line is not self.line])
        self.line.close()
        for root in self._roots:
            root.close()

    def _names(self) -> tuple[int | str, ...]:
        return (self.request.seed, self.request.stream, self.choice)

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _extend(self, line: Line, here: Position, token: int, logp: float) -> None:
        count = self.request.top_logprobs
        line.append(token, logp, float(here.base_V[token]), likeliest(here.law_V, count) if count else None)
        self.settle(line)

    def settle(self, line: Line) -> None:
        """Say whether a line that has just got a token is over."""
        if line.new[-1] in self.request.eos_ids:
            line.finish = "stop"
        elif self.request.stop and line.root is self.root and (found := self.stops(line)) is not None:
            line.finish, line.stopped_by = "stop", found
        elif len(line.new) >= line.limit:
            line.finish = "length"

    # -- asking ------------------------------------------------------------------------------------------------------

    def next_position(self) -> Asking[Position | None]:
        """The place after the committed line; None where it is over. With a gate, certain places are drawn on the way."""
        while self.line.finish is None:
            here = (yield from self.positions([self.line]))[0]
            if self.gate is None or not self.gate.certain(here):
                return here
            self.commit_token(here, *self.draw(here))
        return None

    def positions(self, lines: Sequence[Line], proposal: Proposal | None = None) -> Asking[list[Position]]:
        """Next-token distributions after each of these lines."""
        found: list[Position] = yield Look(list(lines), proposal or self.proposal)
        return found

    def trail(self, line: Line, start: int, proposal: Proposal | None = None) -> Asking[list[Position]]:
        """The places along a line from its first `start` new tokens to its end, read in one call (speculative decoding)."""
        found: list[Position] = yield Trail([line], proposal or self.proposal, start)
        return found

    def draw(self, here: Position) -> tuple[int, float]:
        """A token from the law at this position, and its log-prob under it."""
        if self.proposal.marks:
            token = self.proposal.marked(here, self.chance.uniform(here.line))
            if token is not None:
                return token, float(here.law_V[token])
            here.line.draws -= 1  # the ordinary draw takes that number, so that a mark of the logits moves none
        drawn = self.chance.tokens(here.law, here.logits_V[None], [here.line])
        return int(drawn.ids_B[0]), float(drawn.behaviour_B[0])

    def grow(
        self,
        lines: Sequence[Line],
        limit: int | None = None,
        *,
        until: Until | None = None,
        greedy: bool = False,
        model: str | None = None,
    ) -> Steps:
        """Draw tokens for each line until it is over, has `limit` more, or `until` stops it before a token.

        From the proposal; greedy: its most likely token. model: from this second model alone instead, at the request's law.
        """
        proposal = self.proposal if model is None else self.alone(model)
        if greedy:
            proposal = Proposal(proposal.policy, Law(0.0), proposal.voices, proposal.masks, proposal.marks)
        ends = {id(line): len(line.new) + limit if limit is not None else line.limit for line in lines}
        active = [line for line in lines if line.finish is None and len(line.new) < ends[id(line)]]
        while active:
            drawn: list[bool] = yield Draw(active, proposal, until, self.request.top_logprobs)
            pairs = zip(active, drawn, strict=True)
            active = [
                line for line, went_on in pairs if went_on and line.finish is None and len(line.new) < ends[id(line)]
            ]

    def alone(self, model: str) -> Proposal:
        """The proposal of a second model by itself (role or name), under the request's law and masks.

        `base_logp` of what is drawn from it is then that model's; commit such lines through `extend`.
        """
        voice = self.voice(model)
        return Proposal(voice, self.proposal.law, [], self.proposal.masks, [])

    def voice(self, model: str) -> Voice:
        """A second model as this request's voice."""
        if model == "policy":
            return self.proposal.policy
        found: Voice = self.models[model]
        return found

    def score(self, lines: Sequence[Line], *, required: bool = True) -> Asking[Tensor]:
        """The weighted rewards [len(lines)], float64; -inf where a reward failed on that line.

        Raises TruelineError where it failed on all of them, unless not `required`.
        """
        if not self.rewards:
            raise TruelineError("This method needs a reward, and the request names none. Add rewards={'NAME': 1.0}.")
        return (yield from self.score_with(self.rewards, lines, required=required))

    def score_with(self, rewards: dict[str, float], lines: Sequence[Line], *, required: bool = True) -> Asking[Tensor]:
        """The same with other rewards of the engine (`available`) than the request's."""
        yield Score(list(lines), rewards)
        values = [-math.inf if line.reward is None else line.reward for line in lines]
        if required and all(value == -math.inf for value in values):
            raise TruelineError(
                f"No candidate could be scored: {', '.join(rewards)} failed on all {len(lines)}. "
                f"{lines[0].extra.get('failure', '')}".rstrip()
            )
        return torch.tensor(values, dtype=torch.float64)

    # -- choosing ----------------------------------------------------------------------------------------------------

    def softmax(self, keys: Tensor, tau: float, line: Line | None = None) -> tuple[int, float]:
        """An index drawn with probability proportional to exp(key / tau), and its log-prob; tau 0: the first largest."""
        if tau == 0:
            return int(keys.argmax()), 0.0
        logp = (keys.double() / tau).log_softmax(-1)
        index = self.chance.pick(logp.tolist(), line or self.line)
        return index, float(logp[index])

    def accept(self, probability: float, line: Line | None = None) -> bool:
        return self.chance.accept(probability, line or self.line)

    # -- committing --------------------------------------------------------------------------------------------------

    def commit_token(self, here: Position, token: int, behaviour: float, reward: float | None = None) -> None:
        """Make a token after the committed line final. behaviour: its log-prob under the law that chose it."""
        if token in here.branches:
            line = here.branches[token]
            line.law_logp[-1] = behaviour
        else:
            line = self.line
            self._extend(line, here, token, behaviour)
        self.commit(line, reward, exact=True)

    def commit(
        self,
        line: Line,
        reward: float | None = None,
        *,
        exact: bool = False,
        keep: Sequence[Line] = (),
        kl: tuple[float, str] | None = None,
    ) -> None:
        """Make all tokens of a line final: an event. Every other open line is closed, but those in `keep`.

        exact: the log-probs of its new tokens are those of the law that committed them. reward: of the line, where the method
        knows it. kl: of choosing this line among draws of the proposal, and what that number is; how far the proposal is from the
        policy on this line is added here.
        """
        if line.new[: self.committed] != self.line.new[: self.committed]:
            raise RuntimeError("a method tried to retract tokens that it had committed")
        stays = {id(line), *map(id, keep)}
        if line is not self.line:
            line.drawn, old = 0, self.line
            line.draws, line.extra["uniforms"], line.name = old.draws, old.extra.get("uniforms"), old.name
            self.line = line
        line.drawn = 0
        self.close([other for other in self._lines if id(other) not in stays])
        start, self.committed = self.committed, len(line.new)
        fresh = line.law_logp[start:]
        exact = exact and not any(math.isnan(value) for value in fresh)
        if exact and self.behaviour is not None:
            self.behaviour += fresh
        elif fresh:
            self.behaviour = None
        if kl is not None:
            drift = sum(fresh) - sum(line.base_logp[start:])
            self.kl = ((self.kl[0] if self.kl else 0.0) + kl[0] + (0.0 if math.isnan(drift) else drift), kl[1])
        if reward is not None:
            line.reward = float(reward)
        self.emitted.append(
            {
                "ids": line.new[start:],
                "behaviour_logp": list(fresh) if exact else None,
                "base_logp": line.base_logp[start:],
                "reward": line.reward,
                "top": line.top[start:] if self.request.top_logprobs else None,
            }
        )
