"""Pairs with an explicit prompt (TRL: preference): {"prompt", "chosen", "rejected"}, text or messages.

The prompt's turns may be repeated at the start of both responses, as many published sets do.
"""

from trueline.groups import Group, Message, Prompt, Response
from trueline.readers.contract import Format, Row, Unusable, answer, conversation, differ
from trueline.readers.prompt_completion import read_completion
from trueline.readers.prompt_only import read_prompt


def ranked(chosen: Response, rejected: Response) -> list[Response]:
    """[chosen, rejected] with ranks 0 and 1, if they differ."""
    chosen.rank, rejected.rank = 0, 1
    differ([chosen, rejected])
    return [chosen, rejected]


def prompt_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many leading messages are the prompt of two full conversations: the common ones up to a user turn."""
    shared = 0
    for ours, theirs in zip(chosen, rejected, strict=False):
        if ours != theirs:
            break
        shared += 1
    while shared and chosen[shared - 1]["role"] == "assistant":  # equal answers are responses, not prompt
        shared -= 1
    return shared


def read_pair(row: Row) -> Group:
    """Prompt and both responses, with the prompt's turns taken off responses that repeat them."""
    prompt: Prompt = read_prompt(row)
    if not isinstance(row.get("chosen"), (list, tuple)):
        responses = ranked(read_completion(row, prompt, "chosen"), read_completion(row, prompt, "rejected"))
        return row.group(prompt, responses)
    sides = {column: row.messages(column) for column in ("chosen", "rejected")}
    turns = _turns(prompt, sides["chosen"], sides["rejected"])
    answers = []
    for column, messages in sides.items():
        own = messages[len(turns) :] if messages[: len(turns)] == turns else messages
        if not own:
            raise Unusable("empty response", f"{column} holds no message after the prompt")
        conversation([*turns, *own])
        if own[0]["role"] != "assistant" or own[-1]["role"] != "assistant":
            raise Unusable("response does not begin and end with an assistant turn", column)
        answers.append(answer(own))
    return row.group(turns, ranked(*answers))


def _turns(prompt: Prompt, chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The prompt as messages. A text prompt beside full conversations is one of their turns, not another one."""
    if not isinstance(prompt, str):
        return prompt
    shared = chosen[: prompt_turns(chosen, rejected)]
    if not shared:
        return [{"role": "user", "content": prompt}]
    if all(m["content"].strip() != prompt.strip() for m in shared):
        raise Unusable("prompt differs from the conversation's own", prompt[:80])
    return shared


FORMAT = Format("preference", ("prompt", "chosen", "rejected"), read_pair)
