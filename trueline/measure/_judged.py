"""What measures of judges share: verdict columns, decisions, and percentile intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueline.errors import TruelineError

Array = NDArray[np.float64]


def shares(name: str, **columns: ArrayLike) -> list[Array]:
    """Columns of verdicts: shares in [0, 1] of one side, NaN where there is no verdict; equally long and not empty."""
    found = {key: np.asarray(values, dtype=float) for key, values in columns.items()}
    lengths = {key: len(values) for key, values in found.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise TruelineError(
            f"{name} needs columns of one length, and at least one row; found "
            f"{', '.join(f'{n} {key}' for key, n in lengths.items())}."
        )
    for key, values in found.items():
        bad = np.flatnonzero((values < 0) | (values > 1))
        if bad.size:
            raise TruelineError(
                f"{name}: '{key}' of row {bad[0]} is {values[bad[0]]:g}. A verdict is the share of one side, in [0, 1]: 1, 0, "
                "0.5 for a tie, nan where the judge gave none."
            )
    return list(found.values())


def decision(share: Array) -> Array:
    """1 for the side whose share it is, -1 for the other, 0 for a tie, NaN for no verdict."""
    return np.sign(share - 0.5)


def units(clusters: Sequence[Hashable] | None, count: int) -> NDArray[np.int64]:
    """The prompt of each row, as places in order of first appearance; every row its own where none are named."""
    if clusters is None:
        return np.arange(count)
    if len(clusters) != count:
        raise TruelineError(f"Every row needs its prompt; found {count} rows and {len(clusters)} prompts.")
    place: dict[Hashable, int] = {}
    return np.array([place.setdefault(c, len(place)) for c in clusters])


def limits(replicates: ArrayLike) -> tuple[float | None, float | None]:
    """95 % percentile limits of a statistic's bootstrap replicates.

    None where more than one in fifty are undefined (NaN) or infinite: the limits would be those of the rest.
    """
    values = np.asarray(replicates, dtype=float)
    known = values[np.isfinite(values)]
    if not len(known) or len(known) < 0.98 * len(values):
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def weighted_limits(
    statistic: Callable[[Array], float], clusters: Sequence[Hashable] | None, count: int, resamples: int = 1000
) -> tuple[float | None, float | None]:
    """Limits of a statistic of weighted rows, prompts resampled whole; None for a single prompt.

    statistic: how often each row was drawn [N] -> value.
    """
    unit_N = units(clusters, count)
    prompts = int(unit_N.max()) + 1
    if prompts < 2 or not resamples:
        return None, None
    rng = np.random.default_rng(0)
    drawn = (np.bincount(rng.integers(prompts, size=prompts), minlength=prompts) for _ in range(resamples))
    return limits([statistic(times[unit_N].astype(float)) for times in drawn])
