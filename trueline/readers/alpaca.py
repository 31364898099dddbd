"""Alpaca demonstrations: {"instruction", "output"} and, optionally, "input", "system", "history", "kto_tag".

An instruction is a question to an assistant, so it becomes a conversation and the model's own chat template renders it;
instruction and input are joined by a line break, as LLaMA-Factory does. history: [[question, answer], ...].
"""

from trueline.groups import Group, Message
from trueline.readers.contract import Format, Row, answer, ask

USES = ("input", "system", "history", "kto_tag")


def read_instruction(row: Row) -> list[Message]:
    """The prompt of a row in Alpaca's columns."""
    parts = [row.text(column) for column in ("instruction", "input") if column == "instruction" or row.has(column)]
    history: list[Message] = []
    for i, turn in enumerate(row.items("history") if row.has("history") else []):
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise row.wrong_type(f"history[{i}]", turn, "[question, answer]")
        history += [
            {"role": role, "content": row.as_text(text, f"history[{i}]")}
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    system = row.text("system") if row.has("system") else ""
    return ask("\n".join(part for part in parts if part.strip()), system, history)


def said(row: Row, column: str) -> list[Message]:
    """A column's text as the assistant's turn."""
    return [{"role": "assistant", "content": row.response(column)}]


def read(row: Row) -> Group:
    response = answer(said(row, "output"), rank=0)
    if row.has("kto_tag"):
        response.label, response.rank = row.flag("kto_tag"), None
    return row.group(read_instruction(row), [response])


FORMAT = Format("Alpaca", ("instruction", "output"), read, uses=USES)
