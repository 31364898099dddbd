"""Win rate: how often a policy's response is judged better than a fixed opponent's, ties counted one half.

    mean over prompts of  mean over (i, j) of  1[r_i > r'_j] + 1/2 1[r_i = r'_j]

with the policy's rewards r_i and the opponent's r'_j to the same prompt, all compared with all. The interval is a
bootstrap over prompts with the opponent's samples held as they are: the opponent is named and fixed, so that runs are
compared against the same one (arXiv 2405.08448).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, measure


def outcomes(policy: Sequence[Sequence[float]], opponent: Sequence[Sequence[float]]) -> list[float]:
    """Share of wins on each prompt, [prompts], from the rewards of both sides' responses to it."""
    if len(policy) != len(opponent):
        raise TruelineError(
            f"A win rate needs both sides' rewards to the same prompts; found {len(policy)} and {len(opponent)}."
        )
    found = []
    for prompt, (own, other) in enumerate(zip(policy, opponent, strict=True)):
        own_, other_ = np.asarray(own, dtype=float), np.asarray(other, dtype=float)
        if not (own_.size and other_.size and np.isfinite(own_).all() and np.isfinite(other_).all()):
            raise TruelineError(
                f"Prompt {prompt} lacks finite rewards for a win rate: {list(own)} against {list(other)}."
            )
        found.append(float((np.sign(own_[:, None] - other_[None, :]).mean() + 1) / 2))
    return found


@measure(arxiv="2405.08448", paper="Understanding the performance gap between online and offline alignment: win rate")
def win_rate(policy: Sequence[Sequence[float]], opponent: Sequence[Sequence[float]]) -> Reading:
    return Reading.of_mean("win_rate", outcomes(policy, opponent), unit="share", bounds=(0.0, 1.0))
