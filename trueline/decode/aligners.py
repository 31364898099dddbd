"""Aligners: a squad of correctors, each for one criterion and asked only where its inspector sees a need (arXiv 2403.04224).

    per answer: score it by every inspector; in ascending order of these scores, correct it by the aligner of each inspector whose
    score is below the threshold, and score again after every correction

The order is the answer's own. (The released code orders by the batch's mean scores, so that an answer depends on what stands beside
it, and ends generation at a full stop; neither is done here.) squad: 'CORRECTOR:INSPECTOR ...', second models and rewards of the
engine by name. threshold 0.5; 0 accepts everything, above 1 applies every aligner once. Inspectors are classifiers trained on the same
synthetic data (`python -m trueline.corrections` writes it); data of that kind is easy, and they are overconfident.
"""

from __future__ import annotations

from trueline.corrections import corrector_prompt, question_of
from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Loop, Steps
from trueline.decoding.rewriting import candidate, inspect, second_model, written
from trueline.errors import TruelineError


@decoder(
    unit="rewrite",
    hook="rewrite",
    needs="text",
    stage="post",
    arxiv="2403.04224",
    paper="Aligners: Decoupling LLMs and Alignment",
)
def aligners(
    loop: Loop, draft: Line, *, squad: str = "corrector:inspector", threshold: float = 0.5, template: str = "aligners", greedy: bool = True
) -> Steps:  # fmt: skip
    """squad: pairs CORRECTOR:INSPECTOR. threshold: probability from which an inspector accepts. template: what correctors read, aligners or
    aligner. greedy: take their likeliest tokens instead of drawing at the request's law."""
    members = [tuple(pair.split(":")) for pair in squad.split()]
    if not members or any(len(pair) != 2 or not all(pair) for pair in members):
        raise TruelineError(
            f"aligners.squad is {squad!r}; expected pairs such as 'ethical:ethics_judge factual:fact_judge'."
        )
    question = question_of(loop.request.prompt) or loop.tokenizer.decode(loop.prompt_ids, skip_special_tokens=True)
    loop.details["draft"] = loop.text_of(draft)
    ids, line = list(draft.new), draft
    scores: dict[str, float] = {}
    for model, inspector in members:
        second_model(loop, model)
        scores[inspector] = yield from inspect(loop, line, inspector)
    said = [dict(scores)]
    applied = []
    for model, inspector in sorted(members, key=lambda member: scores[member[1]]):
        if scores[inspector] >= threshold:
            continue
        corrected = yield from written(
            loop, model, corrector_prompt(question, loop.text_of(line), template), loop.limit, greedy=greedy
        )
        ids, line = list(corrected.new), candidate(loop, corrected.new)
        applied.append(model)
        for _, other in members:
            scores[other] = yield from inspect(loop, line, other)
        said.append(dict(scores))
    loop.details |= {"inspectors": said, "applied": applied, "changed": ids != draft.new}
    if ids != draft.new:
        yield from loop.replace(ids)
