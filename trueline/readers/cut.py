"""Judgments in words (CUT, arXiv 2312.14591): {"instruction", "input", "output", "judgment"}.

A null judgment means that the response is satisfactory: label true. Otherwise the label is false and the words stay in
`Response.judgment`.
"""

from trueline.groups import Group
from trueline.readers.alpaca import USES, read_instruction, said
from trueline.readers.contract import Format, Row, answer


def read(row: Row) -> Group:
    words = row.text("judgment") if row.has("judgment") else None
    response = answer(said(row, "output"), judgment=words, label=words is None)
    return row.group(read_instruction(row), [response])


FORMAT = Format("CUT judgments", ("instruction", "output", "judgment"), read, uses=USES)
