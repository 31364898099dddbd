"""Corrections: {"question", "answer", "correction"}, as Aligner's data have it (arXiv 2402.02416).

The prompt is what a corrector reads before it writes (`trueline/corrections.py`), the correction the demonstrated response. A correction equal to
its answer is a copy, which the warm-up consists of. template: "aligner" (default) or "aligners", the same in the whole file.
"""

from trueline.corrections import DEFAULT, corrector_prompt
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row, Unusable


def read(row: Row) -> Group:
    question = row.text("question")
    if not question.strip():
        raise Unusable("empty prompt", "question")
    template = row.text("template") if row.has("template") else DEFAULT
    try:
        prompt = corrector_prompt(question, row.response("answer"), template)
    except TruelineError as error:
        raise TruelineError(f"{row.place}: {error}") from None
    return row.group(prompt, [Response(text=row.response("correction"), rank=0)])


FORMAT = Format("corrections", ("question", "answer", "correction"), read, uses=("template",))
