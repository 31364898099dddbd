"""How far token alignment is from conditioning on the text, computed exactly where that can be done.

A text s can be written by many token sequences (its covers). Conditioning on s weighs every one by its probability,

    P(next bytes | text starts with s) = sum over token sequences that write s and then those bytes, normalised once at the end,

while masking renormalises at every token over what is allowed there, whatever the chance that the rest of s gets written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from trueline.decoding.bytetrie import ByteTrie, back_off
from trueline.errors import TruelineError

NextLogp = Callable[[Sequence[int]], NDArray[np.float64]]  # ids so far -> log-probs of the next token [V]
Ahead = tuple[bytes, bool]  # bytes after the text, and whether the response ended before there were enough of them
MOST = 200_000  # token sequences looked at


def next_bytes(
    logp: NextLogp,
    trie: ByteTrie,
    kept: Sequence[int],
    text: bytes,
    horizon: int,
    *,
    ends: Collection[int] = (),
    local: bool = False,
) -> dict[Ahead, float]:
    """The law of the `horizon` bytes after `text`, which is to be written after the tokens `kept`.

    local: by token alignment's mask; otherwise by conditioning on the text. ends: ids that end a response. Every other token must
    write something. Raises TruelineError beyond MOST token sequences.
    """
    found: dict[Ahead, float] = {}
    seen = 0
    stack: list[tuple[list[int], bytes, float]] = [([], b"", 0.0)]
    while stack:
        ids, written, weight = stack.pop()
        seen += 1
        if seen > MOST:
            raise TruelineError(
                f"More than {MOST} token sequences write {text!r} and {horizon} bytes; shorten one of them."
            )
        if len(written) >= len(text) + horizon:
            ahead = (written[len(text) : len(text) + horizon], False)
            found[ahead] = found.get(ahead, 0.0) + float(np.exp(weight))
            continue
        left = text[len(written) :]
        law = np.asarray(logp([*kept, *ids]), dtype=np.float64)
        allowed = trie.allowed(left)
        if allowed is not None and local:
            law = law - np.logaddexp.reduce(law[list(allowed)])
        for token in range(len(law)) if allowed is None else allowed:
            if not np.isfinite(law[token]):
                continue
            if token in ends:
                ahead = (written[len(text) :], True)
                found[ahead] = found.get(ahead, 0.0) + float(np.exp(weight + law[token]))
            elif piece := trie.table[token]:
                stack.append(([*ids, token], written + piece, weight + float(law[token])))
    total = sum(found.values())
    if not total > 0:
        raise TruelineError(f"The model gives {text!r} no probability after these tokens.")
    return {ahead: p / total for ahead, p in found.items()}


def distance_to_exact(
    logp: NextLogp,
    trie: ByteTrie,
    ids: Sequence[int],
    backtracks: Sequence[int],
    horizon: int,
    *,
    ends: Collection[int] = (),
) -> dict[int, float]:
    """Total variation between token alignment and conditioning on the text, per number of tokens taken back.

    ids: the prompt, whose first token is context (a BOS) and the rest its text. No order is to be expected: taking back more tokens
    may bring the law nearer or not.
    """
    exact = next_bytes(logp, trie, ids[:1], trie.write(ids[1:]), horizon, ends=ends)
    gaps = {}
    for backtrack in backtracks:
        kept, text = back_off(trie, ids, backtrack)
        law = next_bytes(logp, trie, kept, text, horizon, ends=ends, local=True)
        gaps[backtrack] = 0.5 * sum(abs(exact.get(a, 0.0) - law.get(a, 0.0)) for a in {*exact, *law})
    return gaps
