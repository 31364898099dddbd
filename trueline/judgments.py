"""Criticism in words, put into the prompt: what objectives that read judgments are conditioned on.

A judged response is scored twice, after its prompt and after the prompt that also holds its judgment. The second one is
made here, of the group's own text: the template fills the last user message of a conversation, or the whole of a
text prompt, and the chat template and tokenizer do the rest. The response keeps its ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trueline.errors import TruelineError
from trueline.groups import Audit, Group, Prompt, Response

FIELDS = ("{judgment}", "{prompt}")


def check_template(template: str) -> None:
    """Raise TruelineError for a template without both of its fields."""
    missing = [field for field in FIELDS if template.count(field) != 1]
    if missing:
        raise TruelineError(
            f"judgment_template is {template!r}: it must hold {' and '.join(FIELDS)} once each, and {missing[0]} is not "
            "there once."
        )


def judged_prompt(prompt: Prompt, judgment: str, template: str, *, origin: str = "") -> Prompt:
    """The prompt with the judgment in it. Raises TruelineError for a conversation without a user's text."""
    if isinstance(prompt, str):
        return _filled(template, prompt, judgment)
    for place in reversed(range(len(prompt))):
        words = prompt[place].get("content")
        if prompt[place].get("role") == "user" and isinstance(words, str):
            asked = {**prompt[place], "content": _filled(template, words, judgment)}
            return [*prompt[:place], asked, *prompt[place + 1 :]]
    raise TruelineError(f"{origin}: the conversation has no user message in text, so there is no place for a judgment.")


def _filled(template: str, prompt: str, judgment: str) -> str:
    before, after = template.split("{judgment}")
    return before.replace("{prompt}", prompt) + judgment + after.replace("{prompt}", prompt)


def put_judgments(
    groups: Sequence[Group],
    tokenizer: Any,
    *,
    template: str,
    max_length: int,
    eos_ids: Sequence[int],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Audit:
    """Fill `judged_prompt_ids` of every response that is criticised in words, in place.

    The groups are encoded already. A judgment is never cut: where prompt, judgment and response are over max_length
    together, the row is left without, and counted in the audit as a row that no judgment can be read for.
    """
    from trueline.encode import UNLIMITED, encode  # options are checked above without it

    check_template(template)
    audit = Audit(read=len(groups))
    rows = [(g, r) for g in groups for r in g.responses if r.judgment and r.label is not True]
    asked = [_with_judgment(group, response, template) for group, response in rows]
    options = chat_template_kwargs if any(isinstance(g.prompt, list) for g in asked) else None
    encoded, found = encode(asked, tokenizer, UNLIMITED, eos_ids=eos_ids, chat_template_kwargs=options)
    if len(encoded) != len(rows):
        raise TruelineError(
            f"{len(rows) - len(encoded)} prompts cannot be encoded with their judgment: {found.dropped}."
        )
    for (group, response), judged in zip(rows, encoded, strict=True):
        ids = list(judged.prompt_ids or ())
        total = len(ids) + len(response.ids or ())
        if total > max_length:
            audit.note("judgment left out: over max_length with its prompt", group.origin, f"{total} tokens")
            response.judged_prompt_ids = None
        else:
            response.judged_prompt_ids = ids
    return audit


def _with_judgment(group: Group, response: Response, template: str) -> Group:
    prompt = judged_prompt(group.prompt, str(response.judgment), template, origin=group.origin)
    return replace(group, prompt=prompt, responses=[], prompt_ids=None, preferences=None)
