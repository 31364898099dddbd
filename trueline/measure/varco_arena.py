"""Varco Arena: a tournament a prompt between all systems, and Bradley-Terry ratings from all its matches.

    P(A beats B) = 1 / (1 + 10^((R_B - R_A) / 400)),   R by maximum likelihood over all matches, mean 1000

arXiv 2411.01281. Per prompt the systems are shuffled and meet in a single elimination (the list is halved until one is
left), so M systems on N prompts cost (M - 1) N comparisons, where a round robin costs M (M - 1) / 2 N. A tie is logged as
a tie (half a win for each) and a draw decides who goes on; so it is where the judge gave no verdict, which is counted and
rated for nobody. The paper's own ratings are the same maximum; its tie rule and its way to add a system are not known to
us: `trueline.tournament.insertion` adds one by a binary search over the ranking on every prompt.

With `--feedback JUDGE` the tournament is played on a file with `prompt` and `outputs` (system to text), or with
`prompt`, `system` and `response`; `--seed` draws the brackets. Otherwise a row is a match: `first`, `second`, `share`,
`prompt` and, where it is there, `advanced` (who went on); a log that is no tournament is refused.

Good systems play more matches than weak ones, so intervals resample prompts, never matches. Where a system never lost no
finite ratings fit best: refused, unless a `ridge` (the precision of a normal prior on the logits) holds them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from trueline.errors import TruelineError
from trueline.measure._ratings import readings
from trueline.measure.contract import Reading, measure
from trueline.ratings import Matches, rate


@measure(takes="tournament", arxiv="2411.01281", paper="VARCO Arena: A Tournament Approach to Benchmarking LLMs")
def varco_arena(
    first_K: Sequence[str],
    second_K: Sequence[str],
    share_K: Sequence[float],
    clusters: Sequence[Hashable],
    advanced_K: Sequence[str] | None = None,
    *,
    ridge: float = 0.0,
    resamples: int = 1000,
) -> list[Reading]:
    """first_K, second_K: the systems of each match; share_K: the first one's share; clusters: prompts; advanced_K: who
    went on."""
    matches = Matches.of(first_K, second_K, share_K, clusters)
    _refuse_no_tournament(first_K, second_K, share_K, clusters, advanced_K)
    return readings(rate(matches, "elo", ridge=ridge, resamples=resamples))


def _refuse_no_tournament(
    first: Sequence[str],
    second: Sequence[str],
    share: Sequence[float],
    prompts: Sequence[Hashable],
    advanced: Sequence[str] | None,
) -> None:
    """Every prompt: systems - 1 matches, and each system but one out exactly once."""
    systems = set(first) | set(second)
    if advanced is not None and len(advanced) != len(first):
        raise TruelineError(f"varco_arena: {len(first)} matches, and {len(advanced)} values of 'advanced'.")
    out: dict[Hashable, list[str | None]] = {}
    for k, prompt in enumerate(prompts):
        on = advanced[k] if advanced is not None else None
        if on is not None and on not in (first[k], second[k]):
            raise TruelineError(f"varco_arena, match {k}: '{on}' went on, and '{first[k]}' met '{second[k]}'.")
        won = first[k] if share[k] > 0.5 else second[k] if share[k] < 0.5 else None
        if on is not None and won is not None and on != won:
            raise TruelineError(f"varco_arena, match {k}: '{won}' won, and '{on}' went on.")
        on = on or won  # a tie without 'advanced' does not say who is out
        out.setdefault(prompt, []).append(None if on is None else second[k] if on == first[k] else first[k])
    for prompt, losers in out.items():
        known = [name for name in losers if name is not None]
        if len(losers) != len(systems) - 1 or len(set(known)) != len(known):
            raise TruelineError(
                f"varco_arena, prompt {prompt!r}: {len(losers)} matches of {len(systems)} systems, "
                f"{len(known) - len(set(known))} of them out more than once. A tournament has {len(systems) - 1}, and each "
                "system but one is out once. Rate other matches with `trueline measure ratings --method elo`."
            )
