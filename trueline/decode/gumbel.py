"""Gumbel watermark: pseudo-random numbers take the draw's place (Aaronson, 2022; randomised as in arXiv 2506.04462).

    token = argmax_v u_v^(1/p_v),   u_v in (0, 1) from a hash of the last `context` tokens,   p the law after temperature and truncation

Over keys the token's law is p itself (distortion-free), but one context always gives one token: every choice of a request comes out
the same. randomised=True draws in proportion to u_v^(1/p_v) instead, so that samples differ, at the price of a slight distortion;
alignment_resampling needs it. context 4 is that paper's setting; short contexts repeat, and so does the text behind them.
Detector: `watermark("gumbel", V, options).detect(ids)`; it does not need to know whether the draw was randomised.
It needs draws: a token search (args, beam_search) takes tokens by their scores and would leave no mark, so that is refused.
"""

from __future__ import annotations

from typing import Any

from trueline.catalogue import entry
from trueline.decode.contract import decoder
from trueline.decoding.request import Request
from trueline.decoding.watermark import GumbelMark
from trueline.errors import TruelineError


@decoder(unit="token", hook="mark", arxiv="2506.04462", paper="Watermarking Degrades Alignment in Language Models")
def gumbel(
    engine: Any, request: Request, *, context: int = 4, key: int = 15485863, randomised: bool = False
) -> GumbelMark:
    """context: tokens that seed the numbers. key: a secret number. randomised: samples differ, slightly distorted."""
    if request.law.temperature == 0:
        raise TruelineError(
            "gumbel marks a draw, and at temperature 0 there is none. Raise the temperature or take kgw."
        )
    for name in request.method.split("+"):
        facts = entry("decode", name.strip()).declared
        if facts.get("hook", "loop") == "loop" and facts.get("unit") == "token" and name.strip() != "plain":
            raise TruelineError(
                f"gumbel marks draws, and {name.strip()} chooses tokens by score. Take kgw, which marks the logits."
            )
    return GumbelMark(engine.policy.model.vocabulary, context, key, randomised)
