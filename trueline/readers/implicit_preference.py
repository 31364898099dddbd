"""Pairs whose prompt is only implied (TRL: preference, implicit prompt): {"chosen", "rejected"}.

Conversations share their leading turns, and those are the prompt. Plain texts without turn markers (texts with them are
`hh.py`) say nothing about where the prompt ends: it is taken to be the common start, cut back to the last white space so
that no word is split and the space belongs to the responses, and every such row is counted as guessed.
"""

from collections.abc import Sequence

from trueline.groups import Group, Response
from trueline.readers import hh
from trueline.readers.contract import Format, Row, Unusable, Values, answer, common_start, conversation
from trueline.readers.preference import prompt_turns, ranked


def read(row: Row) -> Group:
    if isinstance(row.get("chosen"), (list, tuple)):
        return _conversations(row)
    chosen, rejected = row.response("chosen"), row.response("rejected")
    if chosen == rejected:
        raise Unusable("identical responses", chosen[:80])
    shared = common_start(chosen, rejected)
    cut = next((i for i in range(len(shared) - 1, -1, -1) if shared[i].isspace()), 0)
    if not chosen[cut:].strip() or not rejected[cut:].strip():
        raise Unusable("empty response", "one side is the beginning of the other")
    row.note("prompt guessed from the common start of both texts", shared[:cut][-80:])
    return row.group(shared[:cut], ranked(Response(text=chosen[cut:]), Response(text=rejected[cut:])))


def _conversations(row: Row) -> Group:
    chosen, rejected = conversation(row.messages("chosen")), conversation(row.messages("rejected"))
    if chosen == rejected:
        raise Unusable("identical responses", f"{len(chosen)} equal messages")
    shared = prompt_turns(chosen, rejected)
    if not shared:
        raise Unusable("empty prompt", "the two conversations share no user turn")
    sides = [chosen[shared:], rejected[shared:]]
    if any(not side or side[0]["role"] != "assistant" or side[-1]["role"] != "assistant" for side in sides):
        raise Unusable("response does not begin and end with an assistant turn")
    return row.group(chosen[:shared], ranked(answer(sides[0]), answer(sides[1])))


def fits(rows: Sequence[Values]) -> bool:
    return not hh.fits(rows)


FORMAT = Format("preference (implicit prompt)", ("chosen", "rejected"), read, fits=fits)
