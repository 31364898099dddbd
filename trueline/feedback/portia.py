"""PORTIA, a judge without position bias by splitting: `portia:MODEL@URL` (OpenAI-compatible) or `portia:PATH`.

    both orders agree                              the verdict stands (two questions)
    cut at equal lengths, parts shown in turn      it stands if both orders agree now (four)
    cut so that matching parts are most alike      the same (six); a tie if they still do not

arXiv 2310.01432. Every two responses of a group are compared in both orders: P[i][j] in {0, 1/2, 1}, reward_i = mean over j
of P[i][j], as by `judge`. Responses whose two orders disagree are cut into `parts` at sentence ends (code blocks and lists
stay whole; fewer parts where a response has fewer sentences) and shown as A1 B1 A2 B2 ... What is asked is `form`: relation
(A, B or tie), score (two ratings of 1 to 10) or likert (1 to 5); the last two are read as who is better. Parts are likened
by the words they share. Steps and defaults (3 parts) follow the paper's description, the wording of the questions is ours.

Counters: comparisons, split (asked again in parts), fixed (agreed then), malformed answers, and those of an endpoint, whose
`concurrency`, `timeout`, `retries` and `cache` are as for `judge`.
"""

from __future__ import annotations

from typing import Literal

from trueline.feedback.contract import Feedback, FeedbackContext, Judging, feedback


@feedback(arxiv="2310.01432", paper="Split and Merge (PORTIA)", argument="MODEL@URL or PATH")
def portia(
    context: FeedbackContext,
    argument: str,
    *,
    parts: int = 3,
    form: Literal["relation", "score", "likert"] = "relation",
    temperature: float = 0.0,
    max_tokens: int = 1024,
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 6,
    cache: str | None = None,
) -> Feedback:
    from trueline.feedback._asker import open_asker
    from trueline.feedback._judging import Remote
    from trueline.feedback._preferences import Comparison, fill_preferences
    from trueline.feedback._split_merge import SplitMerge
    from trueline.groups import Group, prompt_text

    endpoint = {"concurrency": concurrency, "timeout": timeout, "retries": retries, "cache": cache}
    asker = open_asker("portia", argument, context, temperature=temperature, max_tokens=max_tokens, endpoint=endpoint)
    calibrated = SplitMerge(asker, form, parts)
    if isinstance(asker, Remote):  # one dict for all counts
        calibrated.counters |= asker.endpoint.counters
        asker.endpoint.counters = calibrated.counters

    def compare(pairs: list[Comparison]) -> list[float | None]:
        return [c.verdict for c in calibrated.judge([(prompt_text(p.group.prompt), *p.texts) for p in pairs])]

    def judge(groups: list[Group]) -> None:
        fill_preferences(groups, compare, f"The judge portia:{argument}")

    return Judging(judge, calibrated.counters, relative=True)
