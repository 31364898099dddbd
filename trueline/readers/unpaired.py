"""Thumbs (TRL: unpaired preference): {"prompt", "completion", "label"}; label is true for a good response."""

from trueline.groups import Group
from trueline.readers.contract import Format, Row
from trueline.readers.prompt_completion import read_completion
from trueline.readers.prompt_only import read_prompt


def read(row: Row) -> Group:
    prompt = read_prompt(row)
    response = read_completion(row, prompt)
    response.label = row.flag("label")
    return row.group(prompt, [response])


FORMAT = Format("unpaired preference", ("prompt", "completion", "label"), read)
