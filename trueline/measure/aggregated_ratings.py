"""Aggregated ratings: systems ranked out of scores of single outputs, by comparisons as people do it or by the mean.

    W[s, i, j] = sign(S_is - S_js)    for the scores S_is of system i on sentence (prompt) s
    expected_wins   r_i = 1/(M-1) sum_j wins(i, j) / (wins(i, j) + wins(j, i)), ties ignored, 1/2 where all are ties
    trueskill       two-player TrueSkill over sentences in order, pairs i < j in order: mu 0, sigma 0.5, beta 0.25, no
                    dynamics, ties of probability 0.25; the rating is mu
    bradley_terry   P(i beats j) = sigmoid(r_i - r_j) by maximum likelihood, ties half a win each
    mean            the mean score of a system's outputs

arXiv 2502.09416: people's rankings of systems are made from comparisons, so a metric whose scores are averaged is not
ranked as people rank; a few outliers move a mean and no sign. A score of nan is missing: its comparisons count for nobody
(the paper's code counts a missing one as a win of both sides in expected wins, and divides by zero where two systems
always tie). A metric of a whole corpus, such as accumulated F0.5, is not the mean of its sentences: give sentence scores.

Rows: `score`, `system`, `prompt`. TrueSkill depends on the order of the sentences, which is that of the file; `shuffles`
averages over so many random orders. Intervals are percentiles over resampled prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from trueline.errors import TruelineError
from trueline.intervals import bootstrap_mean
from trueline.measure._ratings import readings
from trueline.measure.contract import Reading, measure
from trueline.ratings import Matches, rate


@measure(takes="table", arxiv="2502.09416", paper="Rethinking Evaluation Metrics for Grammatical Error Correction")
def aggregated_ratings(
    score_R: Sequence[float],
    system_R: Sequence[str],
    clusters: Sequence[Hashable],
    *,
    method: Literal["expected_wins", "trueskill", "bradley_terry", "mean"] = "trueskill",
    ridge: float = 0.0,
    shuffles: int = 0,
    resamples: int = 1000,
) -> list[Reading]:
    """score_R: of each output, higher is better, nan where it is missing; system_R: who wrote it; clusters: prompts."""
    one_length("aggregated_ratings", score=score_R, system=system_R, prompt=clusters)
    if method != "mean":
        matches = Matches.from_scores(score_R, system_R, clusters)
        return readings(rate(matches, method, ridge=ridge, shuffles=shuffles, resamples=resamples))
    if ridge or shuffles:
        raise TruelineError("aggregated_ratings: ridge and shuffles have no effect on a mean. Leave them out.")
    return _means(np.asarray(score_R, dtype=float), system_R, resamples)


def one_length(name: str, **columns: Sequence[object]) -> None:
    """Refuse columns of different lengths, or without rows."""
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        found = ", ".join(f"{n} {key}" for key, n in lengths.items())
        raise TruelineError(f"{name} needs columns of one length, and at least one row; found {found}.")


def _means(score_R: np.ndarray, system_R: Sequence[str], resamples: int) -> list[Reading]:
    rows: dict[str, list[float]] = {}
    for value, system in zip(score_R.tolist(), system_R, strict=True):
        if not np.isnan(value):
            rows.setdefault(system, []).append(value)
    if empty := set(system_R) - set(rows):
        raise TruelineError(f"aggregated_ratings: {', '.join(sorted(empty))} has no score at all.")
    made = []
    for system, values in rows.items():
        name, value = f"rating/{system}", float(np.mean(values))
        if resamples and len(values) > 1:
            interval = bootstrap_mean(values, resamples=resamples)
            made.append(Reading.of_interval(name, interval, unit="score"))
        else:
            made.append(Reading(name, value, None, None, len(values), "score"))
    return sorted(made, key=lambda reading: -reading.value)
