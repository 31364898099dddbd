"""Audit of a judge: does it go by position, by length, by its own hand, by the wording; does it agree with people.

Position, from verdicts in both orders (f: share of A standing first; b: share of B standing first):

    consistency            P(both orders prefer the same response)
    first_share            mean of (f + b) / 2: what whoever stands first gets; 1/2 without a bias
    preference_for_first   P(the first was preferred in both orders | the orders disagree)
    position_slope         b of logit P(first wins) = +-(quality difference) + b, that is 1/2 ln(first-first / second-second)

The slope is a conditional likelihood: given that both orders chose the same place, which one depends on b alone, whatever
the pair. It adds half a count to either side; its interval is Jeffreys', and that of preference_for_first Wilson's: both
take pairs for independent.

Length, with `length` and `other_length` (of A and B), from A's share over both orders:

    verbosity_slope        s of logit P(A) = s log2(L_A / L_B) + g (2 h - 1), h the human share of A
    longer_preferred       share of the longer response; by people; and the excess of the judge's over people's

Without people's preferences quality is not held, and a slope on length may be a merit of long responses: it is then called
verbosity_slope_unadjusted. A fit without a finite maximum is left out.

    self_preference        P(judge prefers it | people do, it is its own) - P(judge prefers it | people do, it is not)

is the equal-opportunity difference of arXiv 2410.21819; `own` says which response the judge wrote: first, second, both or
neither. `reworded` is a list of A's shares under wordings that mean the same:

    paraphrase_disagreement   share of pairs of wordings that decide differently
    paraphrase_deviation      standard deviation within a pair of responses;   paraphrase_reliability: ICC(1)

Agreement with `human` (A's share) of the verdict over both orders, in which orders that disagree are a tie: `agreement`
over A, B and tie; `agreement_without_ties` where people decided, a tie of the judge disagreeing; Cohen's kappa and
Krippendorff's alpha (nominal), left out where everybody says one thing. `agreement_one_order` is that of A first alone.

`no_verdict` is the share of pairs without a verdict in both orders (nan), which nothing else counts. With `--feedback
judge:MODEL@URL` (or judge:PATH) and preference data the columns are made: which response is A is drawn, lengths are in
characters, `own` comes from `chosen_model` and `rejected_model` where the data have them, and `reworded` from a list
`paraphrases` of the prompt. Intervals resample prompts. Judges with positions swapped: arXiv 2306.05685.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from trueline.errors import TruelineError
from trueline.measure import _audit
from trueline.measure._judged import shares
from trueline.measure.contract import Reading, columns, measure


@measure(takes="verdicts", arxiv="2306.05685", paper="Judging LLM-as-a-Judge")
def judge_audit(
    forward_P: Sequence[float],
    backward_P: Sequence[float],
    human_P: Sequence[float] | None = None,
    length_P: Sequence[float] | None = None,
    other_length_P: Sequence[float] | None = None,
    own_P: Sequence[str] | None = None,
    reworded_P: Sequence[Sequence[float]] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> list[Reading]:
    """forward_P: A's share standing first; backward_P: B's standing first; the others as in the module's text."""
    name = "judge_audit"
    human = None if human_P is None else shares(name, forward=forward_P, human=human_P)[1]
    forward, backward = shares(name, forward=forward_P, backward=backward_P)
    others = {"own": own_P, "reworded": reworded_P, "prompt": clusters}
    for key, values in others.items():
        if values is not None and len(values) != len(forward):
            raise TruelineError(f"{name}: {len(forward)} rows, and {len(values)} values of '{key}'.")
    found = _audit.position(forward, backward, clusters)
    share = _audit.merged(forward, backward)
    if (length_P is None) != (other_length_P is None):
        raise TruelineError(f"{name}: a length needs the other response's: give both 'length' and 'other_length'.")
    if length_P is not None and other_length_P is not None:
        length, other, _ = columns(name, length=length_P, other_length=other_length_P, forward=np.zeros(len(forward)))
        found += _audit.verbosity(share, length, other, human, clusters)
    if own_P is not None:
        if human is None:
            raise TruelineError(f"{name}: self-preference is measured against people's: give 'human' beside 'own'.")
        found += _audit.self_preference(share, human, own_P, clusters)
    if reworded_P is not None:
        found += _audit.dispersion(reworded_P, clusters)
    if human is not None:
        found += _audit.agreement(share, human, clusters)
        one = _audit.agreement(forward, human, clusters)[0]
        found.append(one.renamed("agreement_one_order"))
    items = tuple({"forward": f, "backward": b, "share": s} for f, b, s in zip(forward.tolist(), backward.tolist(), share.tolist(), strict=True))  # fmt: skip
    return [replace(found[0], items=items), *found[1:]]
