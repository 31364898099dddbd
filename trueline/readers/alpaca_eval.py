"""AlpacaEval annotations: {"instruction", "output_1", "output_2", "preference"}.

preference lies in [1, 2]: 2 says that output_2 wins outright, 1 that output_1 does, and what lies between is the judge's
weight of its two answers. Each output's reward is its probability to win (2 - preference and preference - 1); the better
one comes first; at 1.5 both have rank 0. A missing preference means that the judge failed: counted and dropped.
"""

import math

from trueline.groups import Group
from trueline.readers.alpaca import said
from trueline.readers.contract import Format, Row, Unusable, answer, ask, differ


def read(row: Row) -> Group:
    value = row.values.get("preference")
    if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
        raise Unusable("judge failed", "preference is empty")
    preference = row.number("preference")
    if not 1 <= preference <= 2:
        raise Unusable("preference outside [1, 2]", str(preference))
    outputs = [
        answer(said(row, "output_1"), reward=2 - preference),
        answer(said(row, "output_2"), reward=preference - 1),
    ]
    for i, output in enumerate(outputs, 1):
        if row.has(f"generator_{i}"):
            output.source = row.text(f"generator_{i}")
    if preference > 1.5:
        outputs.reverse()
    outputs[0].rank, outputs[1].rank = 0, 0 if preference == 1.5 else 1
    differ(outputs)
    return row.group(ask(row.text("instruction")), outputs, preference=preference)


FORMAT = Format("AlpacaEval annotations", ("instruction", "output_1", "output_2", "preference"), read)
