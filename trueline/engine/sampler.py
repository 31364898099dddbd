"""Sampling: k responses to each prompt, with the log-probs they were drawn at.

Two routes to the same law and the same random streams:

* shared (policies in "shared" mode): one prefill per prompt, its keys and values stored once for all its rows,
  responses in preallocated slots, and the slot of a finished row handed to the next pending one (`decode_cache.py`).
* own cache (every other policy: recurrent, hybrid, or failed by the probe): the model's own cache on rows whose
  prompts have equal lengths, so that nothing is padded; without any cache where that one disagrees with plain calls.

`decoders.py` holds what the routes stand on and the trial that decides which one a model may take.

Policy and reference can speak together: `reference_share` draws from their geometric mixture (`chorus.py`), by the same
loops.

What is recorded (`draw.py` has the law): `behaviour_logp` under exactly the law of the draw, `full_logp` at the same
temperature without truncation. At temperature 1 without truncation both equal the scorer's log-prob. At temperature 0
the most likely token is taken and both are 0.0. The token that ends a response is part of it and scored.

Every (prompt, sample) has a random stream of its own, so a response depends neither on which rows it was computed
beside nor on `max_rows`, up to the rounding of matrix products: a log-prob moves by about 1e-6 with the number of
rows, and a token can differ only where its uniform number falls that close to an edge of the cumulative law.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.engine import failpoints
from trueline.engine.chorus import PlainChorus, SharedChorus
from trueline.engine.decoders import (
    OwnCache,
    Recompute,
    group_cache_agrees,
    own_cache_agrees,
    positions_of,
    turning_point,
    vocabulary_of,
)
from trueline.engine.draw import Law
from trueline.engine.parallel import world
from trueline.engine.policy import Policy, Voice
from trueline.engine.sharding import gathered
from trueline.errors import TruelineError
from trueline.randomness import derive

PREFILL_TOKENS = 2048  # prompts laid end to end in one call: matrix products gain nothing from more
ROWS_CAP = 256  # products run at full rate from about 64 rows; more only costs memory
OWN_CACHE_ROWS = 64
MEMORY_SHARE = 1 / 8  # of the machine's (or the GPU's) memory; of the total, so that it is the same in every run


@dataclass
class Sample:
    """One response. ids: tokens after the prompt, the one that ended it included. finish: "stop" | "length"."""

    ids: list[int] = field(default_factory=list)
    behaviour_logp: list[float] = field(default_factory=list)
    full_logp: list[float] = field(default_factory=list)
    finish: str = "length"


def sample(
    policy: Policy,
    prompts: list[list[int]],
    samples: int,
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    eos_ids: Sequence[int],
    seed: int,
    max_rows: int | None = None,
    reference_share: float = 0.0,
    streams: Sequence[int] | None = None,
) -> list[list[Sample]]:
    """Draw `samples` responses to every prompt; result[i][j] is sample j of prompt i.

    max_new_tokens: limit of a response, its end token included; one number, or one a prompt. eos_ids: any of these ends
    a response. seed: names the random streams together with i and j; the global generator is not touched. max_rows:
    rows computed at once; default: what fits in an eighth of the memory, at most 256.
    reference_share: 0 draws from the policy, 1 from its reference, and between them a token's logits are (1 - share) of
    the policy's and share of the reference's; the recorded log-probs are those of the law that was drawn from. streams:
    names of the prompts' random streams in place of i. Over several processes each draws the responses to some of the
    prompts, and all get all. Runs without gradients and with dropout off, and leaves the model as it found it. Raises
    TruelineError for input that cannot be sampled and for logits that are not finite.
    """
    law = Law(temperature, top_p, top_k)
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(policy.model, prompts, samples, limits, eos_ids, max_rows)
    draws = _Draws(law, frozenset(eos_ids), max(limits, default=0))
    own = world().shares([len(p) + limit for p, limit in zip(prompts, limits, strict=True)])[world().rank]
    names = range(len(prompts)) if streams is None else streams
    rows = [_Row(k, _uniforms(seed, names[i], j, limits[i])) for k, i in enumerate(own) for j in range(samples)]
    if rows or (prompts and world().sharded):  # a rank without rows still helps to gather sharded weights
        with gathered(policy), policy.speaking(reference_share) as voices:
            if rows:
                _fill(voices, [prompts[i] for i in own], rows, draws, max_rows)
    done = [result for found in world().gather([row.result for row in rows]) for result in found]
    return [done[i * samples : (i + 1) * samples] for i in range(len(prompts))]


def _fill(voices: list[Voice], prompts: list[list[int]], rows: list[_Row], draws: _Draws, max_rows: int | None) -> None:
    """Draw every row to its end, by the route that these models may take."""
    backbones = [voice.backbone for voice in voices]
    if all(b.mode == "shared" and group_cache_agrees(b.model) for b in backbones):
        _sample_shared(voices, prompts, rows, draws, max_rows)
        return
    with ExitStack() as stack:
        for backbone in dict.fromkeys(backbones):
            stack.enter_context(backbone.plain_attention())
        states = [OwnCache(b.model) if own_cache_agrees(b.model) else Recompute(b.model) for b in backbones]
        _sample_own_cache(PlainChorus(voices, states), prompts, rows, draws, max_rows or OWN_CACHE_ROWS)


# -- rows and draws ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    """A response in the making. uniforms: its random stream, one number for each token that it may have."""

    prompt: int
    uniforms: np.ndarray
    result: Sample = field(default_factory=Sample)


def _uniforms(seed: int, prompt: int, number: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(derive(seed, "row", prompt, number))).random(count)


@dataclass(frozen=True)
class _Draws:
    """The law and what ends a response. longest: the largest limit of any row, in tokens."""

    law: Law
    eos_ids: frozenset[int]
    longest: int

    def extend(self, rows: Sequence[_Row], logits_BV: Tensor) -> list[bool]:
        """Draw each row's next token; True where the row has ended."""
        uniforms = [float(row.uniforms[len(row.result.ids)]) for row in rows]
        drawn = self.law.draw(logits_BV, torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device))
        fields = (drawn.ids_B.double(), drawn.behaviour_B.double(), drawn.full_B.double())
        ended = []
        for row, (token, behaviour, full) in zip(rows, torch.stack(fields, 1).tolist(), strict=True):
            result = row.result
            result.ids.append(int(token))
            result.behaviour_logp.append(behaviour)
            result.full_logp.append(full)
            if result.ids[-1] in self.eos_ids:
                result.finish = "stop"
            ended.append(result.finish == "stop" or len(result.ids) == len(row.uniforms))
        return ended


# -- the shared route --------------------------------------------------------------------------------------------------


def _sample_shared(
    voices: list[Voice], prompts: list[list[int]], rows: list[_Row], draws: _Draws, max_rows: int | None
) -> None:
    """Fill slots with pending rows, step all of them, hand on the slots of those that end; until none is left."""
    cache = SharedChorus(voices, draws.longest - 1)
    first_logits = cache.prefill({0: prompts[0]})  # alone: the memory of a token is known only after it
    slots = min(len(rows), max_rows or _rows_that_fit(cache, prompts, rows, first_logits[0]))
    cache.allocate(slots)
    pending = deque(rows)
    active: list[_Row] = []  # active[slot]
    left = [0] * len(prompts)  # rows of each prompt that have not ended
    for row in rows:
        left[row.prompt] += 1

    def end(row: _Row) -> None:
        left[row.prompt] -= 1
        if not left[row.prompt]:
            cache.free(row.prompt)
            del first_logits[row.prompt]

    while pending or active:
        while pending and len(active) < slots:
            admitted = _admit(pending, slots - len(active), prompts, first_logits)
            new = {row.prompt: prompts[row.prompt] for row in admitted if row.prompt not in first_logits}
            first_logits |= cache.prefill(new)
            ended = draws.extend(admitted, torch.stack([first_logits[row.prompt] for row in admitted]))
            for row, is_over in zip(admitted, ended, strict=True):
                end(row) if is_over else active.append(row)
        if not active:
            continue
        failpoints.hit("sampling.middle")
        logits_NV = cache.step([row.prompt for row in active], [row.result.ids for row in active])
        ended = draws.extend(active, logits_NV)
        for slot in reversed(range(len(active))):  # from the last slot, so that what moves in has been looked at
            if ended[slot]:
                end(active[slot])
                last = active.pop()
                if slot < len(active):
                    cache.move(len(active), slot, len(last.result.ids) - 1)
                    active[slot] = last


def _admit(pending: deque[_Row], free: int, prompts: list[list[int]], known: dict[int, Tensor]) -> list[_Row]:
    """The next pending rows: at most `free`, and no more new prompt tokens than one prefill should take."""
    admitted: list[_Row] = []
    new: set[int] = set()
    tokens = 0
    while pending and len(admitted) < free:
        number = pending[0].prompt
        if number not in known and number not in new:
            tokens += len(prompts[number])
            if new and tokens > PREFILL_TOKENS:
                break
            new.add(number)
        admitted.append(pending.popleft())
    return admitted


def _rows_that_fit(cache: SharedChorus, prompts: list[list[int]], rows: list[_Row], logits_V: Tensor) -> int:
    """Rows whose slots, share of the prompts and logits take a fixed share of the machine's memory."""
    if logits_V.device.type == "cuda":
        memory = torch.cuda.get_device_properties(logits_V.device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    per_prompt = len(rows) // len(prompts)
    tokens = cache.own_tokens + math.ceil(max(map(len, prompts)) / per_prompt)
    row_bytes = tokens * cache.token_bytes() + 3 * 4 * len(logits_V)  # logits, their weights and one temporary
    return max(1, min(ROWS_CAP, int(memory * MEMORY_SHARE / row_bytes)))


# -- the model's own cache ---------------------------------------------------------------------------------------------


def _sample_own_cache(
    state: PlainChorus, prompts: list[list[int]], rows: list[_Row], draws: _Draws, max_rows: int
) -> None:
    """Rows of equally long prompts at a time: one prefill per prompt, then its state repeated for its rows."""
    by_length: dict[int, list[_Row]] = {}
    for row in rows:
        by_length.setdefault(len(prompts[row.prompt]), []).append(row)
    for alike in by_length.values():
        for start in range(0, len(alike), max_rows):
            active = alike[start : start + max_rows]
            numbers = list(dict.fromkeys(row.prompt for row in active))
            logits_PV = state.start(torch.tensor([prompts[n] for n in numbers], device=state.device))
            place = [numbers.index(row.prompt) for row in active]
            ended = draws.extend(active, logits_PV[place])
            place, active = _ongoing(place, ended), _ongoing(active, ended)
            while active:
                failpoints.hit("sampling.middle")
                if place != list(range(state.rows)):
                    state.select(torch.tensor(place, device=logits_PV.device))
                last = torch.tensor([row.result.ids[-1:] for row in active], device=logits_PV.device)
                ended = draws.extend(active, state.step(last))
                place, active = _ongoing(list(range(len(active))), ended), _ongoing(active, ended)


def _ongoing(items: list[Any], ended: list[bool]) -> list[Any]:
    return [item for item, is_over in zip(items, ended, strict=True) if not is_over]


# -- input -------------------------------------------------------------------------------------------------------------


def _check(
    model: nn.Module,
    prompts: list[list[int]],
    samples: int,
    limits: list[int],
    eos_ids: Sequence[int],
    max_rows: int | None,
) -> None:
    """Refuse what cannot be sampled, naming the value and the prompt."""
    if len(limits) != len(prompts):
        raise TruelineError(f"max_new_tokens has {len(limits)} limits for {len(prompts)} prompts; expected one each.")
    for name, value in (("samples", samples), *(("max_new_tokens", n) for n in limits), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise TruelineError(f"{name} is {value}; expected a whole number from 1 up.")
    vocabulary, positions = vocabulary_of(model), positions_of(model)
    for token in eos_ids:
        if not 0 <= token < vocabulary:
            raise TruelineError(f"End token {token} does not exist: the model has token ids 0 to {vocabulary - 1}.")
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise TruelineError(f"Prompt {number} is empty; sampling needs at least one token (a BOS token, say).")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise TruelineError(
                f"Prompt {number} has token id {wrong}, but the model has ids 0 to {vocabulary - 1}. "
                "Tokenizer and model do not belong together."
            )
        if positions is not None and len(prompt) + limit > positions:
            raise TruelineError(
                f"Prompt {number} has {len(prompt)} tokens and max_new_tokens is {limit}, together more than "
                f"the model's {positions} positions. Shorten the prompt or lower max_new_tokens."
            )
    turn = turning_point(model)
    if turn is not None and any(len(p) <= turn < len(p) + n for p, n in zip(prompts, limits, strict=True)):
        raise TruelineError(
            f"LongRoPE turns every position of a row by other angles once it passes {turn} tokens, so a response that "
            f"crosses {turn} would be sampled from another law than it is scored by. Keep prompt and max_new_tokens "
            "within it together, or every prompt beyond it."
        )
    if turn is not None and min(map(len, prompts), default=0) <= turn < max(map(len, prompts), default=0):
        raise TruelineError(
            f"Some prompts are longer than the {turn} tokens at which LongRoPE changes its angles and some are not; "
            "rows computed together would share one set of angles. Sample them in separate calls."
        )
