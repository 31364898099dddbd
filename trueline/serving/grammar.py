"""`response_format` and bans as masks: which tokens may follow, so that they compose with every decoding method.

JSON goes through llguidance, which follows a schema token by token and refuses what it does not implement. The
hook depends on the tokens alone: after a candidate was rejected or a beam was left it goes back to where the two part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueline.errors import TruelineError

# Free white space lets a small model write blanks until its tokens are over: a line break and an indentation will do.
# lenient stays off whatever a schema says of itself: a keyword that is not implemented is refused, never ignored.
JSON_STYLE: Any = {"whitespace_pattern": r"\n? {0,8}", "lenient": False}


class Grammars:
    """Compiles schemas for one tokenizer. eos_ids: what ends a response. rows: ids that the model knows."""

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int], rows: int):
        self.tokenizer, self.eos_ids, self.rows = tokenizer, list(eos_ids), rows
        self._vocabulary: Any = None

    def json(self, schema: dict[str, Any] | None) -> JsonMask:
        """The hook for JSON of this schema; None is any object. Raises TruelineError for a schema that cannot be kept."""
        from llguidance import LLMatcher

        vocabulary = self._opened()
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps({"type": "object"} if schema is None else schema), overrides=JSON_STYLE
        )
        matcher = LLMatcher(vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise TruelineError(f"The schema cannot be followed: {_first_line(matcher.get_error())}")
        return JsonMask(matcher)

    def _opened(self) -> Any:
        """The tokenizer as llguidance reads it, made once."""
        if self._vocabulary is None:
            from llguidance.hf import from_tokenizer

            try:
                self._vocabulary = from_tokenizer(self.tokenizer, n_vocab=self.rows, eos_token=self.eos_ids)
            except Exception as error:  # llguidance raises plain exceptions
                raise TruelineError(
                    f"response_format needs a byte-level tokenizer (or one with byte fallback); this model's is neither: "
                    f"{_first_line(str(error))}"
                ) from error
        return self._vocabulary


class JsonMask:
    """The mask hook: new tokens so far -> ids that may follow."""

    def __init__(self, matcher: Any):
        self._matcher = matcher
        self._read: list[int] = []

    def __call__(self, ids: Sequence[int]) -> list[int]:
        self._go_to(list(ids))
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()

    def _go_to(self, ids: list[int]) -> None:
        common = next((i for i, (a, b) in enumerate(zip(ids, self._read, strict=False)) if a != b), None)
        if common is None:
            common = min(len(ids), len(self._read))
        if common < len(self._read):
            self._matcher.rollback(len(self._read) - common)
        self._matcher.consume_tokens(ids[common:])
        self._read = ids
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise TruelineError(f"The JSON grammar stopped: {_first_line(self._matcher.get_error())}")


class Banned:
    """Every token but these may follow."""

    def __init__(self, banned: Sequence[int], rows: int):
        if wrong := [i for i in banned if i >= rows]:
            raise TruelineError(f"logit_bias names token {wrong[0]}; the model has ids 0 to {rows - 1}.")
        self._kept = np.setdiff1d(np.arange(rows), banned).tolist()

    def __call__(self, ids: Sequence[int]) -> list[int]:
        return self._kept


def both(first: Any, second: Any) -> Any:
    """A hook that allows what two hooks allow; either may be None."""
    if first is None or second is None:
        return first or second

    def allowed(ids: list[int]) -> list[int]:
        return sorted(set(first(ids)) & set(second(ids)))

    return allowed


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:300]
