"""Beam search: the likeliest response among `beams` that are followed at once.

    key(y_1:t) = sum_s log p(y_s | y_<s) / t^length_exponent  of what is finished; running beams are ranked by the sum

Of all one-token extensions, those among the first `beams` that are over join the finished (at most `beams` are kept); the first `beams` of the others run on. It
ends when as many have finished as there are beams and the best running sum is not above the worst of them, or nothing runs. That is
`transformers`' search with early_stopping=False, whose length exponent is 1.0; here it is 0, plain probability. With an exponent above 0 a running
beam is taken at its present length, as there. One beam is greedy decoding.
"""

from __future__ import annotations

from trueline.decode._beam import Beam, check, extended, keep_only
from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Loop, Steps
from trueline.errors import TruelineError


@decoder(unit="sample", width="beams", paper="Beam search")
def beam_search(loop: Loop, *, beams: int = 4, length_exponent: float = 0.0) -> Steps:
    check("beam_search", beams, 0)
    if length_exponent < 0:
        raise TruelineError(f"beam_search.length_exponent is {length_exponent:g}; expected 0 or more.")
    running: list[Beam] = [(0.0, loop.line)]
    finished: list[tuple[float, Line]] = []
    while running:
        made, sums = yield from extended(loop, running, 2 * beams)
        order = sums.argsort(descending=True, stable=True).tolist()
        keys = [
            (float(sums[i]) / len(made[i].new) ** length_exponent, made[i]) for i in order[:beams] if made[i].finish
        ]
        finished = sorted([*finished, *keys], key=lambda pair: -pair[0])[:beams]
        ahead = [(float(sums[i]), made[i]) for i in order if not made[i].finish][:beams]
        if ahead and len(finished) == beams:
            best = ahead[0][0] / len(ahead[0][1].new) ** length_exponent
            ahead = ahead if best > finished[-1][0] else []
        keep_only(loop, made, running, [line for _, line in [*ahead, *finished]])
        running = ahead
    loop.details["finished"] = [{"key": key, "tokens": len(line.new)} for key, line in finished]
    loop.commit(finished[0][1])
