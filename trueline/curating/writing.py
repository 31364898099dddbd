"""Groups as rows of the usual types, with what must not get lost of the row that they came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trueline.curating.manifest import KINDS
from trueline.errors import TruelineError
from trueline.groups import Group, Message, Prompt, Response

PARENT = "curate_parent"


def row_of(group: Group) -> dict[str, Any]:
    """A preference row, a demonstration or a prompt; messages stay messages, text stays text."""
    responses = group.responses
    if not responses:
        return {"prompt": group.prompt}
    said = [r.text if isinstance(group.prompt, str) else _said(r) for r in responses]
    if len(responses) == 1:
        kept = {"prompt": group.prompt, "completion": said[0]}
        return kept if responses[0].label is None else {**kept, "label": responses[0].label}
    ranks = [r.rank for r in responses]
    if len(responses) == 2 and ranks == [0, 1]:
        return {"prompt": group.prompt, "chosen": said[0], "rejected": said[1]}
    raise TruelineError(
        f"{group.origin}: a row with {len(responses)} responses and the ranks {ranks} has no plain form. Give pairs, "
        "demonstrations or prompts."
    )


def from_parent(group: Group) -> dict[str, Any]:
    """Licence, origin and personal columns of the row something was made from, and its place."""
    carried = {k: v for k, v in group.extras.items() if any(p.search(k) for p in KINDS.values())}
    return {**carried, PARENT: group.origin}


def with_texts(group: Group, prompt: Prompt, texts: list[str]) -> Group:
    """The same group with other words: a new prompt and one text a response."""
    responses = [
        replace(r, text=t, messages=None if isinstance(prompt, str) else [{"role": "assistant", "content": t}])
        for r, t in zip(group.responses, texts, strict=True)
    ]
    return replace(group, prompt=prompt, responses=responses)


def repeats(prompts: list[str], before: dict[str, int]) -> list[int]:
    """How often each prompt was asked before, counted in `before`: the same examples drawn twice are not the same draw."""
    found = []
    for prompt in prompts:
        found.append(before.get(prompt, 0))
        before[prompt] = found[-1] + 1
    return found


def _said(response: Response) -> list[Message]:
    return response.messages or [{"role": "assistant", "content": response.text}]
