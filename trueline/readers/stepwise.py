"""Stepwise supervision (TRL): {"prompt", "completions": [step, ...], "labels": [bool, ...]}.

Read as one thumb, as TRL's own conversion does: the steps joined without a separator are the response, and it is good
where every step is. The steps and their labels stay in `extras["steps"]` and `extras["step_labels"]`.
"""

from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row, Unusable


def read(row: Row) -> Group:
    steps = [row.as_text(step, f"completions[{i}]") for i, step in enumerate(row.items("completions"))]
    labels = [row.as_flag(label, f"labels[{i}]") for i, label in enumerate(row.items("labels"))]
    if len(steps) != len(labels):
        raise TruelineError(f"{row.place}: {len(steps)} completions but {len(labels)} labels. Give one label a step.")
    text = "".join(steps)
    if not text.strip():
        raise Unusable("empty response", f"{len(steps)} steps")
    return row.group(row.text("prompt"), [Response(text=text, label=all(labels))], steps=steps, step_labels=labels)


FORMAT = Format("stepwise supervision", ("prompt", "completions", "labels"), read)
