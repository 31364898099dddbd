"""ShareGPT rankings: {"conversations": turns up to a human one, "chosen": {from, value}, "rejected": {from, value}}."""

from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row, Unusable, answer, conversation
from trueline.readers.preference import ranked
from trueline.readers.sharegpt import USES, read_turn, read_turns


def read(row: Row) -> Group:
    prompt = conversation(read_turns(row))
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise Unusable("prompt does not end with a user turn")
    sides: list[Response] = []
    for column in ("chosen", "rejected"):
        turn = read_turn(row, row.get(column), column)
        conversation([*prompt, turn])
        if turn["role"] != "assistant":
            raise Unusable("response does not begin and end with an assistant turn", column)
        sides.append(answer([turn]))
    return row.group(prompt, ranked(*sides))


FORMAT = Format("ShareGPT ranking", ("conversations", "chosen", "rejected"), read, uses=USES)
