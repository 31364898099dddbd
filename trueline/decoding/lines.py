"""Lines: sequences of tokens that fork, grow and are taken back, and what each model has read of them.

A `Root` is a prompt as one voice of a request reads it; a `Line` its continuation. What a model has read of a line is a `Reading`:
a row of the model's reader, how many of the line's new tokens it covers, and the hidden state after the last of them. Nobody keeps
readings up to date: `read` does, when the model is next asked. The longest common prefix stays, the rest is cropped, what is new is fed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trueline.decoding.models import Model
from trueline.decoding.request import Counters

LEAST_SHARED = 8  # tokens of an old prompt that a new one must share to continue it


@dataclass(eq=False)
class Voice:
    """A model in one request. prompt_ids: what it reads before the response, where that is not the request's prompt.

    rewards: whether its work counts as a reward's.
    """

    key: str
    model: Any
    prompt_ids: list[int] | None = None
    rewards: bool = False


@dataclass(eq=False)
class Reading:
    """fed: new tokens of the line that the row covers. state: hidden state after the last of them [D], None where it was taken
    back. logp: log-prob of each new token as far as it was asked for (a prefix)."""

    row: Any
    fed: int = 0
    state: Tensor | None = None
    logp: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Root:
    """A prompt, and what each voice has read of it. counters: of the request. judged_ids: what rewards read instead."""

    prompt_ids: list[int]
    counters: Counters
    readings: dict[Voice, Reading] = field(default_factory=dict)
    judged_ids: list[int] | None = None

    def ids_for(self, voice: Voice) -> list[int]:
        """The prompt as this voice reads it."""
        return voice.prompt_ids or (self.judged_ids if voice.rewards else None) or self.prompt_ids

    def close(self) -> None:
        for voice, reading in self.readings.items():
            voice.model.reader.close(reading.row)
        self.readings.clear()


@dataclass(eq=False)
class Line:
    """A response in the making.

    new: its tokens. law_logp: log-prob of each under the law it was drawn from (NaN for tokens that were not drawn). base_logp: under
    the policy. top: alternatives to each, where they were asked for. finish: "stop" or "length" where it is over. stopped_by: the stop text. name: of its random stream. drawn: tokens drawn
    since it was forked. reward, rewards: as last scored, rewards by name. parent, shared: where it was forked from and how many of its tokens
    came from there. extra: for methods and rewards.
    """

    root: Root
    limit: int
    name: tuple[int | str, ...]
    new: list[int] = field(default_factory=list)
    law_logp: list[float] = field(default_factory=list)
    base_logp: list[float] = field(default_factory=list)
    finish: str | None = None
    stopped_by: str | None = None
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    drawn: int = 0
    draws: int = 0
    reward: float | None = None
    rewards: dict[str, float] = field(default_factory=dict)
    readings: dict[Voice, Reading] = field(default_factory=dict)
    closed: bool = False
    parent: Line | None = None
    shared: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether an end token or a stop text ended it (a line at its limit is over, but not ended)."""
        return self.finish == "stop"

    @property
    def room(self) -> int:
        """Tokens that it may still have."""
        return self.limit - len(self.new)

    def fork(self, name: tuple[int | str, ...]) -> Line:
        """Another line with the same tokens; models share what they have read until the two differ."""
        line = Line(self.root, self.limit, name, list(self.new), list(self.law_logp), list(self.base_logp))
        line.finish, line.stopped_by, line.top = self.finish, self.stopped_by, list(self.top)
        line.parent, line.shared = self, len(self.new)
        for voice, reading in self.readings.items():
            row = voice.model.reader.fork(reading.row)
            line.readings[voice] = Reading(row, reading.fed, reading.state, list(reading.logp))
        return line

    def append(self, token: int, law_logp: float, base_logp: float, top: list[tuple[int, float]] | None = None) -> None:
        self.new.append(token)
        self.law_logp.append(law_logp)
        self.base_logp.append(base_logp)
        self.top.append(top or [])
        self.reward = None

    def crop(self, length: int) -> None:
        """Take the line back to its first `length` new tokens."""
        if length >= len(self.new):
            return
        del self.new[length:], self.law_logp[length:], self.base_logp[length:], self.top[length:]
        self.finish = self.stopped_by = self.reward = None
        self.shared = min(self.shared, length)
        for reading in self.readings.values():
            del reading.logp[length:]
            if reading.fed > length:
                reading.fed, reading.state = length, None

    def close(self) -> None:
        if not self.closed:
            self.closed, self.parent = True, None
            for voice, reading in self.readings.items():
                voice.model.reader.close(reading.row)
            self.readings.clear()


class Prefixes:
    """Prompts that were read before, kept for the next request that starts alike; the oldest go first.

    tokens: how many may be kept for each model.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.kept: dict[int, list[tuple[Model, list[int], Any]]] = {}

    def best(self, model: Model, ids: list[int]) -> tuple[int, Any]:
        """Tokens of these ids, their last one excepted, that some kept row has read, and the row; (0, None) if too few."""
        length, found = LEAST_SHARED - 1, None
        for _, held, row in self.kept.get(id(model), ()):
            same = 0
            for a, b in zip(held, ids[:-1], strict=False):
                if a != b:
                    break
                same += 1
            if same > length:
                length, found = same, row
        return (length, found) if found is not None else (0, None)

    def keep(self, model: Model, ids: list[int], row: Any) -> bool:
        """Take over a row that has read these ids; False where it is not worth keeping."""
        held = self.kept.setdefault(id(model), [])
        if not LEAST_SHARED < len(ids) <= self.tokens or any(old == ids for _, old, _ in held):
            return False
        held.append((model, ids, row))
        while sum(len(old) for _, old, _ in held) > self.tokens:
            _, _, oldest = held.pop(0)
            model.reader.close(oldest)
        return True

    def clear(self) -> None:
        for held in self.kept.values():
            for model, _, row in held:
                model.reader.close(row)
        self.kept.clear()


def read(model: Model, asked: Iterable[tuple[Voice, Line]], prefixes: Prefixes | None = None) -> None:
    """Bring every one of these lines' readings of this model up to date, in as few calls as there are kinds of work.

    What several lines were forked with and the model has not read is read once, in the line that they come from.
    """
    pairs = list(dict.fromkeys(asked))
    _open_roots(model, pairs, prefixes)
    parents = [(voice, line.parent) for voice, line in pairs if line.parent is not None and _owes(voice, line)]
    if parents:
        read(model, parents, prefixes)
    rows: list[Any] = []
    new: list[list[int]] = []
    readings: list[Reading] = []
    for voice, line in pairs:
        reading = _reading(voice, line)
        root = line.root.readings[voice]
        prompt = len(voice.prompt_ids or line.root.prompt_ids)
        if reading.fed == len(line.new) and reading.state is None:
            if reading.fed:
                reading.fed -= 1  # its state was taken back with a token behind it: that token is read again
            else:
                reading.state = root.state
        if model.reader.length(reading.row) > prompt + reading.fed:
            model.reader.crop(reading.row, prompt + reading.fed)
        if reading.fed < len(line.new):
            rows.append(reading.row)
            new.append(line.new[reading.fed :])
            readings.append(reading)
            _count(voice, line.root.counters, len(new[-1]))
    if rows:
        for reading, tokens, states in zip(readings, new, model.feed(rows, new), strict=True):
            reading.fed += len(tokens)
            reading.state = states[-1]


def _owes(voice: Voice, line: Line) -> bool:
    """Whether the line it comes from has not read all of what the two share, and should read it first."""
    parent, reading = line.parent, line.readings.get(voice)
    if parent is None or parent.closed or len(parent.new) != line.shared or (reading and reading.fed >= line.shared):
        return False
    above = parent.readings.get(voice)
    return above is None or above.fed < line.shared or above.state is None


def _reading(voice: Voice, line: Line) -> Reading:
    """The line's reading, taken over from the line it comes from where that one has read more of what they share."""
    reading, parent = line.readings.get(voice), line.parent
    reader = voice.model.reader
    if parent is not None and not parent.closed and line.shared <= len(parent.new):
        above = parent.readings.get(voice)
        fed = min(above.fed, line.shared) if above is not None else 0
        if above is not None and fed > (reading.fed if reading else 0) and parent.new[:fed] == line.new[:fed]:
            if reading is not None:
                reader.close(reading.row)
            state = above.state if above.fed == fed else None
            reading = line.readings[voice] = Reading(reader.fork(above.row), fed, state, above.logp[:fed])
    if reading is None:
        root = line.root.readings[voice]
        reading = line.readings[voice] = Reading(reader.fork(root.row), 0, root.state)
    return reading


def read_trail(model: Any, asked: Sequence[tuple[Voice, Line, int]], prefixes: Prefixes | None = None) -> list[Tensor]:
    """Hidden states along lines: after their first `start` new tokens, after one more, ..., after the last, [len - start + 1, D].

    What has been read of a line stands, but the states inside it are not kept: those tokens are read once more.
    """
    _open_roots(model, [(voice, line) for voice, line, _ in asked], prefixes)
    rows: list[Any] = []
    new: list[list[int]] = []
    todo: list[tuple[int, Line, Reading, Tensor | None]] = []
    found: list[Tensor | None] = [None] * len(asked)
    for number, (voice, line, start) in enumerate(asked):
        root = line.root.readings[voice]
        reading = _reading(voice, line)
        state = root.state if start == 0 else reading.state if reading.fed == start else None
        if state is not None and start == len(line.new):
            found[number] = state[None]
            continue
        begin = start if state is not None else start - 1  # the token before the start is read once more for its state
        prompt = len(line.root.ids_for(voice))
        if reading.fed < begin:
            begin = reading.fed if reading.state is not None or reading.fed == 0 else reading.fed - 1
        if model.reader.length(reading.row) > prompt + begin:
            model.reader.crop(reading.row, prompt + begin)
        rows.append(reading.row)
        new.append(line.new[begin:])
        todo.append((number, line, reading, state))
        _count(voice, line.root.counters, len(new[-1]))
    if rows:
        for (number, line, reading, state), states in zip(todo, model.feed(rows, new), strict=True):
            reading.fed, reading.state = len(line.new), states[-1]
            places = len(line.new) - asked[number][2] + (state is None)
            states = states[len(states) - places :]
            found[number] = states if state is None else torch.cat([state[None].to(states), states])
    return [states for states in found if states is not None]


def read_logp(model: Any, voice: Voice, lines: Sequence[Line], prefixes: Prefixes | None = None) -> list[list[float]]:
    """Log-prob of every new token of each line under a language model, [lines][tokens]; reads no more than is missing."""
    _open_roots(model, [(voice, line) for line in lines], prefixes)
    parents = [p for p in (line.parent for line in lines) if p is not None and not p.closed]
    parents = [
        p for p in dict.fromkeys(parents) if any(line.parent is p and line.shared == len(p.new) for line in lines)
    ]
    if parents:  # what several lines were forked with is read once
        read_logp(model, voice, parents, prefixes)
    known = []
    for line in lines:
        reading, parent = _reading(voice, line), line.parent
        if parent in parents and len(reading.logp) < line.shared == len(parent.new):  # type: ignore[union-attr]
            reading.logp[:] = parent.readings[voice].logp  # type: ignore[union-attr]
        known.append(len(reading.logp))
    missing = [(line, start) for line, start in dict(zip(lines, known, strict=True)).items() if start < len(line.new)]
    trails = read_trail(model, [(voice, line, start) for line, start in missing], prefixes)
    for (line, start), states in zip(missing, trails, strict=True):
        targets = torch.tensor(line.new[start:], device=states.device)
        logp = model.logits(states[:-1]).double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        line.readings[voice].logp[start:] = logp.tolist()
    return [list(line.readings[voice].logp) if line.new else [] for line in lines]


def _open_roots(model: Model, pairs: Sequence[tuple[Voice, Line]], prefixes: Prefixes | None) -> None:
    """Read the prompts that this model has not read yet, from an old prompt on where one starts alike."""
    wanted = dict.fromkeys((voice, line.root) for voice, line in pairs if voice not in line.root.readings)
    fresh: list[tuple[Voice, Root, list[int]]] = []
    longer: list[tuple[Voice, Root, Any, list[int]]] = []
    for voice, root in wanted:
        ids = root.ids_for(voice)
        same, row = prefixes.best(model, ids) if prefixes is not None else (0, None)
        if row is None:
            fresh.append((voice, root, ids))
        else:
            fork = model.reader.fork(row)
            model.reader.crop(fork, same)
            longer.append((voice, root, fork, ids[same:]))
    if fresh:
        rows, states = model.open([ids for *_, ids in fresh])
        for (voice, root, ids), row, state in zip(fresh, rows, states, strict=True):
            root.readings[voice] = Reading(row, 0, state[-1])
            _count(voice, root.counters, len(ids))
    if longer:
        found = model.feed([row for _, _, row, _ in longer], [ids for *_, ids in longer])
        for (voice, root, row, ids), state in zip(longer, found, strict=True):
            root.readings[voice] = Reading(row, 0, state[-1])
            _count(voice, root.counters, len(ids))


def _count(voice: Voice, counters: Counters, tokens: int) -> None:
    if voice.rewards:
        counters.rm_tf += tokens
    else:
        counters.lm_tf += tokens
        counters.lm_calls += 1
