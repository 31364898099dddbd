"""What methods that write around a response share: prompts of their own, second models that write text, inspectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trueline.decoding.lines import Line
from trueline.decoding.loop import Asking, Draw, Loop, Score
from trueline.decoding.proposal import Proposal
from trueline.decoding.watermark import GumbelMark
from trueline.encode import UNLIMITED, encode
from trueline.engine.draw import Law
from trueline.errors import TruelineError, nearest
from trueline.groups import Group, Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt, eos_ids: Sequence[int]) -> list[int]:
    """A prompt in tokens, exactly as training and serving encode it."""
    ends = list(eos_ids) or [i for i in (tokenizer.eos_token_id,) if i is not None]
    groups, audit = encode([Group(prompt, [], origin="prompt")], tokenizer, UNLIMITED, eos_ids=ends)
    if not groups or not groups[0].prompt_ids:
        raise TruelineError(f"The prompt cannot be used: {', '.join(audit.dropped) or 'it has no tokens'}.")
    return groups[0].prompt_ids


def second_model(loop: Loop, name: str) -> str:
    """The name of a second model of this engine, by role or name."""
    if name not in loop.models:
        raise TruelineError(
            f"There is no second model '{name}'. {nearest(name, loop.models) if loop.models else 'None is registered.'}"
        )
    return name


def written(
    loop: Loop, model: str, prompt: str, limit: int, *, greedy: bool = True, constrained: bool = True
) -> Asking[Line]:
    """What a second model writes after a prompt of its own, to its end token or the limit; stop texts of the request do not end it.

    The line hangs on that prompt. It shares the policy's tokenizer. constrained: keep the request's masks and marks.
    """
    if loop.tokenizer is None:
        raise TruelineError(f"'{model}' reads text; open the engine with a tokenizer.")
    if not loop.request.eos_ids:
        raise TruelineError(f"'{model}' writes until an end token, and the request names none. Give it eos_ids.")
    ids = encode_prompt(loop.tokenizer, prompt, loop.request.eos_ids)
    voice = loop.voice(model)
    positions = voice.model.positions
    if positions is not None and len(ids) + limit > positions:
        raise TruelineError(
            f"'{model}' reads {len(ids)} tokens and may write {limit}, together more than its {positions} positions. Shorten the prompt or "
            "lower max_new_tokens."
        )
    line = loop.open(ids, limit, model)
    proposal = Proposal(voice, Law(0.0) if greedy else loop.law)
    if constrained:
        proposal.masks, proposal.marks = list(loop.proposal.masks), list(loop.proposal.marks)
    if greedy and any(isinstance(mark, GumbelMark) for mark in proposal.marks):
        raise TruelineError(
            f"gumbel marks draws, and '{model}' takes its likeliest tokens. Set greedy to false, or take kgw."
        )
    while line.finish is None:
        yield Draw([line], proposal)
    line.drawn = 0  # it is what becomes of these tokens that counts: they are the response, or `replace` discards it
    return line


def candidate(loop: Loop, ids: Sequence[int]) -> Line:
    """A line with these tokens in place of the response's, for inspectors to read."""
    (line,) = loop.fork()
    line.crop(0)
    for token in ids:
        if line.finish is None:
            line.append(token, math.nan, math.nan)
            loop.settle(line)
    return line


def inspect(loop: Loop, line: Line, inspector: str) -> Asking[float]:
    """Probability that a response is aligned, from a reward of the engine: its value where that lies in [0, 1] by declaration, else
    its logistic function (a classifier trained with pointwise_rm says a log-odds)."""
    if inspector not in loop.judges:
        have = nearest(inspector, loop.judges) if loop.judges else "None is registered."
        raise TruelineError(f"There is no inspector '{inspector}' among the engine's rewards. {have}")
    before = line.reward, dict(line.rewards)
    yield Score([line], {inspector: 1.0})
    value = line.reward
    line.reward, line.rewards = before
    if value is None:
        raise TruelineError(
            f"Inspector '{inspector}' could not judge the response. {line.extra.get('failure', '')}".rstrip()
        )
    bounds = loop.judges[inspector].capabilities
    if bounds.low is not None and bounds.high is not None and bounds.low >= 0 and bounds.high <= 1:
        return value
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
