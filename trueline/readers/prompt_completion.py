"""Demonstrations (TRL: prompt-completion): {"prompt", "completion"}, both text or both messages."""

from trueline.groups import Group, Prompt, Response
from trueline.readers.contract import Format, Row, Unusable, answer, conversation
from trueline.readers.prompt_only import read_prompt


def read_completion(row: Row, prompt: Prompt, column: str = "completion") -> Response:
    """The response of a row: text after a text prompt, messages after a conversation."""
    value = row.get(column)
    if not isinstance(value, (list, tuple)):
        text = row.response(column)
        return Response(text=text) if isinstance(prompt, str) else answer([{"role": "assistant", "content": text}])
    messages = row.messages(column)
    if isinstance(prompt, str):
        raise row.wrong_type(column, value, "text, because the prompt is text")
    if not messages:
        raise Unusable("empty response", f"{column} holds no message")
    conversation([*prompt, *messages])
    if messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
        raise Unusable("response does not begin and end with an assistant turn", column)
    return answer(messages)


def read(row: Row) -> Group:
    prompt = read_prompt(row)
    response = read_completion(row, prompt)
    response.rank = 0
    return row.group(prompt, [response])


FORMAT = Format("prompt-completion", ("prompt", "completion"), read)
