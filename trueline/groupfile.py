"""Groups on disk instead of in memory, for data that are large beside the machine: one file, read a group at a time.

A `GroupFile` is a sequence of groups: what takes groups by number or in order need not know that it has one. Every access
makes the group anew, so what is written into a group is lost; where data are filled in place (judges that relabel them,
cached scores), groups stay in memory. In memory are 8 bytes a group, and while a file is checked for rows that it holds
twice (`Digests`) 24 bytes a row. Nothing here imports torch.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any, overload

import numpy as np

from trueline.cachefolder import cache_folder
from trueline.groups import Group, Response

CHUNK = 4096  # groups that are gone through at once
DIGEST_BYTES = 16  # of a SHA-256: two of a billion rows are equal by chance once in 10^20
RECENT = 2**16


class GroupFile(Sequence[Group]):
    """Append-only groups in an unnamed temporary file, which goes with the object. Reads do not move a file position."""

    def __init__(self) -> None:
        folder = cache_folder()  # /tmp may be memory
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(prefix="groups-", dir=folder)  # noqa: SIM115  (it lives as long as this)
        self._ends = array("Q", [0])
        self._flushed = True

    def append(self, group: Group) -> None:
        data = pickle.dumps(_state(group), protocol=pickle.HIGHEST_PROTOCOL)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._flushed = False

    def extend(self, groups: Iterable[Group]) -> None:
        for group in groups:
            self.append(group)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> list[Group]: ...
    def __getitem__(self, place: int | slice) -> Group | list[Group]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = place + len(self) if place < 0 else place
        if not 0 <= i < len(self):
            raise IndexError(f"group {place} of {len(self)}")
        return _group(self._read(self._ends[i], self._ends[i + 1]))

    def __iter__(self) -> Iterator[Group]:
        """In order, a chunk of the file at a time."""
        for first in range(0, len(self), CHUNK):
            last = min(first + CHUNK, len(self))
            start = self._ends[first]
            data = memoryview(self._read(start, self._ends[last]))
            for i in range(first, last):
                yield _group(data[self._ends[i] - start : self._ends[i + 1] - start])

    def __add__(self, later: Sequence[Group]) -> Joined:
        return Joined(self, later)

    def _read(self, start: int, end: int) -> bytes:
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        return os.pread(self._file.fileno(), end - start, start)


class Joined(Sequence[Group]):
    """One sequence of groups after another, copied nowhere."""

    def __init__(self, *parts: Sequence[Group]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Group]:
        for part in self.parts:
            yield from part

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> list[Group]: ...
    def __getitem__(self, place: int | slice) -> Group | list[Group]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = place + len(self) if place < 0 else place
        for part in self.parts:
            if 0 <= i < len(part):
                return part[i]
            i -= len(part)
        raise IndexError(f"group {place} of {len(self)}")


def like(groups: Sequence[Group]) -> Any:
    """An empty collection to append to: on disk where these groups are, else a list."""
    return GroupFile() if isinstance(groups, GroupFile) else []


def chunks(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups on disk a chunk at a time; a list as the one chunk that it is (also an empty one)."""
    if not isinstance(groups, GroupFile):
        yield groups if isinstance(groups, list) else list(groups)
        return
    for first in range(0, len(groups), CHUNK):
        yield groups[first : first + CHUNK]


def _defaults(kind: Any) -> dict[str, Any]:
    made = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    return {**made, **{f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}}


_OF_GROUP, _OF_RESPONSE = _defaults(Group), _defaults(Response)
_ABSENT = object()


def _state(group: Group) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What differs from a new group and from new responses."""
    own = _changed(group, _OF_GROUP)
    own.pop("responses", None)
    return own, [_changed(r, _OF_RESPONSE) for r in group.responses]


def _changed(record: Group | Response, defaults: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if v is not (d := defaults.get(k, _ABSENT)) and v != d}


def _group(data: bytes | memoryview) -> Group:
    own, responses = pickle.loads(data)
    return Group(**own, responses=[Response(**r) for r in responses])


class Digests:
    """Digest to number, with 24 bytes an entry: sorted runs of arrays, and a dict of the most recent."""

    def __init__(self, recent: int = RECENT) -> None:
        self._most = recent
        self._recent: dict[bytes, int] = {}
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # (sorted digests, their numbers), ever smaller

    def get(self, digest: bytes) -> int | None:
        """The number that was set last for this digest."""
        if (number := self._recent.get(digest)) is not None:
            return number
        key = np.frombuffer(digest, dtype=f"S{DIGEST_BYTES}")[0]
        for digests, numbers in reversed(self._runs):
            place = int(np.searchsorted(digests, key))
            if place < len(digests) and digests[place] == key:
                return int(numbers[place])
        return None

    def set(self, digest: bytes, number: int) -> None:
        self._recent[digest] = number
        if len(self._recent) >= self._most:
            self._merge()

    def _merge(self) -> None:
        """The recent ones become a run, and runs of nearly one size become one, the later one's numbers first."""
        run = (
            np.frombuffer(b"".join(self._recent), dtype=f"S{DIGEST_BYTES}"),
            np.fromiter(self._recent.values(), dtype=np.int64, count=len(self._recent)),
        )
        self._recent = {}
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            before = self._runs.pop()
            run = (np.concatenate([run[0], before[0]]), np.concatenate([run[1], before[1]]))
        order = np.argsort(run[0], kind="stable")  # of equal digests the latest stands first
        self._runs.append((run[0][order], run[1][order]))
