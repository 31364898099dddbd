"""Cached rows that fork, grow and are taken back: what decoding with candidates needs of a key-value cache.

    open    a prompt -> a row            feed    new tokens of rows -> hidden states of those tokens
    fork    a row -> another like it     crop    a row back to fewer tokens        close    forget a row

Keys and values lie in two places. A *trunk* holds tokens that several rows may look at: a prompt, and whatever was settled
since. A *tail* is a row's own slot behind it. A row sees the first `visible` tokens of its trunk and the first `own` of its
tail; its attention is the merge of the two by their log-sum-exp (exact), so a candidate costs what its own tokens cost and no
prefix is ever copied for it. Forking copies nothing: the copies share the tail until one of them grows, and only then is that
tail folded into the trunk (in place, where nothing else has been laid behind the same tokens). Cropping sets a number. Rows
may even see less than their trunk holds, which is how a new request continues an old prompt. A row that grows alone at the end of
its trunk needs no tail: its tokens are laid in the trunk directly, and its attention is one product.

New tokens of all rows are fed in one flat call, so products never see padding. Trunks of about one length stand in a stack
as in `decode_cache.py`, whose products, flash call and masks serve here; windows, soft caps and sinks go the same way.

Shape suffixes: T new tokens of a call, N rows of a class, J new tokens a row, B trunks of a stack, M rows a trunk,
G key-value heads, R query heads per key-value head, S own tokens, P trunk tokens, D head width.
"""

from __future__ import annotations

import heapq
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trueline.engine.attention import over_layout
from trueline.engine.decode_cache import (
    FLASH_QUERIES,
    _additive,
    _fused,
    _out_of_reach,
    _products,
    _Stack,
    stack_width,
)
from trueline.engine.layout import Segment
from trueline.engine.precision import exact_cpu_products, fast_cpu_products


@dataclass(eq=False)
class Trunk:
    """Tokens that rows share. length: tokens that are laid; number: its name in its stack."""

    number: int
    stack: _Stack
    length: int
    rows: set[Row] = field(default_factory=set)

    @property
    def place(self) -> int:
        return self.stack.prompts.index(self.number)


@dataclass(eq=False)
class Tail:
    """A slot, and the rows that read its first tokens."""

    slot: int
    rows: set[Row] = field(default_factory=set)


@dataclass(eq=False)
class Row:
    """A sequence that has been read: `visible` tokens of the trunk, then `own` of the tail."""

    trunk: Trunk
    visible: int
    tail: Tail | None = None
    own: int = 0

    @property
    def length(self) -> int:
        return self.visible + self.own


@dataclass
class _TrunkPart:
    """Rows of one class that look at one stack. places: of its trunks (None: the first `count`). table: rows of the class, [B, M],
    filled up with any. direct: the new tokens are laid in the trunks themselves, and each sees those up to itself."""

    direct: bool
    stack: _Stack
    places: Tensor | None
    count: int
    table: Tensor
    visible_BM: Tensor
    position_BM: Tensor
    masks: dict[int | None, tuple[int, int, Tensor | None]] = field(default_factory=dict)


@dataclass
class _Class:
    """Rows with about as many new tokens: the same products serve them all.

    token_NJ: which new token of the call each row's j-th is (padded with its last). back_T: where each of the class's tokens
    stands in [N, J], with token_T its number in the call. slots: of the tails; before_N: own tokens before the new ones. direct: rows
    without tails. in_order: the class is the whole call, every row with as many tokens: nothing needs to be gathered.
    """

    direct: bool
    in_order: bool
    token_NJ: Tensor
    token_T: Tensor
    back_T: Tensor
    slots: Tensor | slice
    before_N: Tensor
    longest: int
    uniform: bool
    parts: list[_TrunkPart]
    back_N: Tensor | None
    own_masks: dict[int | None, Tensor | None] = field(default_factory=dict)


@dataclass
class _Feed:
    """One call: where new tokens are written, and the classes of rows. tails: (tokens, slots, places in them), None where there are none.
    trunks: (stack, tokens, places, places in them), tensors or single numbers."""

    tails: tuple[Tensor, Tensor, Tensor] | None
    trunks: list[tuple[_Stack, Any, Any, Any]]
    classes: list[_Class]


class BranchCache:
    """The cache of one model. It travels with the model call (`decode=cache`) and does the attention of every layer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stacks: dict[int, _Stack] = {}
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}  # per layer, keys and values [slots, G, S, D]
        self.free: list[int] = []
        self.slot_count = self.own_tokens = 0
        self.trunks = 0
        self._numbers = 0
        self._prefill: list[tuple[Trunk, Segment]] = []
        self._feed: _Feed | None = None

    # -- rows --------------------------------------------------------------------------------------------------------

    def fork(self, row: Row) -> Row:
        """Another row that has read the same; nothing is copied."""
        copy = Row(row.trunk, row.visible, row.tail, row.own)
        copy.trunk.rows.add(copy)
        if copy.tail is not None:
            copy.tail.rows.add(copy)
        return copy

    def crop(self, row: Row, length: int) -> None:
        """Take a row back to its first `length` tokens, 1 to its length."""
        if length <= row.visible:
            self._leave(row)
            row.visible = length
        else:
            row.own = length - row.visible

    def close(self, row: Row) -> None:
        self._leave(row)
        row.trunk.rows.discard(row)
        if not row.trunk.rows:
            self._drop(row.trunk)

    def bytes(self) -> int:
        """Bytes of keys and values that are held."""
        return sum(s.bytes for s in self.stacks.values()) + sum(t.nbytes for pair in self.slots.values() for t in pair)

    def layers(self) -> int:
        """Layers whose attention has reached this cache."""
        return max((len(stack.layers) for stack in self.stacks.values()), default=0)

    def _leave(self, row: Row) -> None:
        """Let go of the tail."""
        if row.tail is not None:
            row.tail.rows.discard(row)
            if not row.tail.rows:
                heapq.heappush(self.free, row.tail.slot)
        row.tail, row.own = None, 0

    def _trunk(self, length: int, width: int | None = None) -> Trunk:
        width = width or stack_width(length)
        stack = self.stacks.setdefault(width, _Stack(width))
        self._numbers += 1
        self.trunks += 1
        stack.prompts.append(self._numbers)
        return Trunk(self._numbers, stack, length)

    def _drop(self, trunk: Trunk) -> None:
        trunk.stack.remove(trunk.number)
        self.trunks -= 1

    # -- model calls -------------------------------------------------------------------------------------------------

    def begin_open(self, prompts: list[list[int]]) -> tuple[list[Row], Tensor, Tensor]:
        """Announce a call on prompts laid end to end; returns their rows, and ids and positions of the call, [1, T]."""
        self._feed, self._prefill, end, rows = None, [], 0, []
        for prompt in prompts:
            start, end = end, end + len(prompt)
            trunk = self._trunk(len(prompt))
            self._prefill.append((trunk, Segment(start, start, ((start, end),))))
            rows.append(Row(trunk, len(prompt)))
            trunk.rows.add(rows[-1])
        ids = [token for prompt in prompts for token in prompt]
        positions = [t for prompt in prompts for t in range(len(prompt))]
        return rows, self._ints(ids)[None], self._ints(positions)[None]

    def begin_feed(self, rows: list[Row], counts: list[int]) -> Tensor:
        """Announce a call on counts[i] >= 1 new tokens of rows[i], laid end to end; returns positions [1, T].

        The rows are that much longer from here on. A row is fed once a call.
        """
        self._prefill = []
        direct = self._own_places(rows, counts)
        starts, first = [], 0
        for n in counts:
            starts.append(first)
            first += n
        position_T = [row.length + j for row, n in zip(rows, counts, strict=True) for j in range(n)]
        kinds = [(alone, n > 1) for alone, n in zip(direct, counts, strict=True)]
        classes = []
        for kind in dict.fromkeys(kinds):
            which = [i for i, other in enumerate(kinds) if other == kind]
            parts = ([rows[i] for i in which], [counts[i] for i in which], [starts[i] for i in which])
            classes.append(self._class(*parts, direct=kind[0], whole=len(which) == len(rows)))
        self._feed = _Feed(*self._written(rows, counts, starts, direct), classes)
        for row, n, alone in zip(rows, counts, direct, strict=True):
            if alone:
                row.visible += n
                row.trunk.length = row.visible
            else:
                row.own += n
        return self._ints(position_T)[None]

    def _written(
        self, rows: list[Row], counts: list[int], starts: list[int], direct: list[bool]
    ) -> tuple[tuple[Tensor, Tensor, Tensor] | None, list[tuple[_Stack, Any, Any, Any]]]:
        """Where each new token goes: (tokens, slots, places in them), and by stack (tokens, places, places in them)."""
        tails: list[tuple[int, int, int]] = []
        trunks: dict[int, tuple[_Stack, list[tuple[int, int, int]]]] = {}
        for row, n, start, alone in zip(rows, counts, starts, direct, strict=True):
            if alone:
                place, stack = row.trunk.place, row.trunk.stack
                trunks.setdefault(id(stack), (stack, []))[1].extend(
                    (start + j, place, row.visible + j) for j in range(n)
                )
            else:
                assert row.tail is not None
                tails.extend((start + j, row.tail.slot, row.own + j) for j in range(n))
        # One token goes where plain numbers say: an indexed copy of it would cost as much as its attention.
        found: list[Any] = [
            (stack, *(entries[0] if len(entries) == 1 else self._ints(entries).unbind(1)))
            for stack, entries in trunks.values()
        ]
        where: Any = self._ints(tails).unbind(1) if tails else None
        return where, found

    def _ints(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _own_places(self, rows: list[Row], counts: list[int]) -> list[bool]:
        """Give every row a place that it alone writes to; says which rows write into their trunk.

        Tails that several rows read are folded into their trunks first. A row without a tail that stands at the end of its trunk, and
        is the only one of this call there, goes on in it; all others get a tail.
        """
        shared = dict.fromkeys(r.tail for r in rows if r.tail is not None and len(r.tail.rows) > 1)
        self._fold([tail for tail in shared if tail is not None])
        here: dict[Trunk, int] = {}
        for row in rows:
            here[row.trunk] = here.get(row.trunk, 0) + 1
        direct = []
        for row, n in zip(rows, counts, strict=True):
            row.trunk.length = max(other.visible for other in row.trunk.rows)
            direct.append(row.tail is None and row.visible == row.trunk.length and here[row.trunk] == 1)
            if direct[-1]:
                if row.visible + n > row.trunk.stack.width:
                    self._moved(row.trunk, row.visible, row.visible + n, list(row.trunk.rows))
            elif row.tail is None:
                if not self.free:
                    self._more_slots()
                row.tail = Tail(heapq.heappop(self.free), {row})
        if not all(direct):
            self._grow(max(row.own + n for row, n, alone in zip(rows, counts, direct, strict=True) if not alone))
        return direct

    def _fold(self, tails: list[Tail]) -> None:
        """Lay the tokens of these tails behind what their rows see of the trunk, one copy a layer for all of them."""
        moves: list[tuple[Trunk, int, int, int]] = []  # where to, from which place on, which slot, how many tokens
        for tail in tails:
            longest = max(tail.rows, key=lambda row: row.own)
            if longest.own:
                target = self._with_room(longest.trunk, tail, longest.visible, longest.own)
                moves.append((target, longest.visible, tail.slot, longest.own))
            for row in list(tail.rows):
                row.visible += row.own
                self._leave(row)
        for stack in {id(target.stack): target.stack for target, *_ in moves}.values():  # places are settled only now
            here = [(t.place, at, slot, n) for t, at, slot, n in moves if t.stack is stack]
            place = self._ints([place for place, _, _, n in here for _ in range(n)])
            where = self._ints([at + j for _, at, _, n in here for j in range(n)])
            slots = self._ints([slot for _, _, slot, n in here for _ in range(n)])
            index = self._ints([j for _, _, _, n in here for j in range(n)])
            for layer, stores in stack.layers.items():
                for store, own in zip(stores, self.slots[layer], strict=True):
                    store[place, :, where] = own[slots, :, index]

    def _with_room(self, trunk: Trunk, tail: Tail, visible: int, count: int) -> Trunk:
        """A trunk with the first `visible` tokens of this one and room for `count` after them, for the rows of the tail."""
        trunk.length = max(row.visible for row in trunk.rows)
        stays = trunk.length == visible
        if stays and visible + count <= trunk.stack.width:
            trunk.length = visible + count
            return trunk
        return self._moved(trunk, visible, visible + count, list(trunk.rows if stays else tail.rows))

    def _moved(self, trunk: Trunk, visible: int, length: int, rows: list[Row]) -> Trunk:
        """A trunk with the first `visible` tokens of this one and room for `length`, to which these rows move."""
        old, place = trunk.stack, trunk.place
        target = self._trunk(length)
        for layer, (keys, values) in old.layers.items():
            target.stack.write(layer, target.place, keys[place, :, :visible], values[place, :, :visible])
        for row in rows:
            trunk.rows.discard(row)
            target.rows.add(row)
            row.trunk = target
        if not trunk.rows:
            self._drop(trunk)
        return target

    def _more_slots(self) -> None:
        count = max(8, 2 * self.slot_count)
        for new in range(self.slot_count, count):
            heapq.heappush(self.free, new)
        self.slot_count = count

    def _grow(self, own_tokens: int) -> None:
        """Room for the slots and this many tokens in each.

        Zeros, not empty memory: the unwritten end of a slot is masked by a number, which would not silence a NaN.
        """
        if own_tokens > self.own_tokens:
            self.own_tokens = stack_width(own_tokens)
        like = next(stack for stack in self.stacks.values() if stack.layers).layers
        for layer, pair in like.items():
            held = self.slots.get(layer)
            if held is not None and len(held[0]) == self.slot_count and held[0].shape[2] == self.own_tokens:
                return
            made = []
            for which, store in enumerate(pair):
                new = store.new_zeros(self.slot_count, store.shape[1], self.own_tokens, store.shape[3])
                if held is not None:
                    slots, _, tokens, _ = held[which].shape
                    new[:slots, :, :tokens] = held[which]
                made.append(new)
            self.slots[layer] = (made[0], made[1])

    def _class(self, rows: list[Row], counts: list[int], starts: list[int], *, direct: bool, whole: bool) -> _Class:
        most = max(counts)
        token_NJ = [[start + min(j, n - 1) for j in range(most)] for start, n in zip(starts, counts, strict=True)]
        pairs = [
            (start + j, i * most + j) for i, (start, n) in enumerate(zip(starts, counts, strict=True)) for j in range(n)
        ]
        slots = [row.tail.slot for row in rows if row.tail is not None]
        in_line = direct or slots == list(range(slots[0], slots[0] + len(slots)))
        before = [row.own for row in rows]
        parts, back = self._trunk_parts(rows, direct)
        return _Class(
            direct=direct,
            in_order=whole and min(counts) == most,
            token_NJ=self._ints(token_NJ),
            token_T=self._ints([token for token, _ in pairs]),
            back_T=self._ints([place for _, place in pairs]),
            slots=slice(slots[0], slots[0] + len(slots)) if in_line and slots else self._ints(slots),
            before_N=self._ints(before),
            longest=max(own + n for own, n in zip(before, counts, strict=True)),
            uniform=most == 1 and len(set(before)) == 1,
            parts=parts,
            back_N=None if back is None else self._ints(back),
        )

    def _trunk_parts(self, rows: list[Row], direct: bool) -> tuple[list[_TrunkPart], list[int] | None]:
        """The class's rows by stack and trunk, and where each row's result will stand (None: in order)."""
        by_stack: dict[int, dict[Trunk, list[int]]] = {}
        for i, row in enumerate(rows):
            by_stack.setdefault(id(row.trunk.stack), {}).setdefault(row.trunk, []).append(i)
        parts, back, first = [], [0] * len(rows), 0
        for by_trunk in by_stack.values():
            stack = next(iter(by_trunk)).stack
            order = sorted(by_trunk, key=lambda trunk: trunk.place)
            most = max(map(len, by_trunk.values()))
            table = []
            for b, trunk in enumerate(order):
                for m, i in enumerate(by_trunk[trunk]):
                    back[i] = first + b * most + m
                table.append(by_trunk[trunk] + [by_trunk[trunk][0]] * (most - len(by_trunk[trunk])))
            first += len(order) * most
            places = [trunk.place for trunk in order]
            whole = places == list(range(len(places)))
            visible = [[rows[i].visible for i in line] for line in table]
            position = [[rows[i].length for i in line] for line in table]
            table_BM, visible_BM, position_BM = (
                torch.tensor(x, device=self.device) for x in (table, visible, position)
            )
            where = None if whole else self._ints(places)
            parts.append(_TrunkPart(direct, stack, where, len(places), table_BM, visible_BM, position_BM))
        in_order = first == len(rows) and back == list(range(first))
        return parts, None if in_order else back

    # -- what attention calls ----------------------------------------------------------------------------------------

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
    ) -> Tensor:
        """Attention of one layer. query [1, heads, T, D], key and value [1, G, T, D] -> [1, T, heads, D]."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings may leave a wider type
        if self._feed is None:
            for trunk, segment in self._prefill:
                span = slice(segment.start, segment.end)
                trunk.stack.write(layer, trunk.place, key[0, :, span], value[0, :, span])
            segments = tuple(segment for _, segment in self._prefill)
            out = over_layout(query, key, value, segments, scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
            return out.transpose(1, 2)
        feed = self._feed
        if feed.tails is not None:
            token_T, slot_T, index_T = feed.tails
            for store, new in zip(self.slots[layer], (key, value), strict=True):
                store[slot_T, :, index_T] = new[0].transpose(0, 1)[token_T]
        for stack, token, place, index in feed.trunks:
            for store, new in zip(stack.layers[layer], (key, value), strict=True):
                store[place, :, index] = new[0].transpose(0, 1)[token]
        with exact_cpu_products() if fast_cpu_products() else nullcontext():
            if feed.classes[0].in_order:
                return self._attend(feed.classes[0], layer, query, scaling, softcap, sliding_window, s_aux)[None]
            out_THD = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
            for group in feed.classes:
                out_THD[group.token_T] = self._attend(group, layer, query, scaling, softcap, sliding_window, s_aux)
        return out_THD[None]

    def _attend(
        self,
        group: _Class,
        layer: int,
        query: Tensor,
        scaling: float,
        softcap: float | None,
        window: int | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Tail and trunk, merged, for the new tokens of one class: [T, heads, D]."""
        heads, groups, width = query.shape[1], group.parts[0].stack.layers[layer][0].shape[1], query.shape[-1]
        rows, each = group.token_NJ.shape
        repeats = heads // groups
        query_THD = query[0].transpose(0, 1)
        query_NJHD = query_THD if group.in_order else query_THD[group.token_NJ]
        query_NGQD = (
            query_NJHD.reshape(rows, each, groups, repeats, width).transpose(1, 2).reshape(rows, groups, -1, width)
        )
        if group.direct and len(group.parts) == 1 and group.back_N is None and softcap is None and sinks is None:
            out = _alone(group.parts[0], layer, query_NGQD, scaling, window, each, repeats)
            lse = out  # nothing reads it
        else:
            out, lse = _trunk_part(group, layer, query_NGQD, scaling, softcap, window, repeats)
        if not group.direct:
            keys, values = (store[group.slots][:, :, : group.longest] for store in self.slots[layer])
            own, own_lse = _products(
                query_NGQD, keys, values, scaling, softcap, _own_mask(group, window, values, repeats)
            )
            share = torch.sigmoid(own_lse - lse).to(values.dtype)[..., None]  # of the tail in the whole softmax
            out = torch.lerp(out, own, share)
            lse = torch.logaddexp(own_lse, lse) if sinks is not None else lse
        out = out.reshape(rows, groups, each, repeats, -1)
        if sinks is not None:
            rest = lse.reshape(rows, groups, each, repeats) - sinks.to(lse).view(1, groups, 1, repeats)
            out = out * torch.sigmoid(rest).to(out.dtype)[..., None]
        out = out.transpose(1, 2).reshape(rows * each, heads, -1)
        return out if group.in_order else out[group.back_T]


def _own_mask(group: _Class, window: int | None, like: Tensor, repeats: int) -> Tensor | None:
    """Additive mask of new tokens on their row's tail, [N, 1, J·R, S]; None where all see all of it."""
    if group.uniform and (window is None or group.longest <= window):
        return None
    if window not in group.own_masks:
        each = group.token_NJ.shape[1]
        at_NJ = group.before_N[:, None] + torch.arange(each, device=like.device)
        back_NJS = at_NJ[:, :, None] - torch.arange(group.longest, device=like.device)  # positions back
        seen_NJS = (back_NJS >= 0) & (back_NJS < (group.longest if window is None else window))
        group.own_masks[window] = _additive(seen_NJS, like.dtype).repeat_interleave(repeats, 1)[:, None]
    return group.own_masks[window]


def _alone(
    part: _TrunkPart, layer: int, query_NGQD: Tensor, scaling: float, window: int | None, each: int, repeats: int
) -> Tensor:
    """Attention of rows that have a trunk each and no tail: nothing is merged, so torch's own kernel serves."""
    keys, values = part.stack.layers[layer]
    begin, end, mask = _trunk_window(part, window, each, repeats, values)
    where = slice(0, part.count) if part.places is None else part.places
    keys, values = keys[where][:, :, begin:end], values[where][:, :, begin:end]
    return scaled_dot_product_attention(query_NGQD, keys, values, attn_mask=mask, scale=scaling)


def _trunk_part(
    group: _Class,
    layer: int,
    query_NGQD: Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
    repeats: int,
) -> tuple[Tensor, Tensor]:
    """Every new token's attention to its trunk: [N, G, J·R, D] and log-sum-exps [N, G, J·R], one call per stack.

    A trunk out of every token's window leaves a log-sum-exp so low that the merge gives it no weight.
    """
    _, groups, queries, width = query_NGQD.shape
    outs, lses = [], []
    for part in group.parts:
        keys, values = part.stack.layers[layer]
        trunks, most = part.table.shape
        block = query_NGQD[part.table.flatten()].view(trunks, most, groups, queries, width)
        block = block.transpose(1, 2).reshape(trunks, groups, most * queries, width)
        begin, end, mask = _trunk_window(part, window, queries // repeats, repeats, values)
        if begin < end:
            where = slice(0, part.count) if part.places is None else part.places
            attend = _fused if most * queries >= FLASH_QUERIES else _products
            out, lse = attend(
                block, keys[where][:, :, begin:end], values[where][:, :, begin:end], scaling, softcap, mask
            )
        else:
            out = values.new_zeros(trunks, groups, most * queries, values.shape[3])
            lse = out.new_full(out.shape[:3], _out_of_reach(out.dtype))
        outs.append(out.view(trunks, groups, most, queries, -1).transpose(1, 2).flatten(0, 1))
        lses.append(lse.view(trunks, groups, most, queries).transpose(1, 2).flatten(0, 1))
    out, lse = (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))
    return (out, lse) if group.back_N is None else (out[group.back_N], lse[group.back_N])


def _trunk_window(
    part: _TrunkPart, window: int | None, each: int, repeats: int, like: Tensor
) -> tuple[int, int, Tensor | None]:
    """Which trunk tokens the new tokens may look at: a slice begin:end, and an additive mask [B, 1, M·J·R, P] in it.

    A token at position p sees the row's visible tokens from p - window + 1 on; laid in the trunk itself, those up to p.
    """
    if window in part.masks:
        return part.masks[window]
    at_BMJ = part.position_BM[:, :, None] + torch.arange(each, device=like.device)
    limit_BMJ = at_BMJ + 1 if part.direct else part.visible_BM[:, :, None]
    end = min(int(limit_BMJ.max()), part.stack.width)  # what a row is filled up with may stand beyond
    begin_BMJ = torch.zeros_like(at_BMJ) if window is None else (at_BMJ - window + 1).clamp(min=0)
    begin = int(begin_BMJ.min())
    mask = None
    if begin < end and (int(limit_BMJ.min()) < end or int(begin_BMJ.max()) > begin):
        key_P = torch.arange(begin, end, device=like.device)
        seen = (key_P >= begin_BMJ[..., None]) & (key_P < limit_BMJ[..., None])
        mask = _additive(seen, like.dtype).repeat_interleave(repeats, 2).flatten(1, 2)[:, None]
    part.masks[window] = (begin, end, mask)
    return part.masks[window]
