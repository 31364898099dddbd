"""A loaded model as a scorer and sampler, and what every maker of columns needs beside it: groups, judges, rewards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate as running
from itertools import pairwise
from typing import Any, Literal

import torch

from trueline.drawing import drawer
from trueline.encode import Limits, encode
from trueline.engine.layout import Layout, laid_out
from trueline.engine.policy import Policy
from trueline.errors import TruelineError
from trueline.feedback.contract import FeedbackContext, judge_labels
from trueline.groups import Group
from trueline.measuring.contract import Request
from trueline.models import Loaded, load_frozen
from trueline.randomness import derive
from trueline.readers import read
from trueline.registry import load as load_method
from trueline.vocabulary import embedding_rows


@dataclass
class Scorer:
    """A loaded model that scores and samples encoded groups, frozen."""

    request: Request
    loaded: Loaded
    policy: Policy

    @classmethod
    def open(
        cls, request: Request, path: str | None, *, reference: str | None = None, head: Literal["lm", "scalar"] = "lm"
    ) -> Scorer:
        if not path:
            raise TruelineError(f"{request.name} needs a model: --model FOLDER.")
        device = "cuda" if torch.cuda.is_available() else "cpu"

        frozen = partial(load_frozen, device=device, head=head, offline=request.offline)
        loaded = frozen(path)
        other = frozen(reference) if reference else None
        if other is not None and other.vocabulary_hash != loaded.vocabulary_hash:
            raise TruelineError(
                f"'{path}' and '{reference}' have different vocabularies, so their log-probs are not of the same tokens."
            )
        policy = Policy(
            loaded.model,
            reference=other.model if other else "none",
            head=head,
            max_length=request.max_length,
        )
        return cls(request, loaded, policy.requires_grad_(False).eval())

    def encoded(self, groups: list[Group]) -> list[Group]:
        """Groups in the model's tokens. What was dropped for want of room or text is an error with its count."""
        limits = Limits(self.request.max_length)
        kept, audit = encode(
            groups,
            self.loaded.tokenizer,
            limits,
            eos_ids=self.loaded.eos_ids,
            vocabulary=embedding_rows(self.loaded.model),
        )
        if not kept:
            raise TruelineError(f"Nothing can be measured: all {len(groups)} rows were dropped ({audit.dropped}).")
        return kept

    @torch.no_grad()
    def logps(self, groups: list[Group], *, reference: bool = False) -> list[list[list[float]]]:
        """Log-prob of each counted token of each response of each group."""
        return _by_group(groups, self._tokens(groups, reference))

    def _tokens(self, groups: list[Group], reference: bool) -> list[list[float]]:
        rows: list[list[float]] = []
        for _, layout in self._layouts(groups):
            rows += _split(self.policy(layout, reference=reference).logp_N, layout)
        return rows

    @torch.no_grad()
    def kl(self, groups: list[Group]) -> list[float]:
        """Exact KL to the reference summed over each response."""
        found: list[float] = []
        for _, layout in self._layouts(groups):
            found += [sum(row) for row in _split(self.policy.kl(layout)[0], layout)]
        return found

    @torch.no_grad()
    def values(self, groups: list[Group]) -> list[list[float]]:
        """The scalar head's number for each response of each group."""
        flat: list[float] = []
        for _, layout in self._layouts(groups):
            flat += self.policy(layout).value_R.tolist()
        return _by_group(groups, flat)

    def _layouts(self, groups: list[Group]) -> Iterator[tuple[list[int], Layout]]:
        return laid_out(groups, self.request.token_budget, self.policy.device)

    def drawn(self, groups: list[Group], samples: int, stream: str) -> list[Group]:
        """The same prompts with fresh responses."""
        request = self.request
        longest = request.max_new_tokens and min(request.max_new_tokens, request.max_length - 1)
        limits = Limits(request.max_length, max_response_length=longest)
        draw = drawer(self.policy, self.loaded, limits)
        return draw(groups, samples, derive(request.seed, "measure", stream), temperature=request.temperature)


def _split(values_N: torch.Tensor | None, layout: Layout) -> list[list[float]]:
    """Flat token values by response."""
    assert values_N is not None
    ends = [0, *running(layout.length_R.tolist())]
    flat = values_N.tolist()
    return [flat[a:b] for a, b in pairwise(ends)]


def _by_group(groups: list[Group], rows: list[Any]) -> list[list[Any]]:
    """Response values by group."""
    ends = [0, *running(len(g.responses) for g in groups)]
    return [rows[a:b] for a, b in pairwise(ends)]


def read_groups(request: Request) -> list[Group]:
    """The data's groups, at most `prompts` of them."""
    if not request.data:
        raise TruelineError(f"{request.name} needs data: --data FILE with the prompts or pairs to measure on.")
    groups, _ = read(request.data, offline=request.offline)
    return groups[: request.prompts]


def prompts(request: Request, scorer: Scorer) -> list[Group]:
    """Every different prompt of the data, encoded, without responses."""
    unique = {g.prompt_key(): replace(g, responses=[]) for g in read_groups(request)}
    return scorer.encoded(list(unique.values()))


def judges_of(request: Request, tokenizer: Any, *, at_most: int) -> dict[str, Any]:
    """Feedback by label, in the order given."""
    if not request.feedback:
        raise TruelineError(f"{request.name} needs a judge: --feedback reward:RUN, rule:MODULE:FUNCTION, lab, ...")
    if len(request.feedback) > at_most:
        raise TruelineError(f"{request.name} takes {at_most} --feedback at most; found {len(request.feedback)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = FeedbackContext(tokenizer, request.token_budget, "exact", device, request.offline)
    built = {}
    for label, spec in judge_labels(request.feedback).items():
        name, _, argument = spec.partition(":")
        built[label] = load_method("feedback", name).call(context, argument)
    return built


def rewards(groups: list[Group], label: str) -> list[list[float]]:
    """One judge's reward of each response; 'not applicable' cannot be compared and is an error."""
    for group in groups:
        if any(r.rewards[label] is None for r in group.responses):
            raise TruelineError(f"The judge '{label}' gave no reward to a response to {group.origin or 'a prompt'}.")
    return [[float(r.rewards[label]) for r in g.responses] for g in groups]  # type: ignore[arg-type]


def against_reference(request: Request) -> Scorer:
    if not request.model_b:
        raise TruelineError(f"{request.name} compares with a reference: give it as --model-b FOLDER.")
    return Scorer.open(request, request.model, reference=request.model_b)
