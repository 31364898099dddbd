"""Keys and values while sampling: a prompt's once for all its rows, a row's own tokens in preallocated slots.

The cache travels with the model call (`decode=cache`) and does the attention of every layer, so that no cache grows
by concatenation and a prompt's keys exist once, however many rows look at them:

    prefill   prompts laid end to end in one flat row, attended to as the engine scores them; keys and values stored
    step      one new token per row: all rows of a prompt look at its keys in one product per key-value head, each
              row looks at its own slot, and the two softmaxes are merged by their log-sum-exp (exact)

Prompts of about one length stand in a stack, so that a step is one kernel call per stack and not one per prompt (with
short prompts and two samples each, calls would cost more than the arithmetic); a stack is at most a third padding
above 16 tokens. Rows stand in slots 0..n-1. In stacks and slots alike the last one moves into a place that falls
free, so what is in use is always a plain slice. Sliding windows go by position difference, layer by layer. Soft
caps take explicit products (no fused kernel has them); attention sinks are one more term of the merge's denominator.

Shape suffixes: T tokens of a flat prefill row, N rows (slots in use), B prompts in a stack, M rows per prompt,
G key-value heads, R query heads per key-value head, S own tokens, P prompt tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trueline.engine.attention import over_layout
from trueline.engine.layout import Segment
from trueline.engine.precision import exact_cpu_products

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_QUERIES = 4  # queries per prompt and head from which the flash kernel beats plain batched products


class _Stack:
    """Prompts of about one length: per layer, keys and values [places, G, width, D]."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.prompts: list[int] = []  # by place
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, place: int, key: Tensor, value: Tensor) -> None:
        """Store one prompt's keys and values [G, P, D]; room grows by doubling."""
        stores = self.layers.get(layer)
        if stores is None or place >= len(stores[0]):
            places = max(len(self.prompts), 2 * len(stores[0]) if stores else 0)
            grown = [new.new_zeros(places, new.shape[0], self.width, new.shape[2]) for new in (key, value)]
            for store, old in zip(grown, stores or (), strict=False):
                store[: len(old)] = old
            stores = self.layers[layer] = (grown[0], grown[1])
        for store, new in zip(stores, (key, value), strict=True):
            store[place, :, : new.shape[1]] = new

    def remove(self, prompt: int) -> None:
        place, last = self.prompts.index(prompt), len(self.prompts) - 1
        self.prompts[place] = self.prompts[last]
        self.prompts.pop()
        if not self.prompts:
            self.layers.clear()
        elif place < last:
            for store in self._stores():
                store[place] = store[last]

    def _stores(self) -> list[Tensor]:
        return [store for stores in self.layers.values() for store in stores]

    @property
    def bytes(self) -> int:
        return sum(store.nbytes for store in self._stores())


def stack_width(length: int) -> int:
    """Tokens a place holds in the stack for prompts of this length: 16, 24, 32, 48, 64, 96, ..."""
    width = 16
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


@dataclass
class _Part:
    """The rows of one stack's prompts in one step: [B, M] of them, short prompts filled up with any row.

    lengths: the prompts' lengths [B]. own: tokens of each row's slot, [B][M]. first: where the part begins among all.
    """

    stack: _Stack
    lengths: list[int]
    own: list[list[int]]
    first: int
    masks: dict[tuple[int | None, int], tuple[int, int, Tensor | None]] = field(default_factory=dict)

    @property
    def rows_each(self) -> int:
        return len(self.own[0])


@dataclass
class _Step:
    """What every layer of one step shares: who stands where, and the masks, one per distinct window.

    lengths, lengths_N: own tokens of each row, the new one included. gather: slots in the order of the parts (None:
    slot order). back_N: each slot's place in that order (None: its own).
    """

    lengths: list[int]
    lengths_N: Tensor
    parts: list[_Part]
    gather: Tensor | None
    back_N: Tensor | None
    own_masks: dict[int | None, Tensor | None] = field(default_factory=dict)


class GroupCache:
    """The decode state of one sampling call.

    own_tokens: tokens a slot can hold. peak_prompt_bytes: most that the stacks of prompts took at any time.
    """

    def __init__(self, own_tokens: int, device: torch.device) -> None:
        self.own_tokens = own_tokens
        self.device = device
        self.stacks: dict[int, _Stack] = {}
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}  # per layer, keys and values [slots, G, own_tokens, D]
        self.lengths: dict[int, int] = {}  # of open prompts
        self.peak_prompt_bytes = 0
        self._prefill: dict[int, Segment] = {}
        self._step: _Step | None = None

    # -- what the sampling loop calls ------------------------------------------------------------------------------

    def begin_prefill(self, prompts: dict[int, list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Announce a model call on these prompts (by number), laid end to end.

        Returns the call's ids [1, T] and positions [1, T], and where each prompt's last token stands.
        """
        self._step, self._prefill, end = None, {}, 0
        for number, prompt in prompts.items():
            start, end = end, end + len(prompt)
            self._prefill[number] = Segment(start, start, ((start, end),))
            self.lengths[number] = len(prompt)
            width = stack_width(len(prompt))
            self.stacks.setdefault(width, _Stack(width)).prompts.append(number)
        ids = [token for prompt in prompts.values() for token in prompt]
        positions = [t for prompt in prompts.values() for t in range(len(prompt))]
        last = [segment.end - 1 for segment in self._prefill.values()]
        ids_T, positions_T, last_prompts = (torch.tensor(x, device=self.device) for x in (ids, positions, last))
        return ids_T[None], positions_T[None], last_prompts

    def begin_step(self, prompts: list[int], lengths: list[int]) -> Tensor:
        """Announce a model call on one new token per row; returns its positions, [N, 1].

        prompts: each slot's prompt. lengths: each slot's own tokens, the new one included.
        """
        slots_of: dict[int, list[int]] = {}
        for slot, prompt in enumerate(prompts):
            slots_of.setdefault(prompt, []).append(slot)
        parts: list[_Part] = []
        gather: list[int] = []
        back = [0] * len(prompts)
        for stack in self.stacks.values():
            most = max((len(slots_of.get(p, ())) for p in stack.prompts), default=0)
            if not most:
                continue
            table = [slots_of.get(p, [])[:most] for p in stack.prompts]
            first = len(gather)
            for place, slots in enumerate(table):
                for number, slot in enumerate(slots):
                    back[slot] = first + place * most + number
                slots += [0] * (most - len(slots))  # rows that nobody reads
                gather += slots
            own = [[lengths[slot] for slot in slots] for slots in table]
            parts.append(_Part(stack, [self.lengths[p] for p in stack.prompts], own, first))
        in_order = gather == list(range(len(prompts)))
        self._step = _Step(
            lengths=lengths,
            lengths_N=torch.tensor(lengths, device=self.device),
            parts=parts,
            gather=None if in_order else torch.tensor(gather, device=self.device),
            back_N=None if in_order else torch.tensor(back, device=self.device),
        )
        positions = [self.lengths[p] + own - 1 for p, own in zip(prompts, lengths, strict=True)]
        return torch.tensor(positions, device=self.device)[:, None]

    def allocate(self, slots: int) -> None:
        """Make room for this many rows. Layers and their widths are known from the first prefill.

        Zeros, not empty memory: the unwritten end of a slot is masked by a number, which would not silence a NaN.
        """
        for layer, (keys, values) in self._one_stack().layers.items():
            shapes = ((slots, like.shape[1], self.own_tokens, like.shape[3]) for like in (keys, values))
            own = [like.new_zeros(shape) for like, shape in zip((keys, values), shapes, strict=True)]
            self.slots[layer] = (own[0], own[1])

    def move(self, source: int, target: int, own: int) -> None:
        """Copy the first `own` tokens of one slot to another."""
        for stores in self.slots.values():
            for store in stores:
                store[target, :, :own] = store[source, :, :own]

    def free(self, prompt: int) -> None:
        """Forget a prompt whose last row has ended; its place is the next prompt's."""
        self.stacks[stack_width(self.lengths.pop(prompt))].remove(prompt)

    def layers(self) -> int:
        """Layers whose attention has reached this cache."""
        return len(self._one_stack().layers)

    def token_bytes(self) -> int:
        """Bytes of keys and values per token, over all layers."""
        stack = self._one_stack()
        return stack.bytes // (stack.width * len(next(iter(stack.layers.values()))[0]))

    def _one_stack(self) -> _Stack:
        return next(stack for stack in self.stacks.values() if stack.prompts)

    # -- what attention calls --------------------------------------------------------------------------------------

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
        """Attention of one layer. query [rows, heads, t, D], key and value [rows, G, t, D] -> [rows, t, heads, D]."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings may leave a wider type
        if self._step is not None:
            with exact_cpu_products():
                return _attend_step(self, self._step, layer, query, key, value, scaling, sliding_window, softcap, s_aux)
        for number, segment in self._prefill.items():
            stack = self.stacks[stack_width(self.lengths[number])]
            new = (t[0, :, segment.start : segment.end] for t in (key, value))
            stack.write(layer, stack.prompts.index(number), *new)
        self.peak_prompt_bytes = max(self.peak_prompt_bytes, sum(stack.bytes for stack in self.stacks.values()))
        segments = tuple(self._prefill.values())
        out = over_layout(query, key, value, segments, scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
        return out.transpose(1, 2)


def _attend_step(
    cache: GroupCache,
    step: _Step,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Own slot and prompt, merged: [N, heads, 1, D] -> [N, 1, heads, D]."""
    rows, heads, _, width = query.shape
    groups = key.shape[1]
    own_keys, own_values = _written(cache.slots[layer], step, key, value)
    query_NGRD = query.reshape(rows, groups, heads // groups, width)
    own, own_lse = _products(query_NGRD, own_keys, own_values, scaling, softcap, _own_mask(step, window, value))
    prompt, prompt_lse = _prompt_part(step, layer, query_NGRD, scaling, softcap, window)
    share = torch.sigmoid(own_lse - prompt_lse).to(value.dtype)[..., None]  # of the own part in the whole softmax
    out = torch.lerp(prompt, own, share)
    if sinks is not None:
        rest = torch.logaddexp(own_lse, prompt_lse) - sinks.to(own_lse).view(1, groups, heads // groups)
        out = out * torch.sigmoid(rest).to(value.dtype)[..., None]
    return out.reshape(rows, 1, heads, value.shape[-1])


def _written(stores: tuple[Tensor, Tensor], step: _Step, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Store each row's new key and value; returns the slots in use up to the longest row, [N, G, S, D]."""
    rows, longest = key.shape[0], max(step.lengths)
    for store, new in zip(stores, (key, value), strict=True):
        if min(step.lengths) == longest:  # no refill yet: one plain copy
            store[:rows, :, longest - 1] = new[:, :, 0]
        else:
            store[torch.arange(rows, device=new.device), :, step.lengths_N - 1] = new[:, :, 0]
    return stores[0][:rows, :, :longest], stores[1][:rows, :, :longest]


def _own_mask(step: _Step, window: int | None, like: Tensor) -> Tensor | None:
    """Additive mask of each row on its own slot, [N, 1, 1, S]; None where every row sees all of the longest row."""
    longest = max(step.lengths)
    if min(step.lengths) == longest and (window is None or longest <= window):
        return None
    if window not in step.own_masks:
        back_NS = step.lengths_N[:, None] - 1 - torch.arange(longest, device=like.device)  # positions back
        seen_NS = (back_NS >= 0) & (back_NS < (longest if window is None else window))
        step.own_masks[window] = _additive(seen_NS, like.dtype)[:, None, None, :]
    return step.own_masks[window]


def _prompt_part(
    step: _Step, layer: int, query_NGRD: Tensor, scaling: float, softcap: float | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Every row's attention to its prompt: outputs [N, G, R, D] and log-sum-exps [N, G, R], one call per stack.

    A stack out of every row's window leaves a log-sum-exp so low that the merge gives it no weight.
    """
    _, groups, heads, width = query_NGRD.shape
    gathered = query_NGRD if step.gather is None else query_NGRD[step.gather]
    outs, lses = [], []
    for part in step.parts:
        keys, values = part.stack.layers[layer]
        prompts, each = len(part.own), part.rows_each
        block = gathered[part.first : part.first + prompts * each]
        block = block.view(prompts, each, groups, heads, width).transpose(1, 2).reshape(prompts, groups, -1, width)
        begin, end, mask = _prompt_window(part, window, heads, values)
        if begin < end:
            attend = _fused if each * heads >= FLASH_QUERIES else _products
            keys, values = keys[:prompts, :, begin:end], values[:prompts, :, begin:end]
            out, lse = attend(block, keys, values, scaling, softcap, mask)
        else:
            out = values.new_zeros(prompts, groups, each * heads, values.shape[3])
            lse = out.new_full(out.shape[:3], _out_of_reach(out.dtype))
        outs.append(out.view(prompts, groups, each, heads, -1).transpose(1, 2).flatten(0, 1))
        lses.append(lse.view(prompts, groups, each, heads).transpose(1, 2).flatten(0, 1))
    out_NGRD, lse_NGR = (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))
    return (out_NGRD, lse_NGR) if step.back_N is None else (out_NGRD[step.back_N], lse_NGR[step.back_N])


def _prompt_window(part: _Part, window: int | None, heads: int, like: Tensor) -> tuple[int, int, Tensor | None]:
    """Which prompt tokens the rows of a part may look at: a slice begin:end, and an additive mask [B, 1, M·R, P] in it.

    The new token of a row with `own` tokens stands at position length + own - 1 and sees keys fewer than `window`
    positions back, so from length + own - window on. The mask is None where all rows see the whole slice.
    """
    if (window, heads) in part.masks:
        return part.masks[window, heads]
    begins = [
        [0 if window is None else max(0, length + own - window) for own in owns]
        for length, owns in zip(part.lengths, part.own, strict=True)
    ]
    begin, end = min(map(min, begins)), max(part.lengths)
    mask = None
    if begin < end and (min(part.lengths) < end or max(map(max, begins)) > begin):
        key_P = torch.arange(begin, end, device=like.device)
        begin_BM1 = torch.tensor(begins, device=like.device)[:, :, None]
        length_B11 = torch.tensor(part.lengths, device=like.device)[:, None, None]
        mask_BMP = _additive((key_P >= begin_BM1) & (key_P < length_B11), like.dtype)
        mask = mask_BMP.repeat_interleave(heads, 1)[:, None]
    part.masks[window, heads] = (begin, end, mask)
    return begin, end, mask


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, _out_of_reach(dtype))


def _out_of_reach(dtype: torch.dtype) -> float:
    """A score that no softmax gives weight to, yet finite, so that a row that sees nothing yields no NaN."""
    return torch.finfo(dtype).min / 2


def _fused(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_products` by the CPU flash kernel where it applies: faster for several queries on the same keys."""
    if query.device.type != "cpu" or softcap is not None or keys.shape[-1] != values.shape[-1]:
        return _products(query, keys, values, scaling, softcap, mask)
    wide = None if mask is None else mask.expand(*query.shape[:3], keys.shape[2])
    return _flash(query, keys, values, 0.0, False, attn_mask=wide, scale=scaling)


def _products(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention over some of the keys, and the log-sum-exp of its scores for the merge.

    query [B, G, Q, D], keys and values [B, G, S, D] -> [B, G, Q, D], [B, G, Q]. Plain batched products: twice as fast
    as the kernel for one query on its own few keys.
    """
    scores = (query * scaling) @ keys.transpose(-1, -2)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    logp = scores.log_softmax(-1)
    lse = scores.amax(-1) - logp.amax(-1)  # three passes fewer than logsumexp, and as exact
    return logp.exp_().to(values.dtype) @ values, lse
