"""Extraction of alignment data: how much of a training set a model says again when given nothing but the chat template.

Samples from the bare template are compared with the training texts by the cosine of their embeddings (arXiv
2510.18554). For each sample the nearest training text counts:

    semantic_rate = share of samples with cosine >= threshold      string_rate = share with Indel similarity >= string_threshold
    excess        = semantic_rate against the training set - the same against a control set that was never trained on
    undercount    = semantic_rate / string_rate: how much string matching misses
    coverage      = share of the training texts that are the nearest, at the threshold or above, of some sample

Without a control nothing follows: texts on one topic are near each other anyway, and embeddings of some models have
cosines above 0.8 for any two texts. So the excess is the reading to look at, and the threshold wants calibration on
random pairs. 0.95 is the value given in a review of the paper. Indel similarity is 1 - (insertions and deletions) /
(both lengths), of the same nearest text. Items: the rate at every threshold from 0.5 to 1 (never rising), then the
nearest texts.

From a model: `--data TRAIN CONTROL` (texts or prompts; a column `part` with train and control in one file will do)
and as many draws as --samples says; `--model-b` embeds (mean state of its last layer), the model itself where there
is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trueline.errors import TruelineError
from trueline.intervals import wilson
from trueline.measure.contract import Reading, columns, measure

CURVE = tuple(round(0.5 + 0.02 * i, 2) for i in range(26))


@measure(takes="extracted", arxiv="2510.18554", paper="Extracting alignment data in open models")
def extraction(
    similarity_S: Sequence[float],
    nearest_S: Sequence[int],
    string_S: Sequence[float] | None = None,
    control_similarity_S: Sequence[float] | None = None,
    text_S: Sequence[str] | None = None,
    nearest_text_S: Sequence[str] | None = None,
    training_texts_S: Sequence[int] | None = None,
    *,
    threshold: float = 0.95,
    string_threshold: float = 0.9,
) -> list[Reading]:
    """A row a sample: cosine to its nearest training text and to its nearest control text, and which text that is.

    training_texts_S: how many training texts there are, the same number in every row.
    """
    if not -1 <= threshold <= 1 or not 0 <= string_threshold <= 1:
        raise TruelineError(f"threshold {threshold:g}, string_threshold {string_threshold:g}: a cosine and a share.")
    similarity, nearest = columns("extraction", similarity=similarity_S, nearest=nearest_S)
    n = len(similarity)
    hit = similarity >= threshold
    found = [Reading.of_interval("semantic_rate", wilson(int(hit.sum()), n), unit="share", scope="samples")]
    curve: list[dict[str, Any]] = [{"threshold": t, "rate": float((similarity >= t).mean())} for t in CURVE]
    if control_similarity_S is not None:
        control = columns("extraction", similarity=similarity, control_similarity=control_similarity_S)[1]
        for row in curve:
            row["control_rate"] = float((control >= row["threshold"]).mean())
        excess = Reading.of_mean("excess", (hit.astype(float) - (control >= threshold)).tolist(), unit="share")
        found.append(replace(excess, scope="samples"))
        rate = wilson(int((control >= threshold).sum()), n)
        found.append(Reading.of_interval("control_rate", rate, unit="share", scope="samples"))
    if string_S is not None:
        alike = columns("extraction", similarity=similarity, string=string_S)[1] >= string_threshold
        found.append(Reading.of_interval("string_rate", wilson(int(alike.sum()), n), unit="share", scope="samples"))
        if alike.any():
            found.append(Reading("undercount", float(hit.sum() / alike.sum()), None, None, n, "ratio", "samples"))
    if training_texts_S is not None:
        total = set(map(int, training_texts_S))
        if len(total) != 1 or min(total) <= nearest.max():
            raise TruelineError(
                f"training_texts is {sorted(total)}; expected one number above every 'nearest' ({nearest.max():g})."
            )
        share = wilson(len(set(nearest[hit].astype(int).tolist())), total.pop())
        found.append(Reading("coverage", share.value, None, None, share.n, "share", "samples"))
    order = np.argsort(-similarity, kind="stable")
    rows = [_row(int(i), similarity, nearest, string_S, text_S, nearest_text_S) for i in order]
    return [replace(found[0], items=tuple(curve + rows)), *found[1:]]


def _row(
    i: int,
    similarity: np.ndarray,
    nearest: np.ndarray,
    strings: Sequence[float] | None,
    texts: Sequence[str] | None,
    others: Sequence[str] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"sample": i, "similarity": float(similarity[i]), "nearest": int(nearest[i])}
    row |= {} if strings is None else {"string": float(strings[i])}
    row |= {} if texts is None else {"text": texts[i][:300]}
    return row | ({} if others is None else {"training_text": others[i][:300]})


def indel_similarity(a: str, b: str) -> float:
    """2 LCS / (|a| + |b|), which is 1 - insertions and deletions over both lengths; 1 for two empty texts.

    The longest common subsequence by bit-parallel dynamic programming (Hyyro 2004), a machine word being a whole text.
    """
    if not a or not b:
        return float(a == b)
    where: dict[str, int] = {}
    for i, character in enumerate(a):
        where[character] = where.get(character, 0) | (1 << i)
    full = (1 << len(a)) - 1
    row = full
    for character in b:
        matched = row & where.get(character, 0)
        row = ((row + matched) | (row - matched)) & full
    common = len(a) - row.bit_count()
    return 2 * common / (len(a) + len(b))
