"""The thread that owns the engine, and the asyncio side that waits for it.

The engine and every model behind it are touched by one thread alone. It takes what the asyncio side sends (open this,
cancel that, score these), advances all open requests by one round, hands each job its events, and begins again. Many HTTP
requests therefore run as one batch, and none can block the event loop.

A client that reads slowly fills only the queue of its own job, which is no longer than the tokens it may have; the engine
never waits for it. A client that is gone is cancelled, which frees its rows and caches before the next round.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from trueline.decoding.request import Event, Request
from trueline.errors import TruelineError
from trueline.serving.errors import ApiError, busy, failed, refused
from trueline.serving.metrics import Metrics

LOG = logging.getLogger("trueline.serving")
Found = TypeVar("Found")


class Engine(Protocol):
    """What the scheduler needs of `trueline.decoding.DecodeEngine`."""

    def open(self, request: Request) -> int: ...
    def step(self) -> list[Event]: ...
    def cancel(self, number: int) -> list[Event]: ...
    @property
    def busy(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def rows(self) -> int: ...


Batch = list[tuple[int, Event]]


class Job:
    """The requests of one HTTP request, and the events that arrived for it."""

    def __init__(self, requests: Sequence[Request]):
        self.requests = list(requests)  # as the engine runs them, once it has opened them
        self.running: dict[int, list[int]] = {}  # engine's number -> index, choices that run; the engine thread's
        self.started = time.monotonic()
        self.complete = False  # everything has arrived, though perhaps not been read
        self.first_seconds: float | None = None  # until the first event
        self._choices = sum(request.n for request in requests)
        self._arrived: asyncio.Queue[Batch | ApiError] = asyncio.Queue()

    def put(self, item: Batch | ApiError) -> None:
        """On the event loop's thread."""
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self.started
        if isinstance(item, ApiError):
            self.complete = True
        else:
            self._choices -= sum(event.finished is not None for _, event in item)
            self.complete = self._choices <= 0
        self._arrived.put_nowait(item)

    @property
    def over(self) -> bool:
        """Nothing is left to read."""
        return self.complete and self._arrived.empty()

    async def next(self) -> Batch:
        """The next events, each with the index of its request. Raises ApiError where the job failed."""
        item = await self._arrived.get()
        if isinstance(item, ApiError):
            raise item
        for _, event in item:
            if event.finished is not None and event.finished.error is not None:
                raise failed(str(event.finished.error), code="decoding_error")
        return item


class Scheduler:
    """Admits jobs while fewer than `limit` prompts are open, and refuses with 429 beyond.

    make_engine is called on the engine's thread, at the start and again should the engine fail as a whole. as_run: the request
    as the engine runs it, after methods that change the prompt.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        limit: int,
        metrics: Metrics,
        as_run: Callable[[Any, Request], Request] = lambda _, request: request,
    ):
        self.limit, self.metrics, self._as_run = limit, metrics, as_run
        self._make_engine = make_engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: set[Job] = set()  # the engine thread's
        self._admitted: dict[Job, int] = {}  # the event loop's: prompts of each open job
        self._asked: set[asyncio.Future[Any]] = set()  # answers that `call` waits for
        self._reserved = 0  # prompts that work beside jobs counts as
        self._seconds = 1.0  # running mean of how long a job takes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._refusal: ApiError | None = None
        self._engine: Engine

    # -- on the event loop ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the engine on its thread. Raises what making it raises."""
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="trueline-engine", daemon=True)
        self._thread.start()
        await ready

    async def stop(self) -> None:
        """End the thread after the round it is in. What is still open fails."""
        if self._thread is not None:
            self.refuse(failed("The server is shutting down.", status=503, code="shutting_down"))
            self._inbox.put(self._end)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def open_prompts(self) -> int:
        return sum(self._admitted.values()) + self._reserved

    @property
    def refusing(self) -> bool:
        """Whether nothing is admitted any more."""
        return self._refusal is not None

    @contextmanager
    def room(self, prompts: int) -> Iterator[None]:
        """Room for work that is no job. Raises ApiError where there is none."""
        self._check_room(prompts)
        self._reserved += prompts
        try:
            yield
        finally:
            self._reserved -= prompts

    async def open(self, requests: Sequence[Request]) -> Job:
        """Admit requests together. Raises ApiError: 429 where too much is open, 400 for what the engine refuses."""
        self._check_room(len(requests))
        job = Job(requests)
        self._admitted[job] = len(requests)
        try:
            await self.call(lambda _: self._open(job))
        except TruelineError as error:
            self.close(job)
            raise refused(str(error), param="alignment") from None
        except BaseException:
            self.close(job)
            raise
        return job

    def close(self, job: Job) -> None:
        """The job is over, or nobody waits for it any more. May be called again."""
        if self._admitted.pop(job, None) is None:
            return
        if job.complete:
            self._seconds += 0.1 * (time.monotonic() - job.started - self._seconds)
        self._inbox.put(lambda: self._cancel(job))

    async def call(self, work: Callable[[Engine], Found]) -> Found:
        """What `work` returns, done on the engine's thread between two rounds."""
        if self._refusal is not None:
            raise self._refusal
        assert self._loop is not None
        loop, answer = self._loop, self._loop.create_future()
        self._asked.add(answer)

        def done(found: Any, error: BaseException | None) -> None:
            if not answer.done():
                answer.set_exception(error) if error is not None else answer.set_result(found)

        def run() -> None:
            try:
                found = work(self._engine)
            except BaseException as error:
                loop.call_soon_threadsafe(done, None, error)
            else:
                loop.call_soon_threadsafe(done, found, None)

        self._inbox.put(run)
        try:
            result: Found = await answer
        finally:
            self._asked.discard(answer)
        return result

    def _arrive(self, job: Job, item: Batch | ApiError) -> None:
        """Events reach their job. A job that is complete makes room for another, however slowly it is read."""
        job.put(item)
        if job.complete:
            self.close(job)

    def refuse(self, reason: ApiError) -> None:
        """Fail what is open and everything that comes, for this reason."""
        self._refusal = self._refusal or reason
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(reason)
        for job in list(self._admitted):
            self._arrive(job, reason)

    def _check_room(self, prompts: int) -> None:
        if self._refusal is not None:
            raise self._refusal
        if prompts > self.limit:
            raise refused(f"The request has {prompts} prompts; this server takes {self.limit} at once.", param="prompt")
        if self.open_prompts + prompts > self.limit:
            self.metrics.refused.inc()
            raise busy(
                f"The server is busy with {self.open_prompts} prompts (its limit is {self.limit}). Try again later.",
                min(60.0, self._seconds),
            )

    # -- on the engine's thread ----------------------------------------------------------------------------------------

    def _run(self, ready: asyncio.Future[None]) -> None:
        assert self._loop is not None
        try:
            self._engine = self._make_engine()
        except BaseException as error:
            self._loop.call_soon_threadsafe(ready.set_exception, error)
            return
        self._loop.call_soon_threadsafe(ready.set_result, None)
        try:
            while not self._stopping:
                self._take_orders()
                if self._engine.busy and not self._stopping:
                    self._round()
                self.metrics.engine(self._engine.rows, self._engine.waiting, len(self._jobs))
        finally:  # nobody may wait for a thread that is gone
            reason = failed("The engine is gone; the server must be started again.", status=503, code="engine_gone")
            self._loop.call_soon_threadsafe(self.refuse, reason)

    def _take_orders(self) -> None:
        """Everything in the inbox; waits for the first where nothing else is to be done."""
        wait = not self._engine.busy
        while not self._stopping:
            try:
                order = self._inbox.get(block=wait)
            except queue.Empty:
                return
            try:
                order()
            except Exception as error:
                self._recover(error)
            wait = False

    def _round(self) -> None:
        try:
            with self.metrics.round_seconds.time():
                events = self._engine.step()
        except Exception as error:
            self._recover(error)
            return
        by_number = {number: job for job in self._jobs for number in job.running}
        found: dict[Job, Batch] = {}
        for event in events:
            job = by_number.get(event.number)
            if job is None:  # its client is gone
                continue
            found.setdefault(job, []).append((job.running[event.number][0], event))
            if event.finished is not None:
                job.running[event.number][1] -= 1
        for job, own in found.items():
            job.running = {number: state for number, state in job.running.items() if state[1]}
            if not job.running:
                self._jobs.discard(job)
            self._send(job, own)

    def _recover(self, error: Exception) -> None:
        """The engine failed as a whole: tell every open job, and begin with a fresh one."""
        LOG.error("The engine failed; every open request is refused.", exc_info=error)
        self.metrics.engine_failures.inc()
        for job in self._jobs:
            job.running.clear()  # the numbers were the old engine's
            self._send(job, failed(f"The engine failed: {type(error).__name__}. Send the request again."))
        self._jobs.clear()
        self._engine = self._make_engine()

    def _open(self, job: Job) -> None:
        """All requests of the job, or none of them."""
        try:
            for index, request in enumerate(job.requests):
                job.requests[index] = self._as_run(self._engine, request)
                job.running[self._engine.open(request)] = [index, request.n]
        except BaseException:
            self._cancel(job)
            raise
        self._jobs.add(job)

    def _cancel(self, job: Job) -> None:
        self._jobs.discard(job)
        for number in job.running:
            self._engine.cancel(number)
        job.running.clear()

    def _end(self) -> None:
        self._stopping = True
        for job in list(self._jobs):
            self._cancel(job)

    def _send(self, job: Job, item: Batch | ApiError) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._arrive, job, item)
