"""Classifier-free guidance: push away from what the model says without the prompt, or after a negative one.

    h = h(. | negative) + scale (h(. | prompt) - h(. | negative))

arXiv 2306.17806. scale 1 is the policy, above 1 follows the prompt more closely; 1.5 is the paper's common setting. negative: text of the
other prompt; left out, the prompt's last token alone stands for no prompt, as in `transformers`. The same mixer as DeRa, with one model
after two prompts.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.proposal import Mix, Term
from trueline.decoding.request import Request
from trueline.errors import TruelineError


@decoder(unit="token", hook="mix", arxiv="2306.17806", paper="Stay on topic with Classifier-Free Guidance")
def guidance(engine: Any, request: Request, *, scale: float = 1.5, negative: str = "") -> Mix:
    if negative and engine.tokenizer is None:
        raise TruelineError("guidance.negative is a text, and the engine has no tokenizer to read it with.")
    ids = list(engine.tokenizer(negative)["input_ids"]) if negative else request.prompt_ids[-1:]
    if not ids:
        raise TruelineError(f"guidance.negative {negative!r} has no token; expected at least one.")
    return Mix((Term("policy", scale), Term("policy", 1.0 - scale, tuple(ids))))
