"""Aligner: a second model reads question and answer and writes the corrected answer (arXiv 2402.02416).

    pi'(y_c | x) = sum over y_o of mu(y_c | y_o, x) pi(y_o | x)

mu is the second model 'corrector', trained with the recipe aligner (`trueline/corrections.py`); it shares the policy's tokenizer. It ends
at its end token only. With an inspector, an answer whose probability of being aligned reaches the threshold is left byte for byte as it is.
drop_answer hides the answer from the corrector: what that loses is what it corrects rather than answers. rounds 2 corrects the
correction (a good corrector leaves it alone). details has the draft, whether it was changed, and the inspector's score.
"""

from __future__ import annotations

from trueline.corrections import corrector_prompt, question_of
from trueline.decode.contract import decoder
from trueline.decoding.lines import Line
from trueline.decoding.loop import Loop, Steps
from trueline.decoding.rewriting import candidate, inspect, written
from trueline.errors import TruelineError


@decoder(
    unit="rewrite", hook="rewrite", needs="text", stage="post", models="corrector", arxiv="2402.02416", paper="Aligner: Efficient Alignment by Learning to Correct"
)  # fmt: skip
def aligner(
    loop: Loop,
    draft: Line,
    *,
    template: str = "aligner",
    inspector: str = "",
    threshold: float = 0.5,
    greedy: bool = True,
    rounds: int = 1,
    drop_answer: bool = False,
) -> Steps:
    """template: what the corrector reads, aligner or aligners. inspector: a reward of the engine that says whether an answer is aligned.
    threshold: probability from which it is accepted. greedy: take the corrector's likeliest tokens instead of drawing at the
    request's law. rounds: corrections one after the other. drop_answer: show the corrector the question alone."""
    if rounds < 1:
        raise TruelineError(f"aligner.rounds is {rounds}; expected a whole number from 1 up.")
    if threshold != 0.5 and not inspector:
        raise TruelineError("aligner.threshold has no effect without an inspector. Name one, or leave it out.")
    question = question_of(loop.request.prompt) or loop.tokenizer.decode(loop.prompt_ids, skip_special_tokens=True)
    loop.details["draft"] = loop.text_of(draft)
    ids, line, scores = list(draft.new), draft, []
    for _ in range(rounds):
        if inspector:
            scores.append((yield from inspect(loop, line, inspector)))
            if scores[-1] >= threshold:
                break
        answer = "" if drop_answer else loop.text_of(line)
        corrected = yield from written(
            loop, "corrector", corrector_prompt(question, answer, template), loop.limit, greedy=greedy
        )
        ids = list(corrected.new)
        line = candidate(loop, ids)
    loop.details["changed"] = ids != draft.new
    if scores:
        loop.details["inspector"] = scores
    if ids != draft.new:
        yield from loop.replace(ids)
