"""Rewards that read text: rules written in words, and every feedback of Trueline.

    keyword:WORD,WORD     share of the words that occur          regex:PATTERN    1 where the pattern is found
    length:LOW-HIGH       1 where the tokens are that many       json             1 where the text is valid JSON

Such rules know three things about unfinished text: satisfied whatever follows (1), violated whatever follows (0), undecided. What undecided
counts is `undecided` (1/2), so that a search prefers what can still come true to what cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from trueline.decoding.lines import Line
from trueline.decoding.request import Counters
from trueline.decoding.rewards import Capabilities
from trueline.errors import TruelineError
from trueline.groups import Group, Response

Partial = Callable[[str, int, bool], "float | None"]  # (text, tokens, finished) -> 0 to 1, None: undecided


class RuleReward:
    """A rule with three-valued partial results. tokens of a text given without ids are its words."""

    def __init__(self, rule: Partial, *, undecided: float = 0.5):
        if not 0 <= undecided <= 1:
            raise TruelineError(f"undecided is {undecided}; expected a number from 0 to 1.")
        self.rule = rule
        self.undecided = undecided
        self.capabilities = Capabilities("prefix", "text", low=0.0, high=1.0, trained_on_prefixes=True)

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        values = []
        for line, count in zip(lines, counters, strict=True):
            count.rm_tf += len(line.new)
            finished = line.finish is not None
            tokens = len(line.new) - (line.ended and line.stopped_by is None)
            values.append(self._of(self.rule(line.extra["text"](line), tokens, finished)))
        return values

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        return [self._of(self.rule(text, len(text.split()), True)) for text in responses]

    def _of(self, value: float | None) -> float:
        return self.undecided if value is None else float(value)


def keyword(words: Sequence[str]) -> Partial:
    """Share of the words that occur as whole words, whatever their case. Unfinished: those that do, never undecided: a share only grows."""
    if not words or not all(word.strip() for word in words):
        raise TruelineError(f"keyword needs words, and none may be empty; found {list(words)!r}.")
    patterns = [re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE) for word in words]
    return lambda text, tokens, finished: sum(p.search(text) is not None for p in patterns) / len(patterns)


def regex(pattern: str) -> Partial:
    """1 where the pattern is found; undecided before the end."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TruelineError(f"regex {pattern!r} is no pattern: {error}.") from error

    def rule(text: str, tokens: int, finished: bool) -> float | None:
        if finished:
            return float(compiled.search(text) is not None)
        return None

    return rule


def length(low: int, high: int) -> Partial:
    """1 where the response has low to high tokens, its end token not counted; violated as soon as there are more."""
    if not 0 <= low <= high:
        raise TruelineError(f"length needs 0 <= low <= high; found {low}-{high}.")

    def rule(text: str, tokens: int, finished: bool) -> float | None:
        if tokens > high:
            return 0.0
        if finished:
            return float(tokens >= low)
        return None

    return rule


def json_valid(text: str, tokens: int, finished: bool) -> float | None:
    """1 where the whole text is one JSON value. Unfinished: violated where no continuation can mend it."""
    stripped = text.strip()
    try:
        json.loads(stripped, parse_constant=_no_constant)
        return 1.0 if finished else None  # more text may still spoil it
    except ValueError as error:
        if finished:
            return 0.0
        return None if _can_be_mended(stripped, error) else 0.0


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _can_be_mended(text: str, error: ValueError) -> bool:
    """Whether the parser got as far as the text goes (or into a string, number or word that is still open)."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = text[error.pos :]
    if not rest or "Unterminated string" in error.msg:
        return True
    if "Invalid \\escape" in error.msg:
        return rest == "\\"
    if "Invalid \\uXXXX" in error.msg:
        return re.fullmatch(r"\\?u?[0-9a-fA-F]{0,3}", rest) is not None
    return re.fullmatch(r"-?|-?\d*\.?|-?\d+(\.\d+)?[eE][+-]?", rest) is not None or any(
        word.startswith(rest) for word in ("true", "false", "null")
    )


class FeedbackReward:
    """A judge of the family `feedback` by text: `reward:PATH`, `rule:module:function`, `lab`, `implicit:RUN`, ...

    judge: what `FeedbackContext.open` returned. prefix: whether it may be asked about unfinished responses; only its author
    knows. decode: ids -> text, for judges that want special tokens they do by themselves from the ids.
    """

    def __init__(self, judge: Callable[[list[Group]], None], *, prefix: bool = False, relative: bool = False):
        if relative or getattr(judge, "relative", False):
            raise TruelineError(
                "This judge compares the responses of one group; decoding needs a reward of each by itself."
            )
        self.judge = judge
        self.capabilities = Capabilities("prefix" if prefix else "whole", "text", trained_on_prefixes=prefix)

    def score(self, lines: Sequence[Line], counters: Sequence[Counters]) -> list[float]:
        groups: list[Group] = []
        for line, count in zip(lines, counters, strict=True):
            request = line.extra["request"]
            text = line.extra["text"](line)
            stop = line.stopped_by is not None
            response = Response(
                text=text, ids=None if stop else list(line.new), finish=line.finish or "length", source="policy"
            )
            count.rm_tf += len(line.root.prompt_ids) + len(line.new)
            groups.append(Group(request.prompt, [response], list(line.root.prompt_ids), dict(request.columns)))
        return self._judged(groups)

    def score_text(self, prompt: Any, responses: Sequence[str], columns: dict[str, Any]) -> list[float]:
        return self._judged([Group(prompt, [Response(text=text)], None, dict(columns)) for text in responses])

    def _judged(self, groups: list[Group]) -> list[float]:
        self.judge(groups)
        rewards = [group.responses[0].reward for group in groups]
        return [float("nan") if reward is None else float(reward) for reward in rewards]


def text_reward(spec: str) -> RuleReward | None:
    """The rule that a specification names (see the module's text); None where it is none of them."""
    name, _, argument = spec.partition(":")
    if name == "keyword":
        return RuleReward(keyword([word for word in argument.split(",")]))
    if name == "regex":
        return RuleReward(regex(argument))
    if name == "length":
        bounds = re.fullmatch(r"(\d+)-(\d+)", argument)
        if bounds is None:
            raise TruelineError(f"'{spec}': expected length:LOW-HIGH, such as length:20-60.")
        return RuleReward(length(int(bounds[1]), int(bounds[2])))
    if name == "json":
        if argument:
            raise TruelineError(f"'{spec}': json takes nothing after a colon.")
        return RuleReward(json_valid)
    return None


def open_reward(spec: str, context: Any, policy_tokenizer: Any, *, prefix: bool = False) -> Any:
    """A reward for the engine from its specification: a rule of this file, `reward:PATH` on a cache where it reads the policy's own
    ids, and any other feedback by text.

    context: a `FeedbackContext`. prefix: allow a text judge to be asked about unfinished responses.
    """
    rule = text_reward(spec)
    if rule is not None:
        return rule
    name, _, path = spec.partition(":")
    if name == "reward" and path:
        from trueline.decoding.rewards import ScalarReward
        from trueline.engine.policy import Policy
        from trueline.models import load, vocabulary_hash

        loaded = load(path, head="scalar", for_training=False, offline=context.offline)
        if vocabulary_hash(loaded.tokenizer) == vocabulary_hash(policy_tokenizer):
            policy = Policy(loaded.model.to(context.device), head="scalar")
            if policy.heads == 1:
                return ScalarReward(policy, prefixes=prefix)
    return FeedbackReward(context.open(spec), prefix=prefix)
