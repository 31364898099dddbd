"""UltraFeedback as published (arXiv 2310.01377): {"instruction", "completions": [{"response", ...}, ...]}.

One group of all completions. The reward is `fine-grained_score` (the mean of the aspect ratings) and, only where that is
absent, `overall_score`, whose tenfold scores for some bad responses are a known fault of the published set. A
group in which any completion has no score has no rewards and no ranks.
"""

import math
from collections.abc import Mapping
from typing import Any

from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row, Unusable, answer, ask, differ


def read(row: Row) -> Group:
    responses = []
    for i, item in enumerate(row.items("completions")):
        if not isinstance(item, Mapping) or "response" not in item:
            raise row.wrong_type(f"completions[{i}]", item, "an object with 'response'")
        text = row.as_text(item["response"] or "", f"completions[{i}].response")
        if not text.strip():
            row.note("empty completion left out of its group", f"completion {i + 1}")
            continue
        responses.append(_response(row, i, item, text))
    if not responses:
        raise Unusable("empty response", "no completion has a text")
    differ(responses)
    if any(r.reward is None for r in responses):
        row.note("a completion has no score")
        for response in responses:
            response.reward = None
    else:
        responses.sort(key=lambda r: -(r.reward or 0.0))
        levels = sorted({r.reward for r in responses if r.reward is not None}, reverse=True)
        for response in responses:
            response.rank = levels.index(response.reward or 0.0)
    return row.group(ask(row.text("instruction")), responses)


def _response(row: Row, i: int, item: Mapping[str, Any], text: str) -> Response:
    response = answer([{"role": "assistant", "content": text}])
    score = item.get("fine-grained_score")
    score = item.get("overall_score") if score is None else score
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise row.wrong_type(f"completions[{i}].score", score, "a number")
        if not math.isfinite(score):
            raise Unusable("score is not finite", f"completion {i + 1}: {score}")
        response.reward = float(score)
    if isinstance(item.get("critique"), str):
        response.judgment = item["critique"]
    response.source = str(item.get("model") or "data")
    return response


FORMAT = Format("UltraFeedback", ("instruction", "completions"), read)
