"""Alignment Dimension Conflict: what a preference set's dimensions cost each other (Hummer, arXiv 2405.11647).

    Delta_ij = Eval_i(M_j) - Eval_i(M)           M: reward model on the mixture; M_j: M trained further on dimension j alone
    ADC = (1/K) sum_j (1/(K-1)) sum_{i != j} min(0, Delta_ij)^2

The second moment of the negative deviations is the paper's wording; the normalisation by K (K - 1) is our reading of it.
A row a cell: `trained` (j), `evaluated` (i), the accuracies `before` and `after`, and optionally `seed`, over which
deviations are averaged first. Squaring makes noise look like conflict: a cell without any has E[min(0, e)^2] = sigma^2 / 2,
where sigma is the standard error of its mean over seeds. Readings: `adc`, that `noise_floor`, `adc_above_floor` = max(0, adc -
floor), and `root_adc` in accuracy. Without at least two seeds there is no floor. The matrix Delta stands in the items.

Lower is less conflict. Two exactly opposite dimensions, with M at chance, give adc 1/4. Compare only sets with
equally many dimensions and evaluation rows, and with M_j trained for fixed steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, columns, measure


@measure(takes="table", arxiv="2405.11647", paper="Hummer: towards limited competitive preference data sets")
def alignment_dimension_conflict(
    trained: Sequence[str],
    evaluated: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    seed: Sequence[float] | None = None,
) -> list[Reading]:
    """Accuracies of M (before) and of M_j (after) for every ordered pair of dimensions, once a seed."""
    before_C, after_C = columns("alignment_dimension_conflict", before=before, after=after)
    names = sorted({*trained, *evaluated})
    if len(names) < 2:
        raise TruelineError(f"Conflict is between dimensions, and there is only {names}. Give two or more.")
    place = {name: i for i, name in enumerate(names)}
    seeds = sorted(set(seed)) if seed is not None else [0.0]
    delta_SKK = np.full((len(seeds), len(names), len(names)), np.nan)  # [seed, evaluated, trained]
    for c in range(len(before_C)):
        at = (seeds.index(seed[c]) if seed is not None else 0, place[evaluated[c]], place[trained[c]])
        if not np.isnan(delta_SKK[at]):
            raise TruelineError(
                f"Row {c + 1}: trained on '{trained[c]}', evaluated on '{evaluated[c]}' stands there twice for one seed."
            )
        delta_SKK[at] = after_C[c] - before_C[c]
    others = ~np.eye(len(names), dtype=bool)
    if np.isnan(delta_SKK[:, others]).any():
        s, i, j = (int(a[0]) for a in np.nonzero(np.isnan(np.where(others, delta_SKK, 0.0))))
        raise TruelineError(f"There is no row for trained '{names[j]}', evaluated '{names[i]}' (seed {seeds[s]:g}).")
    delta_KK = delta_SKK.mean(axis=0)
    adc = float(np.mean(np.minimum(0.0, delta_KK[others]) ** 2))
    n = int(others.sum())
    items = tuple(
        {"trained": names[j], "evaluated": names[i], "deviation": float(delta_KK[i, j])}
        for j in range(len(names)) for i in range(len(names)) if not np.isnan(delta_KK[i, j])
    )  # fmt: skip
    readings = [
        replace(Reading("adc", adc, None, None, n, "squared accuracy", "nothing else"), items=items),
        Reading("root_adc", adc**0.5, None, None, n, "accuracy", "nothing else"),
    ]
    if len(seeds) > 1:
        variance_KK = delta_SKK.var(axis=0, ddof=1) / len(seeds)
        floor = float(np.mean(variance_KK[others]) / 2)
        readings.append(Reading("noise_floor", floor, None, None, n, "squared accuracy", "nothing else"))
        readings.append(
            Reading("adc_above_floor", max(0.0, adc - floor), None, None, n, "squared accuracy", "nothing else")
        )
    return readings
