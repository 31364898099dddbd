"""DiffPO: a second model rewrites the answer block by block, all positions of a block at once (arXiv 2503.04240).

    y_i <- argmax p(. | x, y_<i) for every i of the block in one pass, from the policy's answer on, until nothing changes

This is greedy Jacobi decoding. Its fixed point is what the rewriter ('rewriter', which reads the policy's prompt and shares its tokenizer) would have written
token by token, whatever the answer was: every pass settles at least one more token, so at most block + 1 passes are needed, the last
of which only sees that nothing changes. The answer matters for how few they are, and where `passes` ends the loop early. block 256 is
the released setting. An end token inside a block ends the response there; a block longer than the answer is filled with end tokens. What is settled
stays in the cache and is not computed again. Training a rewriter that needs few passes (a consistency loss over ranked answers) is not
part of this file. details: passes of each block, and tokens per pass (the speed-up over token by token).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Loop, Steps
from trueline.decoding.watermark import GumbelMark
from trueline.errors import TruelineError


@decoder(
    unit="rewrite",
    hook="rewrite",
    stage="post",
    models="rewriter",
    arxiv="2503.04240",
    paper="DiffPO: Diffusion-styled Preference Optimization",
)
def diffpo(loop: Loop, draft: Line, *, block: int = 256, passes: int = 0) -> Steps:
    """block: positions rewritten at once. passes: most passes over a block; 0: until nothing changes."""
    if block < 1 or passes < 0:
        raise TruelineError(
            f"diffpo has block={block} and passes={passes}; expected a block from 1 and passes from 0 up."
        )
    if any(isinstance(mark, GumbelMark) for mark in loop.proposal.marks):
        raise TruelineError(
            "gumbel marks draws, and diffpo takes the likeliest tokens. Take kgw, which marks the logits."
        )
    ends = loop.request.eos_ids
    line = loop.open(loop.prompt_ids, loop.limit + 1, "rewriter")
    loop.details["draft"] = loop.text_of(draft)
    counts: list[int] = []
    done: list[int] = []
    while len(done) < loop.limit and not (done and done[-1] in ends):
        start, size = len(done), min(block, loop.limit - len(done))
        guess = list(draft.new[start : start + size])
        guess += [ends[0] if ends else guess[-1] if guess else done[-1]] * (size - len(guess))
        fixed, count = yield from _settle(loop, line, start, guess, passes)
        counts.append(count)
        done += fixed
    loop.details |= {"passes": counts, "tokens_per_pass": len(done) / sum(counts), "changed": done != draft.new}
    loop.close([line])
    if done != draft.new:
        yield from loop.replace(done)


def _settle(loop: Loop, line: Line, start: int, guess: list[int], passes: int) -> Asking[tuple[list[int], int]]:
    """The block at its fixed point, up to its first end token, and the passes that took."""
    proposal, ends = loop.alone("rewriter"), loop.request.eos_ids
    proposal.marks = list(loop.proposal.marks)
    settled = count = 0
    while True:
        _put(line, start, guess)
        places = yield from loop.trail(line, start + settled, proposal)
        said = guess[:settled] + [int(here.logits_V.argmax()) for here in places[: len(guess) - settled]]
        count += 1
        size = _until_end(said, ends)
        if said[:size] == guess[:size] or count == passes:
            _put(line, start, said[:size])
            return said[:size], count
        same = next(i for i, (a, b) in enumerate(zip(said, guess, strict=True)) if a != b)
        settled, guess = same + 1, said  # the first that changed was computed after settled tokens only


def _put(line: Line, start: int, ids: Sequence[int]) -> None:
    """Let the line go on with these tokens; what it has of them already stays, and so does its cache."""
    same = 0
    for old, new in zip(line.new[start:], ids, strict=False):
        if old != new:
            break
        same += 1
    line.crop(start + same)
    for token in ids[same:]:
        line.append(token, math.nan, math.nan)


def _until_end(ids: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to the first end token, it included."""
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
