"""Prompts without responses (TRL: prompt-only): {"prompt": text or messages}. For sources that sample."""

from trueline.groups import Prompt
from trueline.readers.contract import Format, Row, Unusable, conversation


def read_prompt(row: Row) -> Prompt:
    """The `prompt` column: text, or a conversation that waits for the assistant."""
    value = row.get("prompt")
    if isinstance(value, (list, tuple)):
        messages = conversation(row.messages("prompt"))
        if messages and messages[-1]["role"] not in ("user", "tool"):
            raise Unusable("prompt does not end with a user turn", f"it ends with {messages[-1]['role']}")
        return messages
    return row.text("prompt")


FORMAT = Format("prompt-only", ("prompt",), lambda row: row.group(read_prompt(row), []), priority=-2)
