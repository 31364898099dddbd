"""Underlying distribution matching (BCO, arXiv 2404.04656): how much more likely a prompt has a good response than a bad one.

Where good and bad responses belong to different kinds of prompts, an objective on single responses learns the kind of
prompt instead of the kind of response. A logistic regression tells, from an embedding of the prompt, whether its
responses are good; its odds p(up|x) / p(down|x) weigh the bad responses as if they stood under the prompts of the good
ones. Classes count alike in the fit, so that odds are 1 where the prompts do not differ, whatever the share of thumbs.

The embedding is the mean of the starting model's last hidden states over the prompt, so odds are the same in a resumed
run. They are computed once and kept on the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trueline.engine.layout import laid_out
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.pairing import THUMBS, Rules, plan
from trueline.randomness import permutation

if TYPE_CHECKING:
    from trueline.engine.policy import Policy

FITTED = 1024  # rows of each class that the classifier sees (TRL's prompt_sample_size)


def match_prompts(
    policy: Policy, train: Sequence[Group], held_out: Sequence[Group], rules: Rules, *, token_budget: int, seed: int
) -> None:
    """Fill `prompt_odds` of every group, from a classifier fitted on the thumbs of the training groups.

    Raises TruelineError where those have no thumb up or no thumb down.
    """
    labels = [_thumbs(group, rules) for group in train]
    counts = [sum(up for up, _ in labels), sum(down for _, down in labels)]
    if not all(counts):
        raise TruelineError(
            f"match_prompts fits a classifier of prompts, and the training data have {counts[0]} good and {counts[1]} bad "
            "responses. It needs both in the data; fresh samples have the same prompts on both sides. Leave it out."
        )
    groups = [*train, *held_out]
    odds = odds_of_up(
        embeddings(policy, groups, token_budget), [g for g, _ in labels], [b for _, b in labels], seed=seed
    )
    for group, value in zip(groups, odds.tolist(), strict=True):
        group.prompt_odds = value


def odds_of_up(embedding: np.ndarray, up: Sequence[int], down: Sequence[int], *, seed: int = 0) -> np.ndarray:
    """Balanced odds of a good response for every row of embedding [G, D]; up and down count those of the first rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows: list[int] = []
    labels: list[int] = []
    for label, counts in ((1, up), (0, down)):
        own = [g for g, count in enumerate(counts) for _ in range(count)]
        kept = sorted(permutation(len(own), seed, "match prompts", label)[:FITTED])
        rows += [own[i] for i in kept]
        labels += [label] * len(kept)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    classifier.fit(embedding[rows], labels)
    return np.exp(np.clip(classifier.decision_function(embedding), -30, 30))


def embeddings(policy: Policy, groups: Sequence[Group], token_budget: int) -> np.ndarray:
    """Mean last hidden state over each prompt, [G, D], under the policy as it is."""
    found = []
    for _, layout in laid_out([_prompt(g) for g in groups], token_budget, policy.device):
        found.append(policy.prompt_states(layout))
    return np.concatenate([x.float().cpu().numpy() for x in found])


def _prompt(group: Group) -> Group:
    """The prompt and a token after it that nothing reads: a layout has a token to score in every row."""
    ids = list(group.prompt_ids or ())
    return Group("", [Response(ids=ids[-1:], mask=[True])], prompt_ids=ids, origin=group.origin)


def _thumbs(group: Group, rules: Rules) -> tuple[int, int]:
    """How many responses of the group count as good and as bad."""
    items = plan([group], {THUMBS}, rules).items
    return sum(len(i.up) for i in items), sum(len(i.down) for i in items)
