"""CARDS: rejection sampling of segments that end where the model becomes uncertain.

    r_0 = (1 - alpha) r(x) + alpha r*,     tau(t) = min(r*, r_0 + t (r* - r_0) / T)
    repeat: draw a segment until it has at least `shortest` tokens and the next token's entropy reaches `uncertain` nats (that token is
            not drawn), or `longest`; R = r(x, what is committed + segment); accept it with probability min(1, exp((R - tau(t)) / beta)),
            t = new tokens with the segment; after `retries` rejections commit the best of all that were drawn

arXiv 2406.16306. Law of one segment without the cap: pi0(seg) min(1, exp((R - tau) / beta)) / a. Defaults of its repository: alpha 0.5, beta 0.7,
entropy 3.0 nats, segments of 4 to 64 tokens, 20 retries; its sampling (top-k 40, temperature 0.7 or 0.8) is the request's law here and not
beta, with which the repository shares one number. hard: accept exactly where R >= tau. Entropy is of the untempered, untruncated law.

r* (`target`) belongs to a reward model (8.5, -0.5, 0.2 for its three) and has no portable value: `quantile` above 0 sets it to that
quantile of the rewards of `samples` plain responses to this prompt, drawn first. uncertain = 0 and shortest = 1 reject token by token;
uncertain = inf and longest >= T is item_rejection. Where the prompt's own reward cannot be had (a reward of finished text), this method
is refused as every prefix method is.
"""

from __future__ import annotations

import numpy as np

from trueline.decode._acceptance import accepted, check
from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Loop, Steps
from trueline.errors import TruelineError


@decoder(unit="segment", reward="prefix", arxiv="2406.16306", paper="Cascade Reward Sampling")
def cards(
    loop: Loop,
    *,
    target: float = 0.0,
    quantile: float = 0.0,
    samples: int = 8,
    alpha: float = 0.5,
    beta: float = 0.7,
    uncertain: float = 3.0,
    shortest: int = 4,
    longest: int = 64,
    retries: int = 20,
    hard: bool = False,
) -> Steps:
    check("cards", beta, retries)
    if not (0 <= quantile < 1 and 0 <= alpha <= 1 and 1 <= shortest <= longest and uncertain >= 0 and samples >= 2):
        raise TruelineError(
            f"cards has quantile={quantile:g}, alpha={alpha:g}, uncertain={uncertain:g}, shortest={shortest}, longest={longest}, "
            f"samples={samples}; expected 0 <= quantile < 1, 0 <= alpha <= 1, uncertain >= 0, 1 <= shortest <= longest, samples >= 2."
        )
    if quantile:
        target = float(np.quantile((yield from _plain_rewards(loop, samples)), quantile))
    start = float((yield from loop.score([loop.line]))[0])
    start = (1 - alpha) * start + alpha * target
    loop.details |= {"target": target, "start": start, "segments": []}

    def threshold(line: Line) -> float:
        return min(target, start + len(line.new) * (target - start) / loop.limit)

    def segment(line: Line) -> Asking[None]:
        first = len(line.new)
        yield from loop.grow(
            [line], longest, until=lambda line, h: len(line.new) - first >= shortest and h >= uncertain
        )

    while not loop.over:
        line, reward, kl = yield from accepted(loop, segment, threshold, beta=beta, retries=retries, hard=hard)
        loop.details["segments"].append(
            {"tokens": len(line.new) - len(loop.line.new), "reward": reward, "threshold": threshold(line)}
        )
        loop.commit(line, reward, kl=(kl, "acceptance"))


def _plain_rewards(loop: Loop, samples: int) -> Asking[list[float]]:
    lines = loop.fork(samples)
    yield from loop.grow(lines)
    rewards = yield from loop.score(lines)
    loop.close(lines)
    return [value for value in rewards.tolist() if np.isfinite(value)]
