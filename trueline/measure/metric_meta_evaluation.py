"""Meta-evaluation: how well a metric's (or a judge's) scores agree with people, by output, by pair and by system.

    sentence_accuracy   agree / all,   sentence_kendall = (agree - disagree) / all
                        over pairs of systems on one prompt that one person did not tie; a tie of the metric disagrees
    sentence_pearson    correlation of both scores over all outputs
    system_pearson, system_spearman
                        correlation of system ratings, both sides rated by the same method from the same prompts

arXiv 2502.09416 (grammatical error correction; SEEDA's convention for ties) and AlignBench (arXiv 2311.18743: sample-level
and system-level Pearson, pairwise agreement without ties). The first paper's point is the mismatch of averaging a metric
and rating people's judgements by TrueSkill: here `method` rates both. Its code scores a metric's tie as 'the first system
loses', which agrees whenever the person prefers the second, so that the result depends on the order of the systems;
`ties` second_wins does the same, for replication, with systems in order of first appearance.

Rows: `score` (nan: missing), `human` (higher is better; give minus the rank where people ranked; nan: not judged),
`system`, `prompt`, and `annotator` where several people judged one output. People's matches are those of every annotator.
Systems are sorted by people's ratings for the windows: correlations among each `window` neighbours stand in the items of
system_pearson, where a metric that only tells good from bad systems falls to 0. A correlation of constant values is not
defined, and left out. Intervals resample prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.measure._judged import limits
from trueline.measure.aggregated_ratings import one_length
from trueline.measure.contract import Reading, measure
from trueline.measure.system_correlation import correlations, windows
from trueline.ratings import Matches, on_prompts, rate

Array = NDArray[np.float64]
NAMES = ("sentence_accuracy", "sentence_kendall", "sentence_pearson", "system_pearson", "system_spearman")


@measure(takes="table", arxiv="2502.09416", paper="Rethinking Evaluation Metrics for Grammatical Error Correction")
def metric_meta_evaluation(
    score_R: Sequence[float],
    human_R: Sequence[float],
    system_R: Sequence[str],
    clusters: Sequence[Hashable],
    annotator_R: Sequence[str] | None = None,
    *,
    method: Literal["expected_wins", "trueskill", "mean"] = "expected_wins",
    ties: Literal["disagree", "second_wins"] = "disagree",
    window: int = 4,
    resamples: int = 200,
) -> list[Reading]:
    """score_R, human_R: the metric's and a person's score of each output; system_R, clusters, annotator_R: whose output,
    to which prompt, judged by whom."""
    annotator = ["" for _ in score_R] if annotator_R is None else annotator_R
    one_length(
        "metric_meta_evaluation", score=score_R, human=human_R, system=system_R, prompt=clusters, annotator=annotator
    )
    table = _Table(np.asarray(score_R, dtype=float), np.asarray(human_R, dtype=float), system_R, clusters, annotator)
    agree, count = table.agreement(ties)
    if not count.sum():
        raise TruelineError(
            "metric_meta_evaluation: no person told two systems apart on any prompt, so there is nothing to agree with."
        )
    prompts = len(table.prompts)
    if resamples < 0 or resamples == 1:
        raise TruelineError(f"resamples is {resamples}; an interval needs many (200), and 0 means none.")
    drawn = np.random.default_rng(0).integers(prompts, size=(resamples if prompts > 1 else 0, prompts))
    drawn_RP = np.concatenate([np.arange(prompts)[None, :], np.sort(drawn, axis=1)])  # the first row is the estimate
    metric, human = table.ratings(drawn_RP, method)
    by_system = np.array([correlations(a, b) for a, b in zip(metric, human, strict=True)])
    with np.errstate(invalid="ignore"):
        accuracy = agree[drawn_RP].sum(axis=1) / count[drawn_RP].sum(axis=1)
    values = [accuracy, 2 * accuracy - 1, [table.pearson(d) for d in drawn_RP], by_system[:, 0], by_system[:, 1]]
    found = []
    for name, (value, *replicates) in zip(NAMES, values, strict=True):
        if not np.isnan(value):
            unit = "share" if name == "sentence_accuracy" else "correlation"
            found.append(Reading(name, float(value), *limits(replicates), prompts, unit))
    shown = windows(metric[0], human[0], window) if len(table.systems) >= window else []
    return [replace(r, items=tuple(shown)) if r.name == "system_pearson" else r for r in found]


class _Table:
    """The rows by prompt and, within each, by annotator. systems: in order of first appearance."""

    def __init__(
        self,
        score_R: Array,
        human_R: Array,
        system_R: Sequence[str],
        prompt_R: Sequence[Hashable],
        annotator_R: Sequence[str],
    ):
        self.score, self.human, self.system_R = score_R, human_R, system_R
        self.systems = list(dict.fromkeys(system_R))
        if len(self.systems) < 2:
            raise TruelineError(f"Systems are compared with each other; found {len(self.systems)}: {self.systems}.")
        scores: dict[tuple[Hashable, str], int] = {}
        seen: set[tuple[Hashable, str, str]] = set()
        judged: dict[Hashable, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, (prompt, system, who) in enumerate(zip(prompt_R, system_R, annotator_R, strict=True)):
            if (prompt, system, who) in seen:
                by = f" by '{who}'." if who else ". Several people's judgements need a column 'annotator'."
                raise TruelineError(f"Row {row}: '{system}' on {prompt!r} is judged twice{by}")
            seen.add((prompt, system, who))
            known = float(score_R[scores.setdefault((prompt, system), row)])
            if known != score_R[row] and not (np.isnan(known) and np.isnan(score_R[row])):
                raise TruelineError(
                    f"Row {row}: the score of '{system}' on {prompt!r} is {score_R[row]:g} here and {known:g} above. A "
                    "metric gives an output one score."
                )
            judged[prompt][who].append(row)
        self.prompts = list(judged)
        order = {system: i for i, system in enumerate(self.systems)}
        self.sets = [[sorted(rows, key=lambda r: order[system_R[r]]) for rows in judged[p].values()] for p in judged]
        first: dict[Hashable, list[int]] = {}
        for (prompt, _), row in scores.items():
            first.setdefault(prompt, []).append(row)
        self.outputs = [[sorted(first[p], key=lambda r: order[system_R[r]])] for p in self.prompts]

    def agreement(self, ties: str) -> tuple[Array, Array]:
        """Pairs that agree, and pairs that count, of each prompt."""
        agree, count = np.zeros(len(self.sets)), np.zeros(len(self.sets))
        for p, i, j in _pairs(self.sets):
            human, metric = np.sign(self.human[i] - self.human[j]), np.sign(self.score[i] - self.score[j])
            if np.isnan(human) or np.isnan(metric) or human == 0:
                continue
            if metric == 0 and ties == "second_wins":
                metric = -1
            count[p] += 1
            agree[p] += metric == human
        return agree, count

    def pearson(self, drawn_P: NDArray[np.int64]) -> float:
        """Of both scores over all judged outputs of these prompts."""
        rows = np.array([row for p in drawn_P for own in self.sets[p] for row in own])
        known = rows[~(np.isnan(self.score[rows]) | np.isnan(self.human[rows]))]
        return correlations(self.score[known], self.human[known])[0]

    def ratings(self, drawn_RP: NDArray[np.int64], method: str) -> tuple[Array, Array]:
        """The metric's and people's ratings of every system, [R, M] each, on these prompts."""
        return (
            self._rated(self.score, self.outputs, drawn_RP, method),
            self._rated(self.human, self.sets, drawn_RP, method),
        )

    def _rated(self, values: Array, sets: list[list[list[int]]], drawn_RP: NDArray[np.int64], method: str) -> Array:
        if method == "mean":
            place = {system: i for i, system in enumerate(self.systems)}
            sums, counts = (np.zeros((len(sets), len(self.systems))) for _ in range(2))
            for p, row in ((p, row) for p, judged in enumerate(sets) for rows in judged for row in rows):
                if not np.isnan(values[row]):
                    sums[p, place[self.system_R[row]]] += values[row]
                    counts[p, place[self.system_R[row]]] += 1
            with np.errstate(invalid="ignore"):
                return np.array([sums[d].sum(axis=0) / counts[d].sum(axis=0) for d in drawn_RP])
        met = [(p, i, j) for p, i, j in _pairs(sets) if not np.isnan(values[i] - values[j])]
        matches = Matches.of(
            [self.system_R[i] for _, i, _ in met],
            [self.system_R[j] for _, _, j in met],
            [float(1 + np.sign(values[i] - values[j])) / 2 for _, i, j in met],
            systems=self.systems,
        )
        # Units are the prompts of the table, also those where this side judged no two systems.
        matches = replace(matches, prompt_K=np.array([p for p, _, _ in met]), prompts=len(sets))
        rate(matches, method, resamples=0)  # refuses what cannot be rated
        return on_prompts(matches, method, drawn_RP)[0]


def _pairs(sets: list[list[list[int]]]) -> list[tuple[int, int, int]]:
    """(prompt, row, row) of every two systems that one person judged on one prompt."""
    return [
        (p, i, j) for p, judged in enumerate(sets) for rows in judged for k, i in enumerate(rows) for j in rows[k + 1 :]
    ]
