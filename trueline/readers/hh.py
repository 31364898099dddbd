r"""HH transcripts (arXiv 2204.05862): {"chosen", "rejected"} with "\n\nHuman: ...\n\nAssistant: ..." turns.

The prompt ends after the last assistant marker that both texts share, marker included; the space after it belongs to
the response. Cutting at the longest common prefix instead would move response text into the prompt wherever both
responses begin alike (444 of the 2,312 harmless-base test pairs).

A pair that diverges before its last turn compares two different conversations: the later turns answer questions the
other side never saw, and some are written by the annotated model itself. Such pairs are dropped and counted.
"""

from collections.abc import Sequence

from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row, Unusable, Values
from trueline.readers.preference import ranked

ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"


def read(row: Row) -> Group:
    chosen, rejected = row.text("chosen"), row.text("rejected")
    cuts = []
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        at = text.rfind(ASSISTANT)
        if at < 0:
            raise Unusable("no assistant marker", f"{column} has no {ASSISTANT!r}")
        cuts.append(at + len(ASSISTANT))
    prompt = chosen[: cuts[0]]
    if prompt != rejected[: cuts[1]]:
        raise Unusable("the two sides diverge before the last turn", f"turns end at {cuts[0]} and {cuts[1]}")
    sides = [chosen[cuts[0] :], rejected[cuts[1] :]]
    for column, text in zip(("chosen", "rejected"), sides, strict=True):
        if not text.strip():
            raise Unusable("empty response", f"{column} ends with its assistant marker")
        if HUMAN in text:
            raise Unusable("response contains a human turn", column)
    if not prompt[: -len(ASSISTANT)].replace(HUMAN, "").strip():
        raise Unusable("empty prompt")
    return row.group(prompt, ranked(Response(text=sides[0]), Response(text=sides[1])))


def fits(rows: Sequence[Values]) -> bool:
    """Most of the rows are transcripts. One broken row must not turn a file of them into something else."""
    texts = [row.get("chosen") for row in rows]
    marked = sum(isinstance(text, str) and ASSISTANT in text for text in texts)
    return 2 * marked > len(texts)


FORMAT = Format("HH transcripts", ("chosen", "rejected"), read, fits=fits)
