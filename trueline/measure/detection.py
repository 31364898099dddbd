"""Detection: how well a judge tells aligned from misaligned responses, one by one.

    precision, recall, F1 of the misaligned at the threshold (flagged where the judge's score is below it), and AUROC

The detection block of an evaluation framework for alignment techniques: what is being caught are the responses that
are *not* aligned (label 0). AUROC needs no threshold. A precision without any flagged response, and a recall without
any misaligned one, do not exist and are left out. Wilson's intervals.

From a judge: `--feedback` scores rows with a thumbs label (prompt, completion, label).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueline.errors import TruelineError
from trueline.intervals import wilson
from trueline.measure.contract import Reading, columns, measure


@measure(takes="labelled_rewards", paper="A framework of detection, quality, efficiency and robustness")
def detection(score_R: Sequence[float], label_R: Sequence[float], *, threshold: float = 0.0) -> list[Reading]:
    """score_R: a judge's score, higher for better. label_R: 1 for an aligned response, 0 for a misaligned one."""
    score, label = columns("detection", score=score_R, label=label_R)
    if not np.isin(label, (0.0, 1.0)).all():
        raise TruelineError(
            f"A label is {label[~np.isin(label, (0.0, 1.0))][0]:g}; expected 1 (aligned) or 0 (misaligned)."
        )
    bad, flagged = label == 0, score < threshold
    hits = int((bad & flagged).sum())
    found = []
    if flagged.any():
        found.append(Reading.of_interval("precision", wilson(hits, int(flagged.sum())), unit="share"))
    if bad.any():
        found.append(Reading.of_interval("recall", wilson(hits, int(bad.sum())), unit="share"))
    if flagged.any() or bad.any():
        f1 = 2 * hits / (int(flagged.sum()) + int(bad.sum()))
        found.append(Reading("f1", f1, None, None, len(score), "share"))
    if 0 < bad.sum() < len(bad):
        from sklearn.metrics import roc_auc_score

        found.append(Reading("auroc", float(roc_auc_score(label, score)), None, None, len(score), "area"))
    if not found:
        raise TruelineError("Every response is labelled as aligned and none was flagged: there is nothing to detect.")
    items = tuple({"score": float(s), "label": int(y)} for s, y in zip(score, label, strict=True))
    return [replace(found[0], items=items, scope="responses"), *(replace(r, scope="responses") for r in found[1:])]
