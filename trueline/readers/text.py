"""Plain text (TRL: language modeling, standard): {"text": ...}.

The whole text is one demonstration with an empty prompt; encoding decides what the first token is predicted from.
"""

from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row


def read(row: Row) -> Group:
    response = Response(text=row.response("text"), rank=0)
    extras = {k: v for k, v in row.values.items() if k != "text" and v is not None}
    return Group("", [response], extras=extras, origin=row.origin)


FORMAT = Format("language modeling (text)", ("text",), read, priority=-1)
