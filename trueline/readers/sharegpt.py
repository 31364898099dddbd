"""ShareGPT: {"conversations": [{"from": "human", "value": ...}, ...]} and, optionally, "system", "tools", "kto_tag".

Some sets write role and content instead of from and value; both are read.
"""

from collections.abc import Mapping
from typing import Any

from trueline.groups import Group, Message
from trueline.readers.contract import Format, Row, answer, conversation, split_conversation

USES = ("system", "kto_tag")
ROLE_OF = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


def read_turn(row: Row, item: Any, column: str) -> Message:
    """One {from, value} turn as a message."""
    if isinstance(item, Mapping) and "from" in item:
        item = {"role": ROLE_OF.get(item["from"], item["from"]), "content": item.get("value")}
    return row.as_message(item, column)


def read_turns(row: Row) -> list[Message]:
    """The `conversations` column, with the `system` column in front of it."""
    turns = [read_turn(row, item, f"conversations[{i}]") for i, item in enumerate(row.items("conversations"))]
    if row.has("system") and not any(t["role"] == "system" for t in turns):
        turns.insert(0, {"role": "system", "content": row.text("system")})
    return turns


def read(row: Row) -> Group:
    messages = conversation(read_turns(row))
    prompt, response = split_conversation(messages)
    if len(prompt) + len(response) < len(messages):
        row.note("turns after the last assistant turn cut")
    filled: dict[str, Any] = {"label": row.flag("kto_tag")} if row.has("kto_tag") else {"rank": 0}
    return row.group(prompt, [answer(response, **filled)])


FORMAT = Format("ShareGPT", ("conversations",), read, uses=USES)
