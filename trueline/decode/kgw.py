"""KGW watermark: pseudo-random green tokens are made likelier, so that text can be recognised later (arXiv 2301.10226).

    logits[v] += delta for the gamma V tokens v that a hash of the last `context` tokens calls green

gamma 0.25, delta 2.0, one context token and the key are the defaults of `transformers`, whose detector reads our text at context 1.
delta is added before temperature and truncation, as in the authors' code: at temperature T the odds of green rise by
exp(delta / T), and the mark also works at temperature 0. Detector: `trueline.decoding.watermark` (`watermark("kgw", V, options).detect(ids)`).
It needs the same gamma, context and key and the model's vocabulary V; the prompt's last tokens seed the first draws.
It composes with any search over the marked proposal (`kgw+best_of_n`, `kgw+args`), and mixing comes before it.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.request import Request
from trueline.decoding.watermark import GreenList


@decoder(unit="token", hook="mark", arxiv="2301.10226", paper="A Watermark for Large Language Models")
def kgw(
    engine: Any, request: Request, *, gamma: float = 0.25, delta: float = 2.0, context: int = 1, key: int = 15485863
) -> GreenList:
    """gamma: share of green tokens. delta: what their logits gain, nats. context: tokens that seed the list. key: a secret number."""
    return GreenList(engine.policy.model.vocabulary, gamma, delta, context, key)
