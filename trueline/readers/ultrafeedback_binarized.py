"""UltraFeedback-binarized: a preference pair whose responses carry a judge's scores.

{"prompt": text, "chosen": messages, "rejected": messages, "score_chosen", "score_rejected"}. The scores become rewards;
the order stays what the columns say, and rows where the scores disagree with it are counted.
"""

from trueline.groups import Group
from trueline.readers.contract import Format, Row
from trueline.readers.preference import read_pair


def read(row: Row) -> Group:
    group = read_pair(row)
    chosen, rejected = group.responses
    chosen.reward, rejected.reward = row.number("score_chosen"), row.number("score_rejected")
    if chosen.reward < rejected.reward:
        row.note("scores contradict chosen and rejected", f"{chosen.reward} < {rejected.reward}")
    elif chosen.reward == rejected.reward:
        row.note("scores are tied", f"both {chosen.reward}")
    return group


FORMAT = Format(
    "UltraFeedback-binarized",
    ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    read,
    uses=("messages",),  # the chosen conversation once more
)
