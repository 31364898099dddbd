"""Token-distribution shift: where an aligned model says something that its base model would not.

At every position of the aligned model's greedy response, eta is the rank in the base model's distribution, under the
same context, of the token that the aligned model chose (arXiv 2312.01552):

    unshifted eta = 1      marginal 1 < eta <= 3      shifted eta > 3

`unshifted`, `marginal` and `shifted` are shares of positions, `kl` the mean KL(aligned || base) a position in nats,
and `base_probability` the base's mean probability of the chosen token. Tokens of one prompt are resampled together.
`early` positions (the first `early` of each response) have readings of their own, as the shift fades along a
response. Items are the tokens most often shifted. Ranks count tokens that are strictly likelier, so a tie is no
shift. The comparison has a direction: base and aligned swapped is another measurement. Both models must have one
vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from trueline.errors import TruelineError
from trueline.intervals import bootstrap_ratio
from trueline.measure.contract import Reading, measure

MARGINAL = 3


@measure(takes="token_ranks", arxiv="2312.01552", paper="The Unlocking Spell on Base LLMs (URIAL)")
def token_shift(
    rank_RT: Sequence[Sequence[float]],
    clusters: Sequence[Hashable] | None = None,
    kl_RT: Sequence[Sequence[float]] | None = None,
    base_logp_RT: Sequence[Sequence[float]] | None = None,
    token_RT: Sequence[Sequence[str]] | None = None,
    *,
    early: int = 5,
) -> list[Reading]:
    """rank_RT: eta at every position, from 1, a list a response. kl_RT, base_logp_RT and token_RT match it."""
    if not len(rank_RT) or not all(len(row) for row in rank_RT):
        raise TruelineError("token_shift needs responses, and one token at least in each.")
    if early < 1:
        raise TruelineError(f"early is {early}; expected a number of positions from 1.")
    for name, other in (("kl", kl_RT), ("base_logp", base_logp_RT), ("token", token_RT)):
        if other is not None and [len(r) for r in other] != [len(r) for r in rank_RT]:
            raise TruelineError(f"token_shift: '{name}' has not as many entries as 'rank' in every response.")
    ranks = [np.asarray(row, dtype=float) for row in rank_RT]
    bad = next((i for i, r in enumerate(ranks) if not np.isfinite(r).all() or r.min() < 1), None)
    if bad is not None:
        raise TruelineError(f"token_shift: response {bad} has a rank that is not a number from 1.")
    found = []
    for suffix, cut in (("", None), ("/early", early)):
        parts = [r[:cut] for r in ranks]
        for name, low, high in (
            ("unshifted", 1.0, 1.0),
            ("marginal", 1.0 + 1e-9, MARGINAL),
            ("shifted", MARGINAL + 1e-9, np.inf),
        ):
            hits = [float(((r >= low) & (r <= high)).sum()) for r in parts]
            found.append(_ratio(name + suffix, hits, [len(r) for r in parts], clusters, "share", (0.0, 1.0)))
        if kl_RT is not None:
            sums = [float(np.sum(row[:cut])) for row in kl_RT]
            found.append(_ratio("kl" + suffix, sums, [len(r) for r in parts], clusters, "nats/token", None))
        if base_logp_RT is not None:
            sums = [float(np.exp(row[:cut]).sum()) for row in base_logp_RT]
            found.append(
                _ratio("base_probability" + suffix, sums, [len(r) for r in parts], clusters, "probability", (0.0, 1.0))
            )
    return [replace(found[0], items=_shifted(ranks, token_RT)), *found[1:]]


def _ratio(
    name: str,
    sums: list[float],
    counts: list[int],
    clusters: Sequence[Hashable] | None,
    unit: str,
    bounds: tuple[float, float] | None,
) -> Reading:
    """Tokens of all responses to a prompt together; the interval is over prompts."""
    total: dict[Hashable, list[float]] = {}
    for i, (s, c) in enumerate(zip(sums, counts, strict=True)):
        held = total.setdefault(i if clusters is None else clusters[i], [0.0, 0.0])
        held[0] += s
        held[1] += c
    tops, bottoms = zip(*total.values(), strict=True)
    if len(total) == 1:
        return Reading(name, tops[0] / bottoms[0], None, None, 1, unit)
    return Reading.of_interval(name, bootstrap_ratio(tops, bottoms, bounds=bounds), unit=unit)


def _shifted(ranks: list[np.ndarray], tokens: Sequence[Sequence[str]] | None) -> tuple[dict[str, object], ...]:
    """Tokens by how often they were shifted, with how often they were said."""
    if tokens is None:
        return ()
    shifted: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for row, names in zip(ranks, tokens, strict=True):
        said.update(names)
        shifted.update(t for t, r in zip(names, row, strict=True) if r > MARGINAL)
    return tuple({"token": t, "shifted": n, "said": said[t]} for t, n in shifted.most_common(100))
