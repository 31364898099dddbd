"""A recorded stream: Trueline's own groups, one JSON object a line, as an online run leaves them in `stream.jsonl`.

Ids, masks, rewards and log-probs are kept as they are: sampled tokens are never made again from text. The step at which
a group was used is kept in `extras["step"]`.
"""

from dataclasses import fields, replace
from typing import Any

from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.readers.contract import Format, Row, Unusable

GROUP_FIELDS = tuple(f.name for f in fields(Group))
RESPONSE_FIELDS = {f.name for f in fields(Response)}


def read(row: Row) -> Group:
    record: dict[str, Any] = {k: row.values[k] for k in GROUP_FIELDS if k in row.values}
    for i, response in enumerate(row.items("responses")):
        unknown = set(response) - RESPONSE_FIELDS if isinstance(response, dict) else {"(not an object)"}
        if unknown:
            raise TruelineError(
                f"{row.place}: response {i + 1} has fields a recorded group does not: {sorted(unknown)}."
            )
        if isinstance(response.get("reward"), str):  # a journal writes what is not finite as a word
            raise Unusable("score is not finite", f"response {i + 1}: {response['reward']}")
    group = Group.from_json(record)
    for i, recorded in enumerate(group.responses):
        if (recorded.ids is None) != (recorded.mask is None) or len(recorded.ids or ()) != len(recorded.mask or ()):
            raise TruelineError(f"{row.place}: response {i + 1} has ids and mask of different lengths.")
    extras = {**group.extras, "step": row.values["step"]} if "step" in row.values else group.extras
    return replace(group, extras=extras, origin=group.origin or row.origin)


FORMAT = Format("recorded stream", ("prompt", "responses", "prompt_ids"), read, uses=("step",), sampled=True)
