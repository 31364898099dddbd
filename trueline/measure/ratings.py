"""Ratings: one number a system out of comparisons of two, with its rank and a 95 % interval over prompts.

    bradley_terry    P(i beats j) = sigmoid(theta_i - theta_j), maximum likelihood; a tie is half a win for each side
    elo              the same as 1000 + 400 / ln 10 * theta, mean 1000
    davidson         win, tie and loss as e^(d/2) : nu : e^(-d/2), d = theta_i - theta_j (Davidson 1970)
    elo_sequential   R_a += 4 (share - 1 / (1 + 10^((R_b - R_a) / 400))) match by match
    trueskill        two-player TrueSkill with mu 0, sigma 0.5, beta 0.25, no dynamics, ties of probability 0.25
    expected_wins    mean over opponents j of wins(i, j) / (wins(i, j) + wins(j, i)), ties ignored, 1/2 where all are ties

A row is a match: `first` and `second` name the systems, `share` is what the first got (1 won, 0.5 a tie, 0 lost, nan for
no verdict, which is counted and left out), `prompt` what they were compared on. With `--feedback JUDGE` the matches are
made: every two systems on every prompt of a file with the columns `prompt` and `outputs` (system to text), or with
`prompt`, `system` and `response`; with `--model-b NAME` every system against that one.

The maximum-likelihood methods do not depend on the order of the matches; elo_sequential and trueskill do, and go in the
order of the file; `shuffles` averages them over so many random orders of the prompts. Where some systems never lost to
the others no finite strengths fit best: refused, unless a `ridge` (the precision of a normal prior) holds them. Intervals
resample prompts `resamples` times (percentiles); there is none where more than 2 % of the resamples have such systems.
Chatbot Arena (arXiv 2403.04132) rates by Bradley-Terry as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from trueline.measure._ratings import readings
from trueline.measure.contract import Reading, measure
from trueline.ratings import Matches, rate


@measure(takes="matches", arxiv="2403.04132", paper="Chatbot Arena: ratings from comparisons")
def ratings(
    first_K: Sequence[str],
    second_K: Sequence[str],
    share_K: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    method: Literal[
        "bradley_terry", "elo", "davidson", "elo_sequential", "trueskill", "expected_wins"
    ] = "bradley_terry",
    ridge: float = 0.0,
    shuffles: int = 0,
    resamples: int = 1000,
) -> list[Reading]:
    """first_K, second_K: the systems of each match; share_K: the first one's share; clusters: the prompts."""
    matches = Matches.of(first_K, second_K, share_K, clusters)
    return readings(rate(matches, method, ridge=ridge, shuffles=shuffles, resamples=resamples))
