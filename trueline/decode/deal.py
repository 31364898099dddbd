"""DeAL: decoding as heuristic search, log-probability and what the response will be worth.

    key(y_1:t) = sum_s log p(y_s | y_<s) + weight h(x, y_1:t+l),   y_t+1:t+l greedily written on by the proposal
    every beam is extended by its k likeliest tokens; the `beams` largest keys stay

arXiv 2402.06147 (the formula from memory of the paper; its code was not found). h is the request's reward: keywords, length, a pattern, reward
models, or a weighted sum of several. Beams that are over keep their key and their place and are never extended again; the search ends when
all beams are over. lookahead -1 writes to the end. weight is in nats per unit of reward: for a reward of spread s, 1 / s makes one spread worth one
nat. Hard constraints belong in a mask, not in a large weight.

One beam without lookahead is args at tau 0, and streams; weight 0 is beam search with carried beams. What is widely used under this name
(segments ranked by the reward alone) is segment_beam. k = 10 and 4 beams of lookahead 8 are choices of ours.
"""

from __future__ import annotations

import torch

from trueline.decode._beam import Beam, check, extended, keep_only
from trueline.decode._lookahead import check as check_lookahead
from trueline.decode._lookahead import futures, score_futures
from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Loop, Steps


@decoder(unit="sample", reward="prefix", width="beams k", arxiv="2402.06147", paper="DeAL: Decoding-time Alignment")
def deal(loop: Loop, *, beams: int = 4, k: int = 10, lookahead: int = 8, weight: float = 1.0) -> Steps:
    check("deal", beams, k)
    check_lookahead("deal", k=k, tau=0.0, lookahead=lookahead)
    running: list[Beam] = [(0.0, loop.line)]
    finished: list[tuple[float, Line]] = []
    while running:
        made, sums = yield from extended(loop, running, k)
        future = yield from futures(loop, made, lookahead, greedy=True)
        keys = sums + weight * torch.cat((yield from score_futures(loop, future, made)))
        ranked = [(float(key), line, float(total)) for key, line, total in zip(keys, made, sums, strict=True)]
        ranked += [(key, line, 0.0) for key, line in finished]
        ranked = sorted(ranked, key=lambda entry: -entry[0])[:beams]
        finished = [(key, line) for key, line, _ in ranked if line.finish]
        ahead = [(total, line) for _, line, total in ranked if not line.finish]
        if beams == 1 and ahead:
            loop.commit(ahead[0][1])
        else:
            keep_only(loop, made, running, [line for _, line, _ in ranked])
        running = ahead
    loop.details["finished"] = [{"key": key, "tokens": len(line.new)} for key, line in finished]
    loop.commit(finished[0][1])
