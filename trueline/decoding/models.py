"""A model as the engine asks it: hidden states of rows, and from them logits or a scalar.

`LanguageModel.of(policy)` takes a `Policy`; `TableModel(function, vocabulary)` any function from ids to logits, such as the tabular worlds
of the lab. `Scorer.of(policy)` is a reward model with a scalar head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trueline.decoding.readers import CALL_TOKENS, Reader, Rereader, SharedReader, TableReader, reader_of
from trueline.engine.attention import NAME
from trueline.engine.decoders import positions_of, turning_point
from trueline.engine.policy import Policy
from trueline.engine.precision import products
from trueline.errors import TruelineError


class Model:
    """What a reader and a head make. vocabulary: ids it knows. positions: longest row, None where there is no limit."""

    def __init__(self, reader: Reader, vocabulary: int, positions: int | None = None):
        self.reader = reader
        self.vocabulary = vocabulary
        self.positions = positions

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The state that the model must be in while it is asked."""
        with torch.no_grad():
            yield

    def open(self, prompts: Sequence[list[int]]) -> tuple[list[Any], list[Tensor]]:
        """Read prompts; returns their rows and the hidden states of each, [P, D]."""
        rows: list[Any] = []
        states: list[Tensor] = []
        with self.awake():
            for some in _calls([len(p) for p in prompts]):
                new, flat = self.reader.open([prompts[i] for i in some])
                rows += new
                states += flat.split([len(prompts[i]) for i in some])
        return rows, states

    def feed(self, rows: Sequence[Any], new: Sequence[list[int]]) -> list[Tensor]:
        """Read new tokens of rows; returns the hidden states of each row's new tokens, [J, D]."""
        states: list[Tensor] = []
        with self.awake():
            for some in _calls([len(tokens) for tokens in new]):
                flat = self.reader.feed([rows[i] for i in some], [new[i] for i in some])
                states += flat.split([len(new[i]) for i in some])
        return states


def _calls(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of rows with at most CALL_TOKENS new tokens together."""
    some: list[int] = []
    tokens = 0
    for i, length in enumerate(lengths):
        if some and tokens + length > CALL_TOKENS:
            yield some
            some, tokens = [], 0
        some.append(i)
        tokens += length
    if some:
        yield some


class LanguageModel(Model):
    """A model with next-token logits, at temperature 1 whatever the policy scores at."""

    def __init__(self, policy: Policy, reader: Reader):
        self.policy = policy
        backbone = policy._backbone
        super().__init__(reader, backbone.vocabulary, _longest(policy, reader))
        self.head = replace(backbone.head, temperature=1.0)

    @classmethod
    def of(cls, policy: Policy) -> LanguageModel:
        """Raises TruelineError for a policy with a scalar head."""
        with policy.speaking() as voices:
            backbone = voices[0].backbone
            head = backbone.head
            reader = reader_of(backbone, lambda states: head.logits(states).double().log_softmax(-1))
        return cls(policy, reader)

    @contextmanager
    def awake(self) -> Iterator[None]:
        with _awake(self.policy, self.reader):
            yield

    def logits(self, states: Tensor) -> Tensor:
        """[N, D] -> [N, V] in fp32 (float64 stays)."""
        with torch.no_grad(), products("fast") if self.policy.precision == "fast" else nullcontext():
            return self.head.logits(states)


class TableModel(Model):
    """A language model that is a function of the ids so far (the prompt's included): -> logits or log-probs [V].

    Minus infinity is allowed and means impossible.
    """

    def __init__(self, function: Callable[[tuple[int, ...]], Any], vocabulary: int, positions: int | None = None):
        super().__init__(TableReader(function), vocabulary, positions)

    def logits(self, states: Tensor) -> Tensor:
        return states


class Scorer(Model):
    """A model that says one number after every token: a classifier with a scalar head."""

    def __init__(self, policy: Policy, reader: Reader):
        self.policy = policy
        self.backbone = policy._backbone
        super().__init__(reader, self.backbone.vocabulary, _longest(policy, reader))

    @classmethod
    def of(cls, policy: Policy) -> Scorer:
        backbone = policy._backbone
        if backbone.scalar is None:
            raise TruelineError("This policy has no scalar head; a reward model is loaded with head='scalar'.")
        if policy.heads != 1:
            raise TruelineError(
                f"The reward model has {policy.heads} heads; reading ids needs one. Use it as text: `reward:PATH` combines them."
            )
        with torch.no_grad(), backbone.evaluating():
            reader = reader_of(backbone, backbone.scalar)
        return cls(policy, reader)

    @contextmanager
    def awake(self) -> Iterator[None]:
        with _awake(self.policy, self.reader):
            yield

    def values(self, states: Tensor) -> Tensor:
        """[N, D] -> [N]."""
        with torch.no_grad():
            assert self.backbone.scalar is not None
            value = self.backbone.scalar(states).squeeze(-1)
        return value if value.dtype == torch.float64 else value.float()


def _longest(policy: Policy, reader: Reader) -> int | None:
    """The longest row that the model may read: its positions, the rows that the probe has covered, and the length at which
    LongRoPE would turn every row of a call by other angles."""
    probed = policy._backbone.probed_length if isinstance(reader, SharedReader) else None
    limits = (positions_of(policy.model), probed, turning_point(policy.model))
    return min((n for n in limits if n is not None), default=None)


@contextmanager
def _awake(policy: Policy, reader: Reader) -> Iterator[None]:
    """Without gradients and dropout, under the attention that the reader stands on (set, not assumed: others may have switched it).

    Walking through all modules costs as much as a layer, so it is done only where something says that it is needed.
    """
    backbone = policy._backbone
    mode = "shared" if isinstance(reader, SharedReader) else "padded"
    before = backbone.mode
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if policy.training or policy.model.training:
            stack.enter_context(backbone.evaluating())
        if before != mode or (mode == "shared" and backbone.config._attn_implementation != NAME):
            backbone.set_mode(mode)
        if policy.precision == "fast":
            stack.enter_context(products("fast"))
        try:
            yield
        finally:
            if before != mode:
                backbone.set_mode(before)


def check_room(name: str, model: Any, prompt: int, limit: int) -> None:
    """Refuse rows that are longer than a model can read."""
    if model.positions is not None and prompt + limit > model.positions:
        raise TruelineError(
            f"The prompt has {prompt} tokens and max_new_tokens is {limit}, together more than the {model.positions} positions of "
            f"'{name}'. Shorten the prompt or lower max_new_tokens."
        )


def language_model(thing: Any) -> Any:
    """A `Policy` as a LanguageModel; whatever has a reader and logits stays as it is."""
    if isinstance(thing, Policy):
        return LanguageModel.of(thing)
    if hasattr(thing, "logits") and hasattr(thing, "reader"):
        return thing
    raise TruelineError(f"{type(thing).__name__} is no language model; expected a Policy or a TableModel.")


__all__ = ["LanguageModel", "Model", "Rereader", "Scorer", "TableModel", "language_model"]
