"""The engine: open requests, a generator for every choice, every model asked once a round."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trueline import catalogue
from trueline.decoding.chance import Chance
from trueline.decoding.lines import Line, Prefixes, Root, Voice, read, read_logp, read_trail
from trueline.decoding.loop import Ask, Draw, LogP, Look, Loop, Score, Steps, Trail
from trueline.decoding.models import check_room, language_model
from trueline.decoding.plan import Plan, check_request, plan_of
from trueline.decoding.proposal import Proposal, entropy, likeliest, voices_of
from trueline.decoding.request import Counters, Event, Request, Result
from trueline.decoding.rewards import RewardModel
from trueline.engine.draw import Law
from trueline.errors import TruelineError

Logits = dict[tuple[Voice, Line], Tensor]


@dataclass(eq=False)
class _Job:
    """One choice. ask: what its generator waits for; answer: what it will be sent."""

    number: int
    loop: Loop
    steps: Steps
    held: bool  # a rewriter follows: nothing is final before it
    ask: Ask | None = None
    error: TruelineError | None = None
    done: bool = False


@dataclass(eq=False)
class _Open:
    """A request that runs or waits."""

    number: int
    request: Request
    root: Root
    jobs: list[_Job]
    width: int
    started: float = 0.0
    touched: int = field(default=0)


class DecodeEngine:
    """Runs requests together; owned by one thread.

    policy: a `Policy` or a `TableModel`. rewards: by name. models: second models by name (a request's `models` say which role each
    plays; a role that it leaves out is looked up by its own name). tokenizer: for text rewards, stop texts and Result.text. max_rows: rows
    that run at once; further requests wait (one that needs more than all of them runs alone). prefix_tokens: tokens of earlier prompts
    that each model keeps for requests that start alike.
    """

    def __init__(
        self,
        policy: Any,
        *,
        rewards: Mapping[str, RewardModel] | None = None,
        models: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        max_rows: int = 64,
        prefix_tokens: int = 0,
        chance: Chance | None = None,
    ):
        if max_rows < 1:
            raise TruelineError(f"max_rows is {max_rows}; expected a whole number from 1 up.")
        self.policy = Voice("policy", language_model(policy))
        self.rewards = dict(rewards or {})
        self.models = {name: Voice(name, language_model(model)) for name, model in (models or {}).items()}
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.prefixes = Prefixes(prefix_tokens) if prefix_tokens else None
        self.chance = chance or Chance()
        self._numbers = 0
        self._open: dict[int, _Open] = {}
        self._waiting: deque[_Open] = deque()

    # -- requests ----------------------------------------------------------------------------------------------------

    def open(self, request: Request) -> int:
        """Admit a request, also while others run; returns its number. Raises TruelineError for what cannot be run."""
        plan = plan_of(self, request)
        request = plan.request
        check_request(self, request)
        number, self._numbers = self._numbers, self._numbers + 1
        root = Root(list(request.prompt_ids), Counters(), judged_ids=request.judged_ids)
        opened = _Open(number, request, root, [], plan.width * request.n)
        for choice in range(request.n):
            loop = self._loop(plan, root, choice)
            job = _Job(number, loop, plan.steps(loop), held=bool(plan.rewrites))
            self._advance(job, None, first=True)
            if job.error is not None:
                raise job.error
            opened.jobs.append(job)
        self._waiting.append(opened)
        self._admit()
        return number

    def cancel(self, number: int) -> list[Event]:
        """End a request now and free its rows and caches; its unfinished choices come back with finish "cancelled"."""
        waiting = next((w for w in self._waiting if w.number == number), None)
        opened = self._open.get(number) or waiting
        if opened is None:
            return []
        if opened is waiting:
            self._waiting.remove(opened)
        return list(self._end(opened, "cancelled"))

    def run(self, requests: Sequence[Request]) -> list[list[Result]]:
        """Open all, step until done; result[i][j] is choice j of request i. Raises the first error of a request."""
        numbers = [self.open(request) for request in requests]
        results: dict[int, list[Result]] = {number: [] for number in numbers}
        while any(len(results[n]) < r.n for n, r in zip(numbers, requests, strict=True)):
            for event in self.step():
                if event.finished is None or event.number not in results:
                    continue
                if event.finished.error is not None:
                    for number in numbers:
                        self.cancel(number)
                    raise event.finished.error
                results[event.number].append(event.finished)
        return [sorted(results[number], key=lambda result: result.choice) for number in numbers]

    @property
    def busy(self) -> bool:
        """Whether a request is open or waiting."""
        return bool(self._open or self._waiting)

    @property
    def waiting(self) -> int:
        """Requests that wait for rows."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Rows that open requests may take at once."""
        return sum(opened.width for opened in self._open.values())

    def held(self) -> dict[str, int]:
        """Rows and prefixes that each model holds: all 0 when nothing is open and no prefix is kept."""
        models = {"policy": self.policy.model} | {name: voice.model for name, voice in self.models.items()}
        models |= {f"reward:{n}": m for n, r in self.rewards.items() for m in getattr(r, "models", [])}
        return {name: model.reader.held() for name, model in models.items()}

    def capabilities(self) -> dict[str, dict[str, Any]]:
        """Every method with its options and facts, and whether this engine can run it: `runs`, and `why` not."""
        found: dict[str, dict[str, Any]] = {}
        for entry in catalogue.entries("decode"):
            said = {"hook": "loop", "reward": "none", "needs": "logits", "stage": "in", "models": "", **entry.declared}
            roles = [role for role in str(said["models"]).split() if not role.endswith("?")]
            why = ""
            if said["reward"] != "none" and not self.rewards:
                why = "it needs a reward, and none is registered"
            elif roles and not self.models:
                why = f"it needs a second model ({', '.join(roles)}), and none is registered"
            options = {o.name: {"type": o.type, "default": o.default} for o in entry.options}
            facts = {key: said.get(key) for key in ("hook", "unit", "reward", "needs", "stage", "models")}
            found[entry.name] = {**facts, "summary": entry.summary, "options": options, "runs": not why, "why": why}
        return found

    # -- rounds ------------------------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Advance every open request by one round. An error of one request is that request's (`Result.error`)."""
        self._admit()
        events: list[Event] = []
        jobs = [job for opened in self._open.values() for job in opened.jobs if not job.done]
        before = {n: _cost(opened.root.counters) for n, opened in self._open.items()}
        answers = self._answers(jobs)
        for job in jobs:
            answer = answers[id(job)]
            if isinstance(answer, TruelineError):
                job.error, job.done = answer, True
            else:
                self._advance(job, answer)
        now = time.perf_counter()
        for number, opened in list(self._open.items()):
            counters = opened.root.counters
            counters.depth += _cost(counters) != before[number]
            counters.seconds = now - opened.started
            for job in opened.jobs:
                events += self._events(opened, job)
            if opened.request.budget.spent(counters) and any(not job.done for job in opened.jobs):
                events += self._end(opened, "budget")
            elif all(job.done for job in opened.jobs):
                self._close(opened)
        return events

    def _admit(self) -> None:
        while self._waiting and (not self._open or self.rows + self._waiting[0].width <= self.max_rows):
            opened = self._waiting.popleft()
            opened.started = time.perf_counter()
            self._open[opened.number] = opened

    def _advance(self, job: _Job, answer: Any, first: bool = False) -> None:
        """Hand the answer to the generator and keep what it asks next."""
        try:
            job.ask = next(job.steps) if first else job.steps.send(answer)
        except StopIteration:
            job.ask, job.done = None, True
        except TruelineError as error:
            job.ask, job.done, job.error = None, True, error
        except Exception as error:  # a method's bug ends its own response, with the traceback as the cause
            job.ask, job.done = None, True
            job.error = TruelineError(f"Method '{job.loop.request.method}' failed: {type(error).__name__}: {error}")
            job.error.__cause__ = error

    def _answers(self, jobs: Sequence[_Job]) -> dict[int, Any]:
        """What every job waits for, each model asked once. A TruelineError in place of an answer ends that job alone."""
        answers: dict[int, Any] = {}
        logits = self._logits(jobs)
        batches: dict[tuple[Law, Voice], list[tuple[_Job, Draw]]] = {}
        scores: list[tuple[_Job, Score]] = []
        for job in jobs:
            ask = job.ask
            try:
                if isinstance(ask, Draw) and ask.proposal.plain:
                    batches.setdefault((ask.proposal.law, ask.proposal.policy), []).append((job, ask))
                elif isinstance(ask, Draw):
                    answers[id(job)] = self._draw_apart(job, ask, logits)
                elif isinstance(ask, Look):
                    answers[id(job)] = [_position(ask.proposal, line, logits) for line in ask.lines]
                elif isinstance(ask, LogP):
                    answers[id(job)] = read_logp(ask.voice.model, ask.voice, ask.lines, self.prefixes)
                elif isinstance(ask, Trail):
                    answers[id(job)] = self._trail(ask)
                elif isinstance(ask, Score):
                    scores.append((job, ask))
            except TruelineError as error:
                answers[id(job)] = error
        for (law, voice), drawing in batches.items():
            answers |= self._draw_together(drawing, law, voice, logits)
        self._score(scores)
        answers |= {id(job): None for job, _ in scores}
        return answers

    def _logits(self, jobs: Sequence[_Job]) -> Logits:
        """Next-token logits of every line that somebody asks about, by voice: one model call and one product a model."""
        asked: dict[int, tuple[Any, dict[tuple[Voice, Line], None]]] = {}
        for job in jobs:
            if isinstance(job.ask, (Look, Draw)):
                for voice in job.ask.proposal.all_voices():
                    pairs = asked.setdefault(id(voice.model), (voice.model, {}))[1]
                    pairs |= {(voice, line): None for line in job.ask.lines}
        found: Logits = {}
        for model, pairs in asked.values():
            read(model, pairs, self.prefixes)
            states = torch.stack([line.readings[voice].state for voice, line in pairs])  # type: ignore[misc]
            found |= dict(zip(pairs, model.logits(states).unbind(), strict=True))
        return found

    def _draw_together(
        self, asked: Sequence[tuple[_Job, Draw]], law: Law, voice: Voice, logits: Logits
    ) -> dict[int, list[bool]]:
        """One draw for all lines of all jobs that draw from one model under one law."""
        pairs = [(job, ask, line) for job, ask in asked for line in ask.lines]
        logits_BV = torch.stack([logits[voice, line] for _, _, line in pairs])
        goes_on = [True] * len(pairs)
        if any(ask.until is not None for _, ask in asked):
            for i, ((_, ask, line), value) in enumerate(zip(pairs, entropy(logits_BV).tolist(), strict=True)):
                goes_on[i] = ask.until is None or not ask.until(line, value)
        drawing = [i for i, on in enumerate(goes_on) if on]
        if drawing:
            if len(drawing) < len(pairs):
                logits_BV = logits_BV[drawing]
            lines = [pairs[i][2] for i in drawing]
            drawn = self.chance.tokens(law, logits_BV, lines)
            if law.temperature == 1:
                base_B = drawn.full_B
            else:
                wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
                base_B = wide_BV.gather(1, drawn.ids_B[:, None])[:, 0] - wide_BV.logsumexp(-1)
            fields = torch.stack([drawn.ids_B.double(), drawn.behaviour_B.double(), base_B.double()], 1).tolist()
            for row, (i, (token, behaviour, base)) in enumerate(zip(drawing, fields, strict=True)):
                job, ask, line = pairs[i]
                top = None
                if ask.top:
                    here = _position(ask.proposal, line, {(voice, line): logits_BV[row]})
                    top = likeliest(here.law_V, ask.top)
                line.append(int(token), behaviour, base, top)
                line.drawn += 1
                job.loop.settle(line)
        answers: dict[int, list[bool]] = {}
        for (job, _, _), on in zip(pairs, goes_on, strict=True):
            answers.setdefault(id(job), []).append(on)
        return answers

    def _draw_apart(self, job: _Job, ask: Draw, logits: Logits) -> list[bool]:
        """The same line by line, where a proposal mixes, masks or marks."""
        goes_on = []
        for line in ask.lines:
            here = _position(ask.proposal, line, logits)
            goes_on.append(ask.until is None or not ask.until(line, here.entropy))
            if not goes_on[-1]:
                continue
            loop = job.loop
            ordinary = loop.proposal
            loop.proposal = ask.proposal
            try:
                token, behaviour = loop.draw(here)
            finally:
                loop.proposal = ordinary
            top = likeliest(here.law_V, ask.top) if ask.top else None
            line.append(token, behaviour, float(here.base_V[token]), top)
            line.drawn += 1
            loop.settle(line)
        return goes_on

    def _trail(self, ask: Trail) -> list[Any]:
        """The places along a line, every voice reading its tokens in one call."""
        (line,) = ask.lines
        along = {}
        for voice in ask.proposal.all_voices():
            (states,) = read_trail(voice.model, [(voice, line, ask.start)], self.prefixes)
            along[voice] = voice.model.logits(states)
        lengths = range(ask.start, len(line.new) + 1)
        return [
            ask.proposal.position(line, {voice: logits[i] for voice, logits in along.items()}, length)
            for i, length in enumerate(lengths)
        ]

    def _score(self, asked: Sequence[tuple[_Job, Score]]) -> None:
        """Every reward reads the lines of all jobs that name it at once; what failed on a line is NaN and counted."""
        for name, model in self.rewards.items():
            pairs = [(job, line) for job, ask in asked if name in ask.rewards for line in ask.lines]
            if not pairs:
                continue
            for (_, line), value in zip(pairs, self._values(name, model, pairs), strict=True):
                line.rewards[name] = value
                line.root.counters.rm_calls += 1
                line.root.counters.failed += not math.isfinite(value)
        for _, ask in asked:
            for line in ask.lines:
                total = sum(weight * line.rewards[name] for name, weight in ask.rewards.items())
                line.reward = total if math.isfinite(total) else None

    def _values(self, name: str, model: RewardModel, pairs: Sequence[tuple[_Job, Line]]) -> list[float]:
        """One number a line. Where a reward raises on all together, each line is judged alone."""
        lines = [line for _, line in pairs]
        for job, line in pairs:
            line.extra["request"], line.extra["text"] = job.loop.request, job.loop.text_of
        try:
            return _numbers(name, model.score(lines, [line.root.counters for line in lines]), len(lines))
        except Exception:  # a reward is somebody else's code: its failure on one candidate is that candidate's
            values = []
            for line in lines:
                try:
                    values += _numbers(name, model.score([line], [line.root.counters]), 1)
                except Exception as error:
                    line.extra["failure"] = f"{name}: {type(error).__name__}: {error}"
                    values.append(math.nan)
            return values

    # -- ends --------------------------------------------------------------------------------------------------------

    def _events(self, opened: _Open, job: _Job) -> Iterator[Event]:
        """What a job has committed since the last round, and its result if it has just ended."""
        loop = job.loop
        if not job.held or job.done:
            for said in loop.emitted:
                yield Event(job.number, loop.choice, **said)
            loop.emitted.clear()
        if job.done and loop.line is not None and not loop.line.closed:
            finish = "error" if job.error is not None else str(loop.line.finish)
            yield self._finished(opened, job, finish)

    def _finished(self, opened: _Open, job: _Job, finish: str) -> Event:
        result = self._result(job, finish)
        job.done = True
        job.steps.close()
        job.loop.close_all()
        return Event(job.number, job.loop.choice, [], [], [], finished=result)

    def _end(self, opened: _Open, finish: str) -> Iterator[Event]:
        """End all choices of a request that still run, with what they have committed."""
        for job in opened.jobs:
            if not job.done:
                for said in job.loop.emitted:
                    yield Event(job.number, job.loop.choice, **said)
                job.loop.emitted.clear()
                yield self._finished(opened, job, finish)
        self._close(opened)

    def _close(self, opened: _Open) -> None:
        self._open.pop(opened.number, None)
        if self.prefixes is not None:
            for voice, reading in list(opened.root.readings.items()):
                ids = opened.root.ids_for(voice)
                if reading.fed == 0 and self.prefixes.keep(voice.model, list(ids), reading.row):
                    del opened.root.readings[voice]
        opened.root.close()

    def _result(self, job: _Job, finish: str) -> Result:
        loop, line = job.loop, job.loop.line
        ids = line.new[: loop.committed]
        base = line.base_logp[: loop.committed]
        whole = len(ids) == len(line.new)
        behaviour = loop.behaviour if loop.behaviour is not None and len(loop.behaviour) == len(ids) else None
        kl = loop.kl
        if kl is None and behaviour is not None and all(map(math.isfinite, base)):
            kl = (sum(behaviour) - sum(base), "law")
        counters = line.root.counters
        return Result(
            number=job.number,
            choice=loop.choice,
            ids=ids,
            text=self.text(ids, line.stopped_by, loop.request.eos_ids, loop.request.overlap),
            finish=finish,
            stopped_by=line.stopped_by if whole else None,
            reward=line.reward if whole else None,
            rewards=dict(line.rewards) if whole and line.reward is not None else {},
            behaviour_logp=behaviour,
            base_logp=base,
            kl=None if kl is None else kl[0],
            kl_kind=None if kl is None else kl[1],
            counters=replace(counters),
            error=job.error,
            details=loop.details,
        )

    # -- parts -------------------------------------------------------------------------------------------------------

    def text(
        self, ids: Sequence[int], stopped_by: str | None = None, eos_ids: Sequence[int] = (), overlap: str = ""
    ) -> str:
        """Display text of new tokens, without what overlaps with the prompt and cut before the stop text that ended them; "" without
        a tokenizer."""
        if self.tokenizer is None:
            return ""
        kept = list(ids[:-1]) if ids and ids[-1] in eos_ids else list(ids)
        text = beyond(str(self.tokenizer.decode(kept, skip_special_tokens=True)), overlap)
        return text[: text.index(stopped_by)] if stopped_by is not None and stopped_by in text else text

    def role(self, request: Request, role: str) -> str:
        """The name of the second model that plays this role in a request. Raises TruelineError where none does."""
        name = request.models.get(role, role)
        if name not in self.models:
            raise TruelineError(
                f"Method '{request.method}' needs a second model as '{role}'; this engine has "
                f"{', '.join(self.models) or 'none'}. Register it, or say models={{'{role}': NAME}}."
            )
        return name

    def _loop(self, plan: Plan, root: Root, choice: int) -> Loop:
        request = plan.request
        proposal = Proposal(self.policy, request.law, masks=list(plan.masks), marks=list(plan.marks))
        if plan.mix is not None:
            proposal.voices = voices_of(plan.mix.terms, self.models, self.policy)
            for voice, _ in proposal.voices:
                check_room(voice.key, voice.model, len(voice.prompt_ids or root.prompt_ids), request.max_new_tokens)
        voices = {**self.models, **{role: self.models[name] for role, name in plan.roles.items()}}
        return Loop(
            request=request,
            choice=choice,
            proposal=proposal,
            rewards=plan.rewards,
            counters=root.counters,
            chance=self.chance,
            root=root,
            models=voices,
            available=tuple(self.rewards),
            text_of=lambda line: self.text(line.new, line.stopped_by, request.eos_ids, request.overlap),
            stops=lambda line: self._stops(line, request),
            tokenizer=self.tokenizer,
            judges=self.rewards,
            gate=plan.gate,
        )

    def _stops(self, line: Line, request: Request) -> str | None:
        """The stop text that stands in the line, the first one if there are several."""
        text = beyond(str(self.tokenizer.decode(line.new, skip_special_tokens=True)), request.overlap)
        found = [(text.index(stop), stop) for stop in request.stop if stop in text]
        return min(found)[1] if found else None


def beyond(text: str, overlap: str) -> str:
    """What a text has after its overlap with the prompt; "" while that is not written yet. (Tokenizers that begin every text with a
    space drop that space at the beginning of a decoded text.)"""
    for start in (overlap, overlap.removeprefix(" ")):
        if text.startswith(start):
            return text[len(start) :]
    return ""


def _position(proposal: Proposal, line: Line, logits: Logits) -> Any:
    return proposal.position(line, {voice: logits[voice, line] for voice in proposal.all_voices()})


def _cost(counters: Counters) -> tuple[int, int, int]:
    return counters.lm_tf, counters.rm_tf, counters.rm_calls


def _numbers(name: str, values: Sequence[float], count: int) -> list[float]:
    if len(values) != count:
        raise TruelineError(f"Reward '{name}' gave {len(values)} numbers for {count} lines; expected one each.")
    return [float(value) for value in values]
