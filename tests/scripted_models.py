"""Second models whose words are given: tables that read text and say what a function makes of it, token by token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trueline.decoding.models import TableModel

SHARP = 30.0  # logit of the scripted token over the others


def scripted(tokenizer: Any, opening: str, reply: Callable[[str], str], end: int) -> TableModel:
    """A model that, after a prompt that ends with `opening`, writes reply(prompt) and the end token."""

    starts: dict[
        tuple[int, ...], int
    ] = {}  # the table is asked at every place of a prompt, and again at every new token

    def start_of(ids: tuple[int, ...]) -> int:
        """Tokens of the prompt, which ends where `opening` is first complete; all of them where it is not."""
        if opening not in tokenizer.decode(ids[-2 * len(opening) - 2 :]) and ids[:-1] in starts:
            return starts[ids[:-1]] if starts[ids[:-1]] < len(ids) - 1 else len(ids)
        return bisect_left(range(len(ids)), True, key=lambda k: opening in tokenizer.decode(ids[:k]))

    def logits(ids: Sequence[int]) -> torch.Tensor:
        start = starts[tuple(ids)] = start_of(tuple(ids))
        found = torch.zeros(len(tokenizer), dtype=torch.float64)
        if start == len(ids) and opening not in tokenizer.decode(ids[-2 * len(opening) - 2 :]):
            return found
        target = [*tokenizer(reply(tokenizer.decode(ids[:start])), add_special_tokens=False)["input_ids"], end]
        found[target[min(len(ids) - start, len(target) - 1)]] = SHARP
        return found

    return TableModel(logits, len(tokenizer))


def knows(tokenizer: Any, lines: Sequence[str], end: int) -> TableModel:
    """A model that has seen these lines in their own tokens and nothing else: after a beginning in other tokens it is lost."""
    rows = [[*tokenizer(line, add_special_tokens=False)["input_ids"], end] for line in lines]

    def logits(ids: Sequence[int]) -> torch.Tensor:
        found = torch.zeros(len(tokenizer), dtype=torch.float64)
        for row in rows:
            if list(ids) == row[: len(ids)] and len(ids) < len(row):
                found[row[len(ids)]] = SHARP
        return found

    return TableModel(logits, len(tokenizer))
