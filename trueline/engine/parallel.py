"""One run over several processes: who scores which share of a step, and what is summed, gathered or done once.

Every rank holds the same batch. A step's groups are a function of the seed and the step, fresh samples and judgements
are gathered as soon as they are made, and the plan follows from them; so the divisor of every loss term is the count over
*all* ranks and needs no communication. What is split is the work: each rank samples, judges and scores a run of
neighbouring items of about equal tokens, and gradients are summed (never averaged: a rank's share of the tokens is not
1/size). Any number of ranks gives the gradient of one process, up to the rounding of sums.

    shares         neighbouring items of about equal weight for each rank
    gather         what every rank has found, in rank order, which is the order of the items
    sum_gradients  replicated weights: one all-reduce of the whole step's gradient

The first rank alone writes. A rank that fails leaves its message in the launcher's store and the others end with it.
`world()` is a lone process until `joined` opens the group that `torchrun` or `accelerate launch` prepared.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trueline.engine.layout import Sized, micro_batches
from trueline.errors import TruelineError
from trueline.launch import Launch

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20  # of gradients in one all-reduce: large enough for the wire, small beside the gradient
WAIT = timedelta(
    hours=12
)  # for one rank that asks a slow judge or writes a large model; a rank that ends is noticed at once
PATIENCE = 20.0  # seconds that a failing rank waits for the first one to tell what happened
_FAILURE, _TOLD = "failure", "told"
_GONE = (RuntimeError, ValueError, AssertionError)  # a store or a group that is closed already: no further error


@dataclass(eq=False)
class World:
    """The processes of a run; by default there is one. sharded: the policy's weights are spread over the ranks, so that
    every forward pass is a collective and all ranks must make equally many. reshard: layers give whole weights back after
    their forward pass.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False
    reshard: bool = True
    store: Any = None
    objects: Any = None  # the group that carries Python objects: gloo, also beside NCCL
    left: bool = False  # this process is out of the run: nothing needs to be watched for it

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shares(self, weights: Sequence[int]) -> list[range]:
        """For every rank the run of items that is its own, in order: the largest sum of weights is as small as it can be."""
        if self.size == 1:
            return [range(len(weights))]
        low, high = max(weights, default=0), sum(weights)
        while low < high:
            middle = (low + high) // 2
            if len(_filled(weights, middle)) <= self.size:
                high = middle
            else:
                low = middle + 1
        found = _filled(weights, low)
        return found + [range(len(weights), len(weights))] * (self.size - len(found))

    def cuts(self, items: Sequence[Sized], token_budget: int) -> list[list[list[int]]]:
        """For every rank its micro-batches, as indices of the items. Every rank knows those of all."""
        shares = self.shares([item.tokens() for item in items])
        own = [micro_batches([items[i] for i in share], token_budget) for share in shares]
        return [[[share[i] for i in cut] for cut in cuts] for share, cuts in zip(shares, own, strict=True)]

    def spread(self, items: Sequence[Sized], token_budget: int, work: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """work(indices of a micro-batch) on every micro-batch, each on its rank: all that was found, in order of the items."""
        cuts = self.cuts(items, token_budget)
        own = [x for cut in cuts[self.rank] for x in work(cut)]
        for _ in range(self.idle(cuts)):
            work([0])
        return [x for found in self.gather(own) for x in found]

    def idle(self, cuts: Sequence[Sequence[Any]]) -> int:
        """Forward passes that this rank makes for company: a sharded pass needs all ranks."""
        return max(map(len, cuts)) - len(cuts[self.rank]) if self.sharded else 0

    # -- collectives ---------------------------------------------------------------------------------------------------

    def gather(self, own: T) -> list[T]:
        """What each rank brought, in rank order."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        self.calling(lambda: dist.all_gather_object(found, own, group=self.objects))
        found[self.rank] = own
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on every rank; the others do not call `make`."""
        if self.size == 1:
            return make()
        held: list[Any] = [make() if self.first else None]
        self.calling(lambda: dist.broadcast_object_list(held, src=0, group=self.objects))
        return held[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank."""
        return flag if self.size == 1 else any(self.gather(bool(flag)))

    def same(self, what: str, value: Any) -> None:
        """Raise TruelineError where ranks hold different values of what must be one and the same."""
        held = self.gather(value)
        other = next((rank for rank, theirs in enumerate(held) if theirs != held[0]), None)
        if other is not None:
            raise TruelineError(
                f"Ranks 0 and {other} have different {what}: {str(held[0])[:120]} and {str(held[other])[:120]}. All processes "
                "must read the same files with the same versions of everything."
            )

    def led(self, work: Callable[[Callable[[Any], Any]], T], serve: Callable[[Any], Any]) -> T:
        """work(ask) on the first rank, and its result on all; every ask(x) there is serve(x) on all ranks at once."""
        if self.size == 1:
            return work(serve)
        if not self.first:
            kind, value = self.from_first(_nothing)
            while kind != "done":
                serve(value)
                kind, value = self.from_first(_nothing)
            return value

        def ask(value: Any) -> Any:
            self.from_first(lambda: ("ask", value))
            return serve(value)

        result = work(ask)
        self.from_first(lambda: ("done", result))
        return result

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks; one that only some ranks have counts as 0 on the others.

        Sharded parameters are left alone: theirs were summed when they were scattered.
        """
        named = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not named:
            return
        held = [list(flags) for flags in zip(*self.gather([p.grad is not None for p in named]), strict=True)]
        for bucket in _buckets([p for p, flags in zip(named, held, strict=True) if any(flags)]):
            self._sum_bucket(bucket)

    def _sum_bucket(self, parameters: list[torch.nn.Parameter]) -> None:
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        self.calling(lambda: dist.all_reduce(flat, op=dist.ReduceOp.SUM))
        for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = summed.view_as(p)

    def calling(self, collective: Callable[[], Any]) -> None:
        """Run a collective; where another rank is gone, say what it said before it went."""
        try:
            collective()
        except RuntimeError as error:
            raise RankFailed(self._what_happened() or f"A process of the run is gone ({str(error)[:200]}).") from error

    # -- failures ------------------------------------------------------------------------------------------------------

    def _what_happened(self, patience: float = 5.0) -> str | None:
        """The message of the rank that failed first; None where it left none, as a killed process does."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if self._noted(_FAILURE):
                return str(self.store.get(_FAILURE).decode())
            time.sleep(0.1)
        return None

    def _noted(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError:  # the store's own process is gone
            return False

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends, and wait until the first has read it."""
        with suppress(*_GONE):
            self.store.compare_set(_FAILURE, "", f"Rank {self.rank} failed: {_in_words(error)}")
            if self.first:
                self.store.set(_TOLD, "1")
        with suppress(*_GONE):
            dist.destroy_process_group()  # closes the connections: ranks that wait for this one stop waiting
        end = time.monotonic() + PATIENCE
        while not self.first and not self._noted(_TOLD) and time.monotonic() < end:
            time.sleep(0.1)
        self.left = True

    def watch(self) -> None:
        """End this process some time after another one has failed, should it wait for that one in vain (NCCL does)."""

        def look() -> None:
            while not self.left and not self._noted(_FAILURE):
                time.sleep(1.0)
            end = time.monotonic() + PATIENCE
            while not self.left and time.monotonic() < end:
                time.sleep(1.0)
            if self.left:
                return
            message = self.store.get(_FAILURE).decode() if self._noted(_FAILURE) else "a process of the run is gone"
            print(f"error: {message}", file=sys.stderr, flush=True)
            os._exit(2)

        threading.Thread(target=look, daemon=True, name="trueline-watch").start()


class RankFailed(TruelineError):
    """Another rank ended, and this one cannot go on without it."""


def _nothing() -> tuple[str, Any]:
    return "", None


def _filled(weights: Sequence[int], capacity: int) -> list[range]:
    """Runs of neighbours that hold at most `capacity` each, as few as there can be."""
    found, start, held = [], 0, 0
    for i, weight in enumerate(weights):
        if i > start and held + weight > capacity:
            found.append(range(start, i))
            start, held = i, 0
        held += weight
    return [*found, range(start, len(weights))] if weights else []


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Runs of parameters of one dtype and device with at most BUCKET_BYTES (or one parameter)."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for p in parameters:
        same = not bucket or (p.dtype, p.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not same or size + p.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.nbytes
    if bucket:
        yield bucket


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, TruelineError) else f"{type(error).__name__}: {error}"


# -- the world that is open --------------------------------------------------------------------------------------------

_open: list[World] = [World()]


def world() -> World:
    """The processes of the run that is going on, or a lone one."""
    return _open[-1]


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process works by itself: nothing in it is shared or gathered."""
    with _entered(World()):
        yield


@contextmanager
def _entered(entered: World) -> Iterator[None]:
    _open.append(entered)
    try:
        yield
    finally:
        _open.pop()


@contextmanager
def joined(launch: Launch | None) -> Iterator[World]:
    """The group that the launcher prepared, until the block ends; a lone process where there is none.

    An error in the block reaches all ranks: the first rank raises it (with the rank where it happened), the others end
    with exit status 2 and leave the telling to the first. Inside another such block that one's group is used.
    """
    if launch is None or world().size > 1:
        try:
            yield world()
        finally:
            world().sharded = False  # it is a run that spreads its weights, not the group
        return
    member = _member(launch)
    try:
        with _entered(member):
            yield member
    except BaseException as error:
        member.fail(error)
        if not member.first and isinstance(error, TruelineError):
            raise SystemExit(2) from error
        raise
    member.left = True
    dist.destroy_process_group()


_groups = count()  # a store keeps what earlier groups of this process wrote


@lru_cache(maxsize=1)
def _store(rank: int, size: int) -> Any:
    """The launcher's store; one connection for all groups that this process opens one after another."""
    store, _, _ = next(iter(dist.rendezvous("env://", rank, size)))
    return store


def _member(launch: Launch) -> World:
    on_gpu = torch.cuda.is_available()
    if on_gpu and launch.cpu:
        raise TruelineError(
            "accelerate's --cpu has no effect beside a GPU. Hide it: CUDA_VISIBLE_DEVICES= torchrun ..."
        )
    if on_gpu:
        torch.cuda.set_device(launch.local_rank)
    name = f"trueline-{next(_groups)}"
    store = dist.PrefixStore(name, _store(launch.rank, launch.size))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=launch.rank, world_size=launch.size, timeout=WAIT)
    objects = dist.new_group(backend="gloo", timeout=WAIT) if on_gpu else None
    member = World(launch.rank, launch.size, store=store, objects=objects)
    member.watch()
    return member


def total(value: float) -> float:
    """The sum of a number over the ranks, added in rank order so that all have the same bits."""
    return math.fsum(world().gather(value))


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over the ranks (a collective)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or this rank's part of one that is spread over the ranks."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
