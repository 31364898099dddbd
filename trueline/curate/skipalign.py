"""SkipAlign: position ids with gaps, so that short demonstrations teach long distances (arXiv 2405.03939).

    p_0 = 0,   p_{i+1} = p_i + 1 + u_i,   u_i >= 0 whole, not 0 only where skips are allowed,   sum u <= N - L

`where` outer (recommended): skips only at the boundary of instruction and response, so that each stays in one piece; inner:
only inside them; all: anywhere. The names follow the paper as far as its abstract and summaries tell. The total is drawn
uniformly from 0..N - L and split over the allowed places by a uniform composition; `epoch` names another draw. `rate` of
the rows get skips (0.5 is ours), so that short behaviour is kept; the others keep 0..L - 1.

Tokens and loss mask are unchanged. A row gets `position_ids` (one a token of prompt and first response in --model's tokens,
template included) and `position_plan`: window, tokens of each block, and [place, gap] for each skip. With rotary
positions only differences count, so nothing is skipped before the first token. A model with learned absolute positions needs a
table of N rows; N beyond the rotary window still needs its base scaled. For training with Hugging Face models pass an all-ones
2-D attention mask: without a mask and a cache, `transformers` reads a jump in position_ids as the start of another packed
sequence, and the tail no longer sees the head. Generation must not reuse these ids. `trueline align` does not read them yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Made, Pool, curator
from trueline.curating.text import plain_prompt
from trueline.curating.writing import from_parent, row_of
from trueline.errors import TruelineError
from trueline.randomness import derive


@curator(kind="make", reads="demonstrations", model="needed", arxiv="2405.03939", paper="Long context alignment with short instructions and synthesised positions (SkipAlign)")  # fmt: skip
def skipalign(
    pool: Pool,
    *,
    window: int = 16384,
    where: Literal["outer", "inner", "all"] = "outer",
    rate: float = 0.5,
    epoch: int = 0,
) -> Iterator[Made]:
    if not 0 <= rate <= 1:
        raise TruelineError(f"skipalign.rate is {rate:g}; expected from 0 to 1.")
    start = 0
    for batch in pool.batches(64):
        numbered = [(start + i, g) for i, g in enumerate(batch)]
        blocks = dict(pool.workshop.token_blocks(numbered))
        for row, group in numbered:
            asked = plain_prompt(group.prompt)
            base = {**row_of(group), **from_parent(group)}
            if row not in blocks:
                yield Made(base, "longer than --max-length", prompt=asked)
                continue
            own = blocks[row]
            rng = np.random.Generator(np.random.PCG64(derive(pool.seed, "skipalign", epoch, group.prompt_key(), row)))
            if sum(own) > window:
                yield Made(base, "longer than the window", prompt=asked)
                continue
            gap_L = (
                gaps(own, window, where, rng) if rng.random() < rate else np.zeros(max(0, sum(own) - 1), dtype=np.int64)
            )
            skips = [[int(i) + 1, int(gap_L[i])] for i in np.flatnonzero(gap_L)]
            plan: dict[str, Any] = {"window": window, "blocks": own, "skips": skips}
            yield Made({**base, "position_ids": positions(gap_L).tolist(), "position_plan": plan}, prompt=asked)
        start += len(batch)


def gaps(blocks: Sequence[int], window: int, where: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """u [L - 1]: what is skipped between token i and i + 1. blocks: tokens of each; together at most `window`."""
    length = int(sum(blocks))
    if length > window:
        raise TruelineError(f"skipalign: {length} tokens do not fit the window of {window}.")
    if not length:
        return np.zeros(0, dtype=np.int64)
    between = np.zeros(length - 1, dtype=bool)
    ends = np.cumsum([b for b in blocks if b])[:-1] - 1
    between[ends] = True
    places = np.flatnonzero({"outer": between, "inner": ~between, "all": np.ones_like(between)}[where])
    gap_L = np.zeros(length - 1, dtype=np.int64)
    if len(places):
        gap_L[places] = composition(int(rng.integers(0, window - length + 1)), len(places), rng)
    return gap_L


def composition(total: int, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Whole numbers >= 0 with this sum, every such list equally likely (stars and bars)."""
    bars = (
        np.sort(rng.choice(total + parts - 1, parts - 1, replace=False)) if parts > 1 else np.zeros(0, dtype=np.int64)
    )
    return np.diff(np.concatenate([[-1], bars, [total + parts - 1]])).astype(np.int64) - 1


def positions(gap_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """p [L] from the gaps between neighbours."""
    return np.concatenate([[0], np.cumsum(1 + gap_L)]).astype(np.int64)
