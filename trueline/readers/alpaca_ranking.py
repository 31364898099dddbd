"""Alpaca rankings: {"instruction", "chosen", "rejected"} and, optionally, "input", "system", "history"."""

from trueline.groups import Group
from trueline.readers.alpaca import USES, read_instruction, said
from trueline.readers.contract import Format, Row, answer
from trueline.readers.preference import ranked


def read(row: Row) -> Group:
    prompt = read_instruction(row)
    return row.group(prompt, ranked(answer(said(row, "chosen")), answer(said(row, "rejected"))))


FORMAT = Format("Alpaca ranking", ("instruction", "chosen", "rejected"), read, uses=(*USES, "output"))
