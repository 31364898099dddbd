"""Conversations (TRL: language modeling, conversational): {"messages": [{role, content}, ...]}.

The prompt is what stands before the first assistant turn; the rest is one response, in which only assistant tokens
will count in a loss. Turns after the last assistant turn have nothing to learn from and are cut.
"""

from trueline.groups import Group
from trueline.readers.contract import Format, Row, answer, conversation, split_conversation


def read(row: Row) -> Group:
    messages = conversation(row.messages("messages"))
    prompt, response = split_conversation(messages)
    if len(prompt) + len(response) < len(messages):
        row.note("turns after the last assistant turn cut")
    return row.group(prompt, [answer(response, rank=0)])


FORMAT = Format("language modeling (messages)", ("messages",), read)
