"""A model that judges: loading it frozen, and putting another model's responses into its own tokens.

Text is the interface between models. Only where the judge's vocabulary is the policy's own are the sampled ids used
as they are, which keeps a response that was cut off from looking finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from trueline.encode import UNLIMITED, encode
from trueline.engine.layout import Layout, laid_out
from trueline.engine.policy import Policy
from trueline.engine.precision import products
from trueline.errors import TruelineError
from trueline.feedback.contract import FeedbackContext
from trueline.groups import Group
from trueline.models import load_frozen, vocabulary_hash


@dataclass
class Judge:
    """A frozen scorer with its tokenizer; context.tokenizer is the policy's."""

    policy: Policy
    tokenizer: Any
    eos_ids: list[int]
    context: FeedbackContext

    @classmethod
    def open(
        cls,
        path: str,
        context: FeedbackContext,
        *,
        head: Literal["lm", "scalar"],
        reference: str | None = None,
        subject: str = "responses",
    ) -> Judge:
        """Load a judge; `reference` is the model whose log-probs are subtracted (implicit rewards).

        subject: what a reward model must say a number about (`trueline/subjects.py`).
        """

        frozen = partial(load_frozen, device=context.device, head=head, offline=context.offline, subject=subject)
        loaded = frozen(path)
        policy = Policy(loaded.model, reference=frozen(reference).model if reference else "none", head=head)
        return cls(policy.requires_grad_(False).eval(), loaded.tokenizer, loaded.eos_ids, context)

    def tokens(self, groups: list[Group]) -> list[Group]:
        """The same responses in the judge's tokens, in the same order."""
        if vocabulary_hash(self.tokenizer) == vocabulary_hash(self.context.tokenizer):
            return groups
        plain = [
            replace(g, prompt_ids=None, responses=[replace(r, ids=None, mask=None) for r in g.responses])
            for g in groups
        ]
        return self.encoded(plain)

    def encoded(self, groups: list[Group]) -> list[Group]:
        """Groups of text in the judge's tokens, in the same order; nothing is cut and nothing may be dropped."""
        encoded, audit = encode(groups, self.tokenizer, UNLIMITED, eos_ids=self.eos_ids)
        if audit.dropped or len(encoded) != len(groups):
            raise TruelineError(
                f"The judge's tokenizer cannot encode {len(groups) - len(encoded)} of {len(groups)} groups: {audit.dropped}."
            )
        return encoded

    @torch.no_grad()
    def log_ratios(self, groups: list[Group]) -> list[float]:
        """The summed log-ratio of each response to the reference."""
        totals: list[float] = []
        for layout in self.layouts(self.tokens(groups)):
            with products(self.context.precision):
                ratio_N = self.policy(layout).logp_N - self.policy(layout, reference=True).logp_N
            totals += ratio_N.new_zeros(layout.rows).index_add(0, layout.owner_N, ratio_N).tolist()
        return totals

    @torch.no_grad()
    def members(self, encoded: list[Group]) -> list[list[float]]:
        """What each head of a reward model says of each response, [responses][heads]; groups in the judge's tokens."""
        rows: list[list[float]] = []
        for layout in self.layouts(encoded):
            with products(self.context.precision):
                value_R = self.policy(layout).value_R
            rows += value_R.reshape(layout.rows, -1).tolist()
        return rows

    @torch.no_grad()
    def steps(self, encoded: list[Group]) -> list[list[float]]:
        """What a process reward model says at the end of each step of each response; groups in the judge's tokens."""
        rows: list[list[float]] = []
        for layout in self.layouts(encoded):
            with products(self.context.precision):
                value_K = self.policy(layout).value_K
            counts = torch.bincount(layout.marked_K, minlength=layout.rows).tolist()
            rows += [part.tolist() for part in value_K.split(counts)]
        return rows

    def layouts(self, encoded: list[Group]) -> Iterator[Layout]:
        """Micro-batches of groups in the judge's tokens, on its device."""
        return (layout for _, layout in laid_out(encoded, self.context.token_budget, self.policy.device))
