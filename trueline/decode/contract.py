"""Decoding methods: what a file of this family declares, and which of seven shapes it has.

A method is one short file with one decorated function. What it does is its `hook`:

    loop      def name(loop, *, options) -> generator        a search: the loop of spec A.1 (args, best_of_n, cards, ...)
    mix       def name(engine, request, *, options) -> Mix    logits of several models -> logits (dera, ...)
    mark      def name(engine, request, *, options) -> Shaper  per-row change of the proposal (watermarks)
    mask      def name(engine, request, *, options) -> Allowed which tokens may follow (token alignment, grammars)
    gate      def name(engine, request, *, options) -> Gate   where a token search is worth its cost (entropy)
    prompt    def name(engine, request, *, options) -> Request   before decoding: another prompt (urial)
              def name(loop, *, options) -> generator         the same where a model must be asked: ends in loop.restart (p_aligner)
    rewrite   def name(loop, draft, *, options) -> generator  after decoding: the draft line -> a better one (aligner)

They compose by '+': `dera+args`, `kgw+best_of_n`, `urial+cards+aligner`. At most one loop (plain where none is named);
everything else stacks in the order prompt, mix, mask, law (temperature, top-k, top-p), mark, loop, rewrite.

A loop is a generator that reads like sequential code about ONE response. Wherever a model must be asked it says `yield from`;
the engine collects what all open requests wait for and asks each model once. See `trueline/decoding/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trueline.registry import Method, method

UNITS = ("token", "segment", "sample", "rewrite")
NEEDS = ("logits", "weights", "text")  # what the policy must offer: closed models allow "text" only
REWARDS = ("none", "prefix", "whole")
STAGES = ("pre", "in", "post")  # the taxonomy of training-free alignment (spec item 95)
DEFAULTS = {"hook": "loop", "reward": "none", "needs": "logits", "stage": "in", "models": "", "width": ""}
HOOKS = ("loop", "mix", "mark", "mask", "gate", "prompt", "rewrite")


def decoder(
    *,
    unit: str,
    hook: str = "loop",
    reward: str = "none",
    needs: str = "logits",
    stage: str = "in",
    models: str = "",
    width: str = "",
    arxiv: str | None = None,
    paper: str | None = None,
) -> Callable[..., Any]:
    """Register a decoding method.

    unit: what is committed at once, token | segment | sample | rewrite; token and segment methods stream.
    reward: none | prefix (the reward must say something of unfinished text) | whole (finished responses only).
    needs: logits | weights | text. stage: pre | in | post. models: roles of second models, separated by spaces; a trailing
    '?' makes one optional. width: options whose product is the number of rows a choice takes at once ("n", "beams k").
    """
    for name, value, valid in (
        ("unit", unit, UNITS),
        ("hook", hook, HOOKS),
        ("reward", reward, REWARDS),
        ("needs", needs, NEEDS),
        ("stage", stage, STAGES),
    ):
        if value not in valid:
            raise ValueError(f"{name} is '{value}'; expected one of {', '.join(valid)}")
    said = dict(unit=unit, hook=hook, reward=reward, needs=needs, stage=stage, models=models, width=width)
    return method("decode", arxiv=arxiv, paper=paper, **{k: v for k, v in said.items() if v != DEFAULTS.get(k)})


def declared(found: Method) -> dict[str, Any]:
    """What a method's decorator said, with what it left unsaid."""
    return {**DEFAULTS, **found.declared}
