"""Length filters: rows whose responses are neither too short nor too long, and pairs that length alone does not decide.

Lengths are characters, words or, with a ratio, the longer response over the shorter one of a pair. A pair in which one
response is several times as long teaches length first of all: length-controlled evaluation (arXiv 2404.04475) exists because
judges and reward models learn it. `maximum_ratio` drops such pairs. The score is the length of the better response in `unit`,
shortest first, so that a budget takes the shortest; `order` longest turns it round. All bounds are off by default.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from trueline.curate.contract import Pool, Scored, curator, pairs_of
from trueline.errors import TruelineError
from trueline.groups import response_text


@curator(kind="select", reads="any", model="none", paper="Length filter")
def length(
    pool: Pool,
    *,
    unit: Literal["characters", "words"] = "characters",
    minimum: int = 0,
    maximum: int | None = None,
    maximum_ratio: float | None = None,
    order: Literal["shortest", "longest"] = "shortest",
) -> Scored:
    if maximum is not None and maximum < minimum:
        raise TruelineError(f"length.maximum {maximum} is below minimum {minimum}.")
    if maximum_ratio is not None and maximum_ratio < 1:
        raise TruelineError(f"length.maximum_ratio is {maximum_ratio:g}; the longer over the shorter is at least 1.")
    measure = len if unit == "characters" else lambda text: len(text.split())
    best, least, most, pairs = [], [], [], []
    for batch in pool.batches():
        for group in batch:
            sizes = [measure(response_text(r)) for r in group.responses]
            pair = pairs_of(group)
            first = pair[0] if pair else group.responses[0] if sizes else None
            best.append(np.nan if first is None else measure(response_text(first)))
            least.append(min(sizes, default=0))
            most.append(max(sizes, default=0))
            pairs.append(len(sizes) > 1)
    shortest_N, longest_N = np.array(least, dtype=np.float64), np.array(most, dtype=np.float64)
    ratio_N = np.where(pairs, longest_N / np.maximum(shortest_N, 1), np.nan)
    dropped = {"a response below the minimum length": shortest_N < minimum}
    if maximum is not None:
        dropped["a response above the maximum length"] = longest_N > maximum
    if maximum_ratio is not None:
        if not any(pairs):
            raise TruelineError(
                "length.maximum_ratio compares the responses of a row, and no row has two. Leave it out."
            )
        dropped["one response much longer than another"] = np.nan_to_num(ratio_N, nan=1.0) > maximum_ratio
    return Scored(
        np.array(best, dtype=np.float64),
        order="ascending" if order == "shortest" else "descending",
        dropped=dropped,
        columns={"shortest": shortest_N, "longest": longest_N, "ratio": ratio_N},
    )
