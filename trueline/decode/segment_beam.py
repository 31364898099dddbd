"""Segment beam search: draw continuations of a fixed length, keep those with the largest rewards, go on from them.

    n continuations of `segment` tokens from the running beams, in turn; rank by r(x, y_1:t); keep `beams`

This is what is often called DeAL or blockwise best-of-n (arXiv 2310.17022, section on blockwise decoding; TreeBoN, arXiv 2410.16033): the reward
alone decides. Lines that are over keep their place with their reward. One beam commits every segment, and with a segment as long as the response it
is best_of_n. n 5, beams 3, segment 10 are a well-known re-implementation's.
"""

from __future__ import annotations

from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError


@decoder(unit="segment", reward="prefix", width="n", arxiv="2410.16033", paper="Segment beam search by reward")
def segment_beam(loop: Loop, *, n: int = 5, beams: int = 3, segment: int = 10) -> Steps:
    if not 1 <= beams <= n or segment < 1:
        raise TruelineError(
            f"segment_beam has n={n}, beams={beams}, segment={segment}; expected 1 <= beams <= n and segment from 1 up."
        )
    running: list[Line] = [loop.line]
    finished: list[tuple[float, Line]] = []
    while running:
        lines = [loop.fork(1, of=running[i % len(running)])[0] for i in range(n)]
        yield from loop.grow(lines, segment)
        rewards = (yield from loop.score(lines)).tolist()
        ranked = sorted([*zip(rewards, lines, strict=True), *finished], key=lambda pair: -pair[0])[:beams]
        kept = [line for _, line in ranked]
        finished = [(reward, line) for reward, line in ranked if line.finish]
        stays = {id(loop.line), *map(id, kept)}
        loop.close([line for line in [*lines, *running] if id(line) not in stays])
        running = [line for line in kept if not line.finish]
        if beams == 1 and running:
            loop.commit(running[0], ranked[0][0])
            running = [loop.line]
    loop.commit(finished[0][1], finished[0][0])
