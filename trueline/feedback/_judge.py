"""A model that judges: loading it frozen, and putting another model's responses into its own tokens.

Text is the interface between models. Only where the judge's vocabulary is the policy's own are the sampled ids used
as they are, which keeps a response that was cut off from looking finished.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from trueline.encode import Limits, encode
from trueline.engine.layout import Layout, micro_batches
from trueline.engine.policy import Policy
from trueline.engine.precision import products
from trueline.errors import TruelineError
from trueline.feedback.contract import FeedbackContext
from trueline.groups import Group
from trueline.models import Loaded, load, vocabulary_hash

UNLIMITED = 1 << 24  # tokens: a judge reads the whole text or refuses it, and never cuts it unsaid


@dataclass
class Judge:
    """A frozen scorer with its tokenizer; context.tokenizer is the policy's."""

    policy: Policy
    tokenizer: Any
    eos_ids: list[int]
    context: FeedbackContext

    @classmethod
    def open(
        cls, path: str, context: FeedbackContext, *, head: Literal["lm", "scalar"], reference: str | None = None
    ) -> Judge:
        """Load a judge; `reference` is the model whose log-probs are subtracted (implicit rewards)."""

        def frozen(place: str) -> Loaded:
            loaded = load(place, head=head, for_training=False, offline=context.offline)
            nn.Module.to(loaded.model, context.device)  # before the probe; a 4-bit model refuses its own `to`
            return loaded

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
        encoded, audit = encode(plain, self.tokenizer, Limits(UNLIMITED), eos_ids=self.eos_ids)
        if audit.dropped or len(encoded) != len(groups):
            raise TruelineError(
                f"The judge's tokenizer cannot encode {len(groups) - len(encoded)} of {len(groups)} groups: {audit.dropped}."
            )
        return encoded

    @torch.no_grad()
    def scores(self, groups: list[Group]) -> list[float]:
        """One number a response: the scalar head's output, or the summed log-ratio to the reference."""
        encoded = self.tokens(groups)
        values: list[float] = []
        for cut in micro_batches(encoded, self.context.token_budget):
            layout = Layout.of([encoded[i] for i in cut]).to(self.policy.device)
            with products(self.context.precision):
                own = self.policy(layout)
                if own.value_R is not None:
                    values += own.value_R.tolist()
                    continue
                ratio_N = own.logp_N - self.policy(layout, reference=True).logp_N
            total_R = ratio_N.new_zeros(layout.rows).index_add(0, layout.owner_N, ratio_N)
            values += total_R.tolist()
        return values
