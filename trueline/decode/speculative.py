"""Reward-shifted speculative sampling: a small aligned model drafts, the policy verifies, and the law is the shifted one exactly.

    target   p*(v | s) proportional to p_policy(v | s) [q(v | s) / q_0(v | s)]^weight
    draft    v ~ q;  accept with probability min(1, p*(v) / q(v));  at the first rejection draw from (p* - q)_+ normalised
    all accepted: one more token from p*

q is the second model `draft`, q_0 what it was before its alignment (`draft_reference`). After arXiv 2508.15044, which shifts the draft by alignment so
that speculative sampling recovers the tilted law without a reward model: log q / q_0 is the draft's implicit reward. The paper leaves out p*'s
normaliser in its test; it is computed here, so that every token follows p* whatever the draft is (the ratio test and residual of arXiv
2211.17192). Its repository adds log-probs in place of the residual and drops the bonus token; not reproduced. weight 0, or no
draft_reference, is plain speculative sampling from the policy's law.

The request's law (temperature, truncation) is applied to p* and to q. `draft` tokens are drafted at a time (4 in the repository). The tokens of a
round are read by the policy in one call, and what was rejected is taken back from every cache. behaviour_logp is log p* of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Loop, Steps
from trueline.decoding.proposal import Position
from trueline.errors import TruelineError


@decoder(
    unit="segment", models="draft draft_reference?", arxiv="2508.15044", paper="Reward-Shifted Speculative Sampling"
)
def speculative(loop: Loop, *, draft: int = 4, weight: float = 1.0) -> Steps:
    if draft < 1:
        raise TruelineError(f"speculative.draft is {draft}; expected a whole number from 1 up.")
    shifted = weight if "draft_reference" in loop.models else 0.0
    while not loop.over:
        (line,) = loop.fork()
        start = len(line.new)
        drafted: list[Position] = []
        while line.finish is None and len(line.new) - start < draft:
            drafted += yield from loop.positions([line], loop.alone("draft"))
            token, logp = loop.draw(drafted[-1])
            loop.append(line, token, logp)
        targets = yield from _targets(loop, line, start, drafted, shifted)
        for i, token in enumerate(line.new[start:]):
            p_V, q_V = targets[i].law_V, drafted[i].law_V[: len(targets[i].law_V)]
            if not loop.accept(float((p_V[token] - q_V[token]).exp().clamp(max=1.0)), line):
                line.crop(start + i)
                loop.counters.retries += 1
                loop.counters.discarded_tokens += len(drafted) - i
                residual_V = (p_V.exp() - q_V.exp()).clamp(min=0.0)
                pick, _ = loop.softmax(residual_V.log(), 1.0, line)
                loop.append(line, pick, float(p_V[pick]), float(targets[i].base_V[pick]))
                break
            line.law_logp[start + i], line.base_logp[start + i] = float(p_V[token]), float(targets[i].base_V[token])
        else:
            if line.finish is None:
                token, logp = loop.draw(targets[-1])
                loop.append(line, token, logp, float(targets[-1].base_V[token]))
        loop.commit(line, exact=True)


def _targets(loop: Loop, line: Line, start: int, drafted: list[Position], weight: float) -> Asking[list[Position]]:
    """p* at every place from the first drafted token to the place after the last one."""
    places = yield from loop.trail(line, start)
    if not weight:
        return places
    before = yield from loop.trail(line, start, loop.alone("draft_reference"))
    after: list[Tensor] = [here.raw_V for here in drafted]
    if line.finish is None:
        after.append((yield from loop.positions([line], loop.alone("draft")))[0].raw_V)
    found = []
    for i, (place, q, q0) in enumerate(zip(places, after, before, strict=False)):
        known = min(len(place.mixed_V), len(q), len(q0.raw_V))
        shift_V = weight * (q[:known].to(torch.float32) - q0.raw_V[:known].to(torch.float32))
        found.append(loop.proposal.place(line, place.raw_V, place.mixed_V[:known] + shift_V, start + i))
    return found
