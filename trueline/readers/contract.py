"""Readers: what a data format is, and the checked access to one row that every reader uses.

A format is one file in this folder that holds `FORMAT = Format(...)`; nothing else has to be touched. A reader turns a
row into the text side of a `Group`: preferences as [chosen, rejected] with rank 0 and 1, a demonstration as one response
with rank 0, thumbs as one response with a label, a bare prompt as no response at all. It never sees tokens.

Two kinds of trouble are kept apart. Broken *structure* (a column that is not there, a number where text was expected)
means that the file is not what it seems, and raises `TruelineError`. Unusable *content* (an empty prompt, two equal
responses, a judge that failed) raises `Unusable`: the row is dropped, counted and shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueline.errors import TruelineError, nearest
from trueline.groups import Audit, Group, Message, Prompt, Response, prompt_text

Values = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
# Columns of any format that concern the rendering of a conversation; they stay in `extras` under these names.
RENDERING = ("tools", "chat_template_kwargs")


class Unusable(Exception):
    """This row cannot be used. `reason` is counted, `detail` shown as an example."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Format:
    """A data format.

    columns: must all be there. uses: further columns the reader reads; what is in neither goes to `extras`.
    fits: decides by content between formats with the same columns; it sees the first rows of the file.
    priority: breaks ties between formats that fit equally well; the higher wins.
    sampled: rows were drawn from a model, so repeated and empty ones are data, not mistakes.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Group]
    uses: tuple[str, ...] = ()
    fits: Callable[[Sequence[Values]], bool] = lambda rows: True
    priority: int = 0
    sampled: bool = False


@dataclass
class Row:
    """One row with checked access. place: 'path:7' for errors; origin: 'file:7' as kept in the group."""

    values: Values
    place: str
    origin: str
    format: Format
    audit: Audit = field(default_factory=Audit)

    def has(self, column: str) -> bool:
        """Whether the row has a value (not null, not an empty cell) in this column."""
        return self.values.get(column) not in (None, "")

    def get(self, column: str) -> Any:
        """The value; a row without this column is an error, a null makes the row unusable."""
        if column not in self.values:
            seen = ", ".join(map(repr, self.values)) or "none"
            raise TruelineError(
                f"{self.place}: column '{column}' is missing from this row; it has {seen}. The file was read as "
                f"{self.format.name}, which needs {', '.join(map(repr, self.format.columns))}. Add the column."
            )
        if self.values[column] is None:
            raise Unusable("missing value", f"{column} is null")
        return self.values[column]

    def text(self, column: str) -> str:
        return self.as_text(self.get(column), column)

    def as_text(self, value: Any, column: str) -> str:
        """The value if it is text. NaN is how table libraries write an empty cell."""
        if isinstance(value, float) and math.isnan(value):
            raise Unusable("missing value", f"{column} is NaN")
        if not isinstance(value, str):
            raise self.wrong_type(column, value, "text")
        try:
            value.isascii() or value.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"{column} holds a lone surrogate at character {error.start}"
            raise Unusable("text that is not valid Unicode", detail) from error
        return value

    def response(self, column: str) -> str:
        """Text that is a response: blank ones are unusable."""
        text = self.text(column)
        if not text.strip():
            raise Unusable("empty response", f"{column} is {text!r}")
        return text

    def number(self, column: str) -> float:
        """A finite number; text is parsed, because CSV knows nothing else."""
        value = self.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = float(value)
            except ValueError as error:
                raise self.wrong_type(column, value, "a number") from error
        if value == "":
            raise Unusable("missing value", f"{column} is empty")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong_type(column, value, "a number")
        if not math.isfinite(value):
            raise Unusable("score is not finite", f"{column} is {value}")
        return float(value)

    def flag(self, column: str) -> bool:
        """True or false, also as 1/0 and 'true'/'false'."""
        return self.as_flag(self.get(column), column)

    def as_flag(self, value: Any, column: str) -> bool:
        known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        if isinstance(value, (bool, int, float, str)) and str(value).strip().lower() in known:
            return known[str(value).strip().lower()]
        raise self.wrong_type(column, value, "true or false")

    def items(self, column: str) -> list[Any]:
        value = self.get(column)
        if not isinstance(value, (list, tuple)):
            raise self.wrong_type(column, value, "a list")
        return list(value)

    def messages(self, column: str) -> list[Message]:
        """A conversation as {role, content} messages; order is checked by `conversation`."""
        return [self.as_message(item, f"{column}[{i}]") for i, item in enumerate(self.items(column))]

    def as_message(self, item: Any, column: str) -> Message:
        if not isinstance(item, Mapping) or "role" not in item:
            raise self.wrong_type(column, item, "a message {'role': ..., 'content': ...}")
        message = {k: v for k, v in item.items() if v is not None}  # Arrow fills absent keys with null
        role = message["role"]
        if role not in ROLES:
            raise TruelineError(f"{self.place}: {column} has the role {role!r}. {nearest(str(role), ROLES)}")
        content = message.get("content", "")
        if isinstance(content, (list, tuple)):
            message["content"] = "".join(self._text_part(part, column) for part in content)
        else:
            message["content"] = self.as_text(content, f"{column}.content")
        return message

    def _text_part(self, part: Any, column: str) -> str:
        if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            return self.as_text(part["text"], column)
        raise TruelineError(
            f"{self.place}: {column} holds a part that is not text ({str(part)[:60]}). Only text is read."
        )

    def wrong_type(self, column: str, value: Any, expected: str) -> TruelineError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return TruelineError(
            f"{self.place}: column '{column}' holds {type(value).__name__} {shown}, expected {expected} "
            f"(the file was read as {self.format.name}). Correct the row or the column's name."
        )

    def note(self, reason: str, detail: str = "") -> None:
        self.audit.note(reason, self.origin, detail)

    def group(self, prompt: Prompt, responses: list[Response], **extras: Any) -> Group:
        """The finished group: prompt checked, unread columns and the given extras kept."""
        if not prompt_text(prompt).strip() or (isinstance(prompt, list) and not prompt[-1]["content"].strip()):
            raise Unusable("empty prompt")
        known = {*self.format.columns, *self.format.uses}
        rest = {k: v for k, v in self.values.items() if k not in known and v is not None}
        return Group(prompt, responses, extras={**rest, **extras}, origin=self.origin)


def conversation(messages: list[Message]) -> list[Message]:
    """The messages, if their order makes sense: system first, then user and assistant in turn, tools in between.

    An assistant may follow a tool's output, and a tool's output an assistant or another tool.
    """
    before = ""
    for i, message in enumerate(messages):
        role = "system" if message["role"] == "developer" else message["role"]
        allowed = {
            "system": ("",),
            "user": ("", "system", "assistant"),
            "assistant": ("user", "tool"),
            "tool": ("assistant", "tool"),
        }[role]
        if before not in allowed:
            raise Unusable("roles do not alternate", f"message {i + 1} is {role} after {before or 'nothing'}")
        if not message["content"].strip() and not message.get("tool_calls"):
            kind = "empty response" if role == "assistant" else "empty message"
            raise Unusable(kind, f"message {i + 1} ({role})")
        before = role
    return messages


def answer(messages: list[Message], **filled: Any) -> Response:
    """A conversational response. Its text is the assistant's words, or the whole exchange where there are several."""
    text = messages[0]["content"] if len(messages) == 1 else prompt_text(messages)
    return Response(text=text, messages=messages, **filled)


def split_conversation(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """(what stands before the first assistant turn, the rest up to the last assistant turn)."""
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not turns:
        raise Unusable("no assistant turn", f"{len(messages)} messages")
    if turns[0] == 0:
        raise Unusable("empty prompt", "the conversation begins with the assistant")
    return messages[: turns[0]], messages[turns[0] : turns[-1] + 1]


def ask(question: str, system: str = "", history: Sequence[Message] = ()) -> list[Message]:
    """A single-turn prompt as messages, for formats that hold an instruction rather than a rendered prompt."""
    first = [{"role": "system", "content": system}] if system.strip() else []
    if not question.strip():
        raise Unusable("empty prompt")
    return [*first, *history, {"role": "user", "content": question}]


def differ(responses: Sequence[Response]) -> None:
    """Refuse a row in which there is nothing to compare."""
    if len(responses) > 1 and all(r.text == responses[0].text for r in responses[1:]):
        raise Unusable("identical responses", responses[0].text[:80])


def common_start(a: str, b: str) -> str:
    """The longest text that both begin with."""
    limit = min(len(a), len(b))
    return a[: next((i for i in range(limit) if a[i] != b[i]), limit)]
