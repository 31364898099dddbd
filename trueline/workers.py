"""Worker processes behind one small interface: on this machine, or on a Ray cluster.

    with crew.open() as workers:
        workers.submit(name, function, arguments)
        for name, error in workers.ended(seconds): ...

A task is a function at module level whose result is a file that it puts in place whole, so running it again does no harm:
a task whose worker dies (killed, out of memory, its machine gone) is given to another one, three times at most. What is
finished stays. When the parent goes, by a signal or by -9, its workers go: they are told, and look for themselves.

With Ray, tasks run wherever the cluster has room, and their files must stand where every machine sees them (a shared
file system). A task takes a processor, and a GPU where the cluster has some.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from trueline.errors import TruelineError

WORKERS = 2
ATTEMPTS = 3  # of a task whose worker dies
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
GRACE = 10.0  # seconds that a worker has to end by itself once its parent is gone


class Workers(Protocol):
    """capacity: tasks that run at once."""

    capacity: int

    def submit(self, name: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None: ...

    def ended(self, seconds: float) -> list[tuple[str, BaseException | None]]:
        """Tasks that ended since the last call, with what they raised; waits up to so many seconds for one."""
        ...

    def close(self) -> None:
        """End every worker, and what it is doing."""
        ...


@dataclass(frozen=True)
class Crew:
    """Who works. count: tasks at once; by default two processes here, or as many as the Ray cluster has processors for.

    ray: None for processes of this machine, "local" for a Ray of its own, else the address of a running cluster.
    """

    count: int | None = None
    ray: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Workers]:
        """The workers, until the block ends, however it ends: SIGTERM is raised in it as SystemExit."""
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise TruelineError("This command starts workers of its own. Run it without torchrun or accelerate launch.")
        with _raised_on_sigterm():
            workers: Workers = _RayWorkers(self.ray, self.count) if self.ray else _Processes(self.count or WORKERS)
            try:
                yield workers
            finally:
                workers.close()


@contextlib.contextmanager
def _raised_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the block, so that workers are ended; by default it ends this process and leaves them."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread, where Python allows no handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- processes of this machine -----------------------------------------------------------------------------------------


@dataclass
class _Task:
    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    attempts: int = 0


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: _Task | None = None


@dataclass
class _Processes:
    """Spawned processes with one thread of arithmetic each, started when they are needed and kept for the next task."""

    capacity: int
    workers: list[_Worker] = field(default_factory=list)
    waiting: deque[_Task] = field(default_factory=deque)

    def submit(self, name: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.waiting.append(_Task(name, call, arguments))
        self._hand_out()

    def _hand_out(self) -> None:
        while self.waiting:
            free = next((w for w in self.workers if w.task is None), None)
            if free is None and len(self.workers) < self.capacity:
                free = self._started()
                self.workers.append(free)
            if free is None:
                return
            task = self.waiting.popleft()
            task.attempts += 1
            free.task = task
            with contextlib.suppress(BrokenPipeError):  # it has died idle: found and replaced below
                free.pipe.send((task.call, task.arguments))

    def _started(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_serve, args=(theirs, os.getpid()))
        with environment():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def ended(self, seconds: float) -> list[tuple[str, BaseException | None]]:
        found: list[tuple[str, BaseException | None]] = []
        for pipe in wait([w.pipe for w in self.workers], timeout=seconds):
            worker = next(w for w in self.workers if w.pipe is pipe)
            try:
                error = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.workers.remove(worker)
                lost = self._buried(worker)
                found += [lost] if lost else []
                continue
            assert worker.task is not None
            found.append((worker.task.name, error))
            worker.task = None
        self._hand_out()
        return found

    def _buried(self, worker: _Worker) -> tuple[str, BaseException] | None:
        """A worker that died: its task goes to another one, or ends with an error after the last attempt."""
        worker.process.join()
        worker.pipe.close()
        task = worker.task
        if task is None:
            return None
        if task.attempts < ATTEMPTS:
            self.waiting.appendleft(task)
            return None
        return task.name, TruelineError(
            f"its process died {ATTEMPTS} times (exit code {worker.process.exitcode}; -9 is a kill, often for want of memory)."
        )

    def close(self) -> None:
        for worker in self.workers:
            worker.pipe.close()
            if worker.task is not None:
                worker.process.terminate()
        end = time.monotonic() + GRACE
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers.clear()


def _serve(pipe: Connection, parent: int) -> None:
    """In a worker: one task after another, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends its workers
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    while True:
        try:
            call, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        error = _error_of(call, arguments)
        try:
            pipe.send(error)
        except (BrokenPipeError, OSError):
            return
        except Exception:  # what was raised cannot be pickled
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _error_of(call: Callable[..., None], arguments: tuple[Any, ...]) -> BaseException | None:
    try:
        call(*arguments)
    except BaseException as error:
        error.add_note("".join(traceback.format_exception(error)))
        return error
    return None


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone: first as a signal would, then at once."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """Worker processes started inside compute with one thread, whatever the caller's environment says."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- Ray ---------------------------------------------------------------------------------------------------------------


class _RayWorkers:
    """Tasks of a Ray cluster. Ray itself gives a task to another worker when one dies."""

    def __init__(self, address: str, count: int | None):
        self.ray = _ray()
        self.running: dict[Any, str] = {}
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == "local":
            options |= {"num_cpus": count or WORKERS, "include_dashboard": False}
        try:
            _knock(address)
            self.ray.init(address=address, runtime_env={"env_vars": self._environment()}, **options)
        except Exception as error:  # whatever Ray's own start raises
            self.ray.shutdown()  # what it had started
            raise TruelineError(
                f"There is no Ray at '{address}' ({error}). Give the address that `ray start --head` printed, or --ray local."
            ) from error
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.capacity = count or gpus or max(1, int(resources.get("CPU", 1)))
        self.task = self.ray.remote(_error_of).options(
            num_cpus=1, num_gpus=1 if gpus else 0, max_retries=ATTEMPTS - 1, retry_exceptions=False
        )

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(p for p in sys.path if p)  # a person's functions stand where the driver finds them
        kept = {name: value for name, value in os.environ.items() if name.startswith(("TRUELINE_", "HF_"))}
        return {**kept, **ENVIRONMENT, "PYTHONPATH": path}

    def submit(self, name: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.running[self.task.remote(call, arguments)] = name

    def ended(self, seconds: float) -> list[tuple[str, BaseException | None]]:
        if not self.running:
            return []
        done, _ = self.ray.wait(list(self.running), timeout=seconds)
        found: list[tuple[str, BaseException | None]] = []
        for reference in done:
            name = self.running.pop(reference)
            try:
                found.append((name, self.ray.get(reference)))
            except self.ray.exceptions.RayError as error:
                found.append((name, TruelineError(f"Ray gave it up after {ATTEMPTS} attempts: {error}")))
        return found

    def close(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running.clear()
        self.ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    if match := re.fullmatch(r"([^:/]+):(\d+)", address):
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than its 30
    try:
        import ray
    except ImportError as error:
        raise TruelineError("--ray needs Ray: pip install 'trueline[ray]'.") from error
    if ray.is_initialized():
        raise TruelineError("A Ray is open in this process already. Close it (ray.shutdown()) before this one starts.")
    return ray
