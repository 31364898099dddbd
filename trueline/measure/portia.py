"""PORTIA: what splitting and merging two responses does to a judge that goes by position.

    consistency             P(both orders prefer the same response), before and after
    fixed_coverage          P(consistent after | inconsistent before)
    relative_gain           (consistency after - before) / before
    preference_for_first    P(the first was preferred in both orders | the orders disagree), before and after
    agreement               with a reference judge or people, before and after; orders that disagree are a tie

arXiv 2310.01432. A pair whose two orders agree is left as it is. Else both responses are cut into k parts at sentence
ends (length alignment, then the cut that makes corresponding parts most alike), the parts are shown alternately, and the
judge is asked again in both orders: at most six questions a pair. `trueline.feedback.portia` does it, as a judge of its
own for any use; there is the detail. What is repaired need not be right: a verdict can be consistent and wrong, so give
`human`.

Columns: `forward` (A's share standing first), `backward` (B's standing first), `portia_forward` and `portia_backward` (the
same after), `human` (A's share by the reference) and `prompt`; nan is no verdict. With `--feedback judge:MODEL@URL` (or
judge:PATH) and preference data they are made, with three parts. Intervals resample prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from trueline.intervals import wilson
from trueline.measure import _audit
from trueline.measure._judged import decision, shares, weighted_limits
from trueline.measure.contract import Reading, measure

POSITION = ("consistency", "preference_for_first")


@measure(takes="portia", arxiv="2310.01432", paper="Split and Merge: Aligning Position Biases in LLM-based Evaluators")
def portia(
    forward_P: Sequence[float],
    backward_P: Sequence[float],
    portia_forward_P: Sequence[float],
    portia_backward_P: Sequence[float],
    human_P: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> list[Reading]:
    """forward_P, backward_P: verdicts of the plain judge in both orders; portia_*: after splitting and merging."""
    before_f, before_b, after_f, after_b = shares(
        "portia",
        forward=forward_P,
        backward=backward_P,
        portia_forward=portia_forward_P,
        portia_backward=portia_backward_P,
    )
    both = ~np.isnan(before_f + before_b) & ~np.isnan(after_f + after_b)
    found = _audit.position(before_f, before_b, clusters, "before/") + _audit.position(
        after_f, after_b, clusters, "after/"
    )
    found = [r for r in found if r.name.split("/")[1] in (*POSITION, "no_verdict")]
    was, now = decision(before_f) == -decision(before_b), decision(after_f) == -decision(after_b)
    if (broken := both & ~was).any():
        rate = wilson(int((broken & now).sum()), int(broken.sum()))
        found.append(Reading.of_interval("fixed_coverage", rate, unit="share", scope="pairs"))

    def gain(weight: np.ndarray) -> float:
        rate = (weight * was)[both].sum()
        return float((weight * now)[both].sum() / rate - 1) if rate else float("nan")

    value = gain(np.ones(len(both)))
    if not np.isnan(value):
        low, high = weighted_limits(gain, clusters, len(both))
        found.append(Reading("relative_gain", value, low, high, int(both.sum()), "share"))
    if human_P is not None:
        (human, _) = shares("portia", human=human_P, forward=forward_P)
        for prefix, f, b in (("before/", before_f, before_b), ("after/", after_f, after_b)):
            found += _audit.agreement(_audit.merged(f, b), human, clusters, prefix)
    return found
