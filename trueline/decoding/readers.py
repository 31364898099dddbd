"""Three ways for a model to read rows that fork and are taken back, and the trial that decides which one it may use.

    SharedReader     prefixes once for all candidates, in our attention (`engine/branches.py`)
    OwnCacheReader   the cache the model brings: rows of one length together, copied where they fork, cropped where it can
    Rereader         no cache: whole rows again

All answer the same calls: `open`, `fork`, `crop`, `close`, `length`, and `feed`, which returns the hidden states of the new tokens laid end
to end, [T, D]. No model is trusted by name: before its first use a reader goes through forks and crops on a trial, and the next
way is taken, with the measured gap printed, where its states lead to other log-probs than whole rows do.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicLayer

from trueline.engine.backbone import Backbone
from trueline.engine.branches import BranchCache, Row
from trueline.engine.decoders import AGREEMENT, AGREEMENT_HALF, TRIAL, device_of, positions_of, vocabulary_of
from trueline.engine.precision import products
from trueline.errors import TruelineError

CALL_TOKENS = 4096  # new tokens of one call: products gain nothing from more


class Reader(Protocol):
    """What a model's rows can do. A row is whatever `open` and `fork` return."""

    def open(self, prompts: Sequence[list[int]]) -> tuple[list[Any], Tensor]: ...
    def feed(self, rows: Sequence[Any], new: Sequence[list[int]]) -> Tensor: ...
    def fork(self, row: Any) -> Any: ...
    def crop(self, row: Any, length: int) -> None: ...
    def close(self, row: Any) -> None: ...
    def length(self, row: Any) -> int: ...
    def held(self) -> int:
        """Rows and prefixes that take memory: 0 when everything has been closed."""
        ...


class SharedReader:
    """Rows in our own attention; candidates never copy a prefix."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.cache = BranchCache(device_of(backbone.model))

    def open(self, prompts: Sequence[list[int]]) -> tuple[list[Row], Tensor]:
        rows, ids, positions = self.cache.begin_open([list(p) for p in prompts])
        states = self._call(ids, positions)
        if self.cache.layers() != self.backbone.layers:  # a layer that attends elsewhere would decode without its past
            raise TruelineError(
                f"The attention of {self.cache.layers()} layers reached the decode cache; the model has "
                f"{self.backbone.layers}. Build the policy with layout='padded'."
            )
        return rows, states

    def feed(self, rows: Sequence[Row], new: Sequence[list[int]]) -> Tensor:
        ids = torch.tensor([token for tokens in new for token in tokens], device=self.cache.device)[None]
        return self._call(ids, self.cache.begin_feed(list(rows), [len(tokens) for tokens in new]))

    def _call(self, ids: Tensor, positions: Tensor) -> Tensor:
        body = self.backbone.body
        out = body(input_ids=ids, position_ids=positions, use_cache=False, decode=self.cache, return_dict=True)
        return out.last_hidden_state[0]

    def fork(self, row: Row) -> Row:
        return self.cache.fork(row)

    def crop(self, row: Row, length: int) -> None:
        self.cache.crop(row, length)

    def close(self, row: Row) -> None:
        self.cache.close(row)

    def length(self, row: Row) -> int:
        return row.length

    def held(self) -> int:
        return self.cache.trunks + self.cache.slot_count - len(self.cache.free)


# -- the model's own cache ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Pack:
    """Rows that were fed together: a cache of the model with a batch place each, all of one length."""

    kept: dict[str, Any]
    length: int
    users: int = 0


@dataclass(eq=False)
class _PackedRow:
    ids: list[int]
    pack: _Pack | None = None  # None: must be read anew
    place: int = 0


class OwnCacheReader:
    """Rows on the model's own cache. Forks share a pack until they are fed; a pack is copied where others still need it."""

    NAMES = ("past_key_values", "cache_params")

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.device = device_of(backbone.model)
        self.rows = 0
        self.warned = False

    def open(self, prompts: Sequence[list[int]]) -> tuple[list[_PackedRow], Tensor]:
        rows = [_PackedRow([]) for _ in prompts]
        self.rows += len(rows)
        return rows, self.feed(rows, prompts)

    def feed(self, rows: Sequence[_PackedRow], new: Sequence[list[int]]) -> Tensor:
        """Groups of rows that stand in one pack, at one length, with as many new tokens, are one call each."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for i, (row, tokens) in enumerate(zip(rows, new, strict=True)):
            if row.pack is not None and row.pack.length > len(row.ids) and not self._croppable(row.pack):
                self._forget(row)
            read = len(row.ids) if row.pack is not None else 0
            total = len(row.ids) + len(tokens)
            groups.setdefault((id(row.pack), read, total - read), []).append(i)
        states: list[Tensor | None] = [None] * len(rows)
        for which in groups.values():
            group = [rows[i] for i in which]
            ids = [row.ids + list(new[i]) for row, i in zip(group, which, strict=True)]
            for i, hidden in zip(which, self._advance(group, ids), strict=True):
                states[i] = hidden[-len(new[i]) :]
        return torch.cat([s for s in states if s is not None])

    def _advance(self, rows: list[_PackedRow], ids: list[list[int]]) -> Tensor:
        """Read what is new of these rows, whose past stands in one pack: hidden states [N, J, D]."""
        pack = rows[0].pack
        kept: dict[str, Any] = {}
        read = 0
        if pack is not None:
            read = len(rows[0].ids)
            places = [row.place for row in rows]
            alone = pack.users == len(rows)
            kept = pack.kept if alone else copy.deepcopy(pack.kept)
            for cache in kept.values():
                if pack.length > read:
                    cache.crop(read - pack.length)  # a negative number: tokens to remove
                cache.reorder_cache(torch.tensor(places, device=self.device))
        fresh = torch.tensor([row[read:] for row in ids], device=self.device)
        out = self.backbone.body(input_ids=fresh, use_cache=True, return_dict=True, **kept)
        kept = {name: out[name] for name in self.NAMES if hasattr(out.get(name), "reorder_cache")}
        made = _Pack(kept, len(ids[0]), len(rows))
        for place, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
            self._forget(row)
            row.ids, row.pack, row.place = tokens, made if kept else None, place
        return out.last_hidden_state

    def _croppable(self, pack: _Pack) -> bool:
        """Whether every layer holds plain keys and values.

        Linear-attention layers of transformers 5.23 take back their convolution states only, not the recurrent ones, and
        windows that are full have lost what a crop needs: both are read anew.
        """
        layers = [layer for cache in pack.kept.values() for layer in getattr(cache, "layers", [None])]
        plain = all(type(layer) is DynamicLayer for layer in layers)
        if not plain and not self.warned:
            self.warned = True
            kinds = ", ".join(sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}))
            print(
                f"trueline: {self.backbone.kind}: its cache ({kinds}) cannot be cropped: rows are read again from their "
                "start wherever candidates are taken back, which is slow.",
                file=sys.stderr,
            )
        return plain

    def _forget(self, row: _PackedRow) -> None:
        if row.pack is not None:
            row.pack.users -= 1
        row.pack = None

    def fork(self, row: _PackedRow) -> _PackedRow:
        self.rows += 1
        if row.pack is not None:
            row.pack.users += 1
        return _PackedRow(list(row.ids), row.pack, row.place)

    def crop(self, row: _PackedRow, length: int) -> None:
        del row.ids[length:]

    def close(self, row: _PackedRow) -> None:
        self.rows -= 1
        self._forget(row)

    def length(self, row: _PackedRow) -> int:
        return len(row.ids)

    def held(self) -> int:
        return self.rows


class Rereader:
    """No cache: rows are ids, and feeding reads them whole, padded at the right (which a causal model cannot see)."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.rows = 0

    def open(self, prompts: Sequence[list[int]]) -> tuple[list[list[int]], Tensor]:
        rows: list[list[int]] = [[] for _ in prompts]
        self.rows += len(rows)
        return rows, self.feed(rows, prompts)

    def feed(self, rows: Sequence[list[int]], new: Sequence[list[int]]) -> Tensor:
        for row, tokens in zip(rows, new, strict=True):
            row.extend(tokens)
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device_of(self.backbone.model))
        real = torch.arange(padded.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        out = self.backbone.body(
            input_ids=padded, attention_mask=real.long().to(padded.device), use_cache=False, return_dict=True
        ).last_hidden_state
        cuts = [(len(row) - len(tokens), len(row)) for row, tokens in zip(rows, new, strict=True)]
        return torch.cat([out[i, start:end] for i, (start, end) in enumerate(cuts)])

    def fork(self, row: list[int]) -> list[int]:
        self.rows += 1
        return list(row)

    def crop(self, row: list[int], length: int) -> None:
        del row[length:]

    def close(self, row: list[int]) -> None:
        self.rows -= 1

    def length(self, row: list[int]) -> int:
        return len(row)

    def held(self) -> int:
        return self.rows


# -- the trial ---------------------------------------------------------------------------------------------------------

Read = Callable[[Tensor], Tensor]  # hidden states [T, D] -> what is compared [T, ...]
_verdicts: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def reader_of(backbone: Backbone, read: Read) -> Reader:
    """The fastest reader that agrees with whole rows, found out once per model. Sets the attention that it needs.

    The caller holds the model in evaluation mode and without gradients.
    """
    model = backbone.model
    shared = backbone.mode == "shared"
    if model not in _verdicts:
        _verdicts[model] = _judge(backbone, read, shared)
    if _verdicts[model] == "shared":
        return SharedReader(backbone)
    backbone.set_mode("padded")
    return OwnCacheReader(backbone) if _verdicts[model] == "own" else Rereader(backbone)


def _judge(backbone: Backbone, read: Read, shared: bool) -> str:
    limit = AGREEMENT.get(next(backbone.model.parameters()).dtype, AGREEMENT_HALF)
    ways: list[tuple[str, type, str]] = [("own", OwnCacheReader, "its own cache"), ("none", Rereader, "whole rows")]
    if shared:
        ways.insert(0, ("shared", SharedReader, "shared prefixes"))
    for (name, way, words), following in zip(ways, [*ways[1:], None], strict=True):
        if following is None:
            return name
        with products("exact"):
            gap, why = trial_gap(backbone, way, read)
        if gap <= limit:
            return name
        print(
            f"trueline: {backbone.kind}: decoding on {words} is off by {gap:.2g} from whole rows (limit {limit:.0e}){why}: "
            f"{following[2]} will be read instead, which is slower.",
            file=sys.stderr,
        )
    return "none"


def trial_gap(backbone: Backbone, way: type, read: Read) -> tuple[float, str]:
    """Largest difference of what is read after forks, crops and feeds of several tokens from whole rows; inf if it cannot run."""
    before = backbone.mode
    try:
        backbone.set_mode("shared" if way is SharedReader else "padded")
        reader = way(backbone)
        found, rows = _walk(reader, _trial(backbone))
        backbone.set_mode("padded")
        whole = Rereader(backbone)
        expected = torch.cat([whole.feed([[]], [ids])[-n:] for ids, n in rows])
    except Exception as error:  # whatever a model's code raises on our call is the reason it falls back
        return float("inf"), f" ({type(error).__name__}: {error})"
    finally:
        backbone.set_mode(before)
    gap = (read(found).double() - read(expected).double()).abs().max().item()
    return (gap, "") if gap == gap else (float("inf"), "")


def _trial(backbone: Backbone) -> Tensor:
    length = min(TRIAL, positions_of(backbone.model) or TRIAL)
    ids = np.random.Generator(np.random.PCG64(0)).integers(vocabulary_of(backbone.model), size=(3, length))
    return torch.tensor(ids)


def _walk(reader: Reader, ids: Tensor) -> tuple[Tensor, list[tuple[list[int], int]]]:
    """Open two prompts, fork, feed unequal numbers of tokens, crop, fork what has a tail, feed again.

    Returns the states that were read and, for each feed of a row, its ids so far and how many of them were new.
    """
    first, second, other = ids.tolist()
    cut = max(1, len(first) - 5)
    log: list[tuple[list[int], int]] = []
    held: dict[int, list[int]] = {}
    states: list[Tensor] = []

    def feed(rows: list[Any], new: list[list[int]]) -> None:
        states.append(reader.feed(rows, new))
        for row, tokens in zip(rows, new, strict=True):
            held[id(row)] = held[id(row)] + tokens
            log.append((held[id(row)], len(tokens)))

    (a, b), opened = reader.open([first[:cut], second[: cut - 1] or second[:1]])
    states.append(opened)
    held[id(a)], held[id(b)] = first[:cut], second[: cut - 1] or second[:1]
    log += [(held[id(a)], len(held[id(a)])), (held[id(b)], len(held[id(b)]))]
    c = reader.fork(a)
    held[id(c)] = held[id(a)]
    feed([a, b, c], [first[cut : cut + 2], second[cut : cut + 1], other[:1]])
    d = reader.fork(a)
    held[id(d)] = held[id(a)]
    feed([d, c], [other[1:2], other[2:4]])
    reader.crop(a, cut + 1)
    held[id(a)] = held[id(a)][: cut + 1]
    feed([a, b, d], [other[4:6], second[cut + 1 : cut + 2], other[6:7]])
    for row in (a, b, c, d):
        reader.close(row)
    return torch.cat(states), log


@dataclass
class TableReader:
    """Rows of a language model that is a function: ids so far -> logits of the next token. Its states are those logits."""

    logits: Callable[[tuple[int, ...]], Any]
    rows: int = 0
    calls: int = field(default=0)

    def open(self, prompts: Sequence[list[int]]) -> tuple[list[list[int]], Tensor]:
        rows: list[list[int]] = [[] for _ in prompts]
        self.rows += len(rows)
        return rows, self.feed(rows, prompts)

    def feed(self, rows: Sequence[list[int]], new: Sequence[list[int]]) -> Tensor:
        states = []
        for row, tokens in zip(rows, new, strict=True):
            for token in tokens:
                row.append(token)
                states.append(np.asarray(self.logits(tuple(row)), dtype=np.float64))
        return torch.tensor(np.maximum(np.stack(states), IMPOSSIBLE))

    def fork(self, row: list[int]) -> list[int]:
        self.rows += 1
        return list(row)

    def crop(self, row: list[int], length: int) -> None:
        del row[length:]

    def close(self, row: list[int]) -> None:
        self.rows -= 1

    def length(self, row: list[int]) -> int:
        return len(row)

    def held(self) -> int:
        return self.rows


IMPOSSIBLE = (
    -1e4
)  # a logit that no softmax gives weight to, in place of minus infinity, which mixing would turn into NaN
