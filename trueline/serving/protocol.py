"""What clients may send, strictly: every key is known and every value has its type, or the request is refused.

A refusal names the place as a JSON path (`messages[0].content`). Fields of the OpenAI API that this server does not
implement are refused unless they hold what leaves them without effect, because an option that is ignored is an option
that lies. What is ours stands under one key, `alignment`, which clients reach by `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import from_json

from trueline.errors import nearest
from trueline.serving.errors import refused

NOTHING: tuple[Any, ...] = (None, [], {}, "", False)
# Fields of the OpenAI API without a counterpart here, and the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "audio": NOTHING,
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "function_call": (*NOTHING, "none"),
    "functions": NOTHING,
    "metadata": NOTHING,
    "modalities": (*NOTHING, ["text"]),
    "moderation": NOTHING,
    "parallel_tool_calls": (None, True, False),  # says nothing where there are no tools
    "prediction": NOTHING,
    "presence_penalty": (None, 0),
    "reasoning_effort": (*NOTHING, "none"),
    "service_tier": (*NOTHING, "auto", "default"),
    "store": NOTHING,
    "suffix": NOTHING,
    "tool_choice": (*NOTHING, "none", "auto"),
    "tools": NOTHING,
    "verbosity": (*NOTHING, "medium"),
    "web_search_options": NOTHING,
}
INSTEAD = {
    "best_of": "Give alignment.method 'best_of_n' with its n.",
    "suffix": "This server continues text and does not fill gaps.",
}
STOPS = 16  # stop strings of one request
STOP_LENGTH = 256  # characters of one of them


class Body(BaseModel):
    """Any object of a request: no unknown keys, no coercion, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """The turn as chat templates read it."""
        parts = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": parts}


class StreamOptions(Body):
    """include_obfuscation pads chunks against eavesdroppers of their sizes; it is not offered."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class AnyText(Body):
    type: Literal["text"]


class AnyJson(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonOfSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[AnyText | AnyJson | JsonOfSchema, Field(discriminator="type")]


class WeightedReward(Body):
    name: str
    weight: float = 1.0


class BudgetLimits(Body):
    """What one prompt may cost. `trueline.decoding.Counters` says what is counted."""

    max_lm_tf: int | None = Field(default=None, ge=1)
    max_rm_calls: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)


class Alignment(Body):
    """Which method answers, and how. Methods, rewards and models are names that the server was started with.

    method: a decoding method or several joined by '+'. options: of the method, or {method: {...}} of several.
    rewards: what to search for; models: role to name of a second model. budget: limits of the search; on_budget: "keep"
    ends the answer with what is committed when one is reached, "error" refuses it. scored: score the finished answer even
    where the method has no use for a reward. trace: add what the method tells of itself.
    """

    method: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    rewards: list[WeightedReward] = Field(default_factory=list, max_length=16)
    models: dict[str, str] = Field(default_factory=dict)
    budget: BudgetLimits = BudgetLimits()
    on_budget: Literal["keep", "error"] = "keep"
    scored: bool = False
    trace: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]


class Generation(Body):
    """What chat and completions share. temperature, top_p and top_k are of the proposal, after mixing and masks.

    user, safety_identifier and prompt_cache_key name a caller to hosted services; here they are accepted and mean nothing.
    """

    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    alignment: Alignment = Field(default_factory=Alignment)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed together with stream: true")
        return self

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def banned(self) -> list[int]:
        """Token ids that logit_bias forbids. A bias of -100 is a mask; others are refused."""
        ids = []
        for token, bias in (self.logit_bias or {}).items():
            if not token.isascii() or not token.isdigit():
                raise refused(f"logit_bias has the key {token!r}; expected a token id.", param="logit_bias")
            if bias not in (0, -100):
                raise refused(
                    f"logit_bias of token {token} is {bias}; this server takes -100 (never) and 0, because other biases "
                    "change the law that the answer's log-probs are given under.",
                    param="logit_bias",
                )
            if bias:
                ids.append(int(token))
        return ids

    def limit(self) -> int | None:
        """New tokens the client allows, None if it did not say."""
        return self.max_tokens

    def alternatives(self) -> int | None:
        """Alternatives to report a token; None where no log-probs were asked for."""
        raise NotImplementedError


class ChatRequest(Generation):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed together with logprobs: true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError(f"max_tokens is {both[0]} and max_completion_tokens {both[1]}; give one of them")
        return self

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def _prompt_shape(value: Any) -> str:
    """Which form of prompt was meant, so that an error names the place in it and not four unions."""
    if isinstance(value, list) and value:
        return {int: "ids", list: "many_ids"}.get(type(value[0]), "texts")
    return "texts" if isinstance(value, list) else "text"


TokenId = Annotated[int, Field(ge=0)]
AnyPrompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1), Tag("texts")]
    | Annotated[list[TokenId], Field(min_length=1), Tag("ids")]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1), Tag("many_ids")],
    Discriminator(_prompt_shape),
]


class CompletionRequest(Generation):
    prompt: AnyPrompt
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @model_validator(mode="after")
    def _completion(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo together with logprobs is not offered: prompts are not scored here")
        return self

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    def alternatives(self) -> int | None:
        return self.logprobs


def _score_shape(value: Any) -> str:
    return "turns" if isinstance(value, list) else "text"


class ScoreRequest(Body):
    """Rewards of given responses. rewards: names; all of the server's where none is given."""

    prompt: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Message], Field(min_length=1), Tag("turns")],
        Discriminator(_score_shape),
    ]
    responses: list[str] = Field(min_length=1)
    rewards: list[str] | None = Field(default=None, min_length=1)
    model: str | None = None
    user: str | None = None


Shape = TypeVar("Shape", bound=Body)


def parse(shape: type[Shape], raw: bytes) -> Shape:
    """The request that these bytes hold. Raises ApiError naming the first thing wrong and where it stands."""
    try:
        found = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise refused(f"The body is not JSON that can be read: {error}.", code="invalid_json") from None
    if not isinstance(found, dict):
        raise refused(f"The body is {_kind(found)}; expected a JSON object.", code="invalid_json")
    if issubclass(shape, Generation):
        found = _without_idle(found)
    try:
        return shape.model_validate(found)
    except ValidationError as error:
        raise _refusal(shape, found, error) from None


def _without_idle(found: dict[str, Any]) -> dict[str, Any]:
    """Without fields that ask for nothing; one that asks for something this server does not do is refused."""
    kept = {}
    for key, value in found.items():
        if key not in NOT_OFFERED:
            kept[key] = value
        elif not any(value == idle and type(value) in (type(idle), float) for idle in NOT_OFFERED[key]):
            advice = INSTEAD.get(key, "Leave it out.")
            raise refused(f"'{key}' is not offered by this server. {advice}", param=key, code="unsupported_parameter")
    return kept


def _refusal(shape: type[Body], found: dict[str, Any], error: ValidationError) -> Exception:
    details = error.errors(include_url=False, include_context=False)
    first = max(details, key=lambda d: len(_path(found, d["loc"], d["type"])))  # of a union, the form that was meant
    path = _path(found, first["loc"], first["type"])
    if first["type"] == "extra_forbidden":
        known = shape.model_fields if len(first["loc"]) == 1 else {}
        advice = nearest(str(first["loc"][-1]), known) if known else "Leave it out."
        return refused(f"Unknown key '{path}'. {advice}", param=path, code="unknown_parameter")
    if first["type"] == "missing":
        return refused(f"'{path}' is missing.", param=path, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return refused(f"{message[:1].upper()}{message[1:]}.")
    return refused(f"'{path}': {message}; found {_kind(first['input'])}.", param=path, code="invalid_value")


def _path(found: Any, loc: tuple[int | str, ...], kind: str) -> str:
    """pydantic's location as a JSON path: without the tags of unions, which no client has written."""
    path, here = "", found
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        if isinstance(part, int) and isinstance(here, list):
            path, here = f"{path}[{part}]", here[part] if part < len(here) else None
        elif isinstance(here, dict) and (part in here or (last and kind == "missing")):
            path, here = f"{path}.{part}" if path else str(part), here.get(part)
    return path


def _kind(value: Any) -> str:
    """A value in few words, whatever its size."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return str(value)[:40]
    if isinstance(value, str):
        return repr(value[:40]) + ("..." if len(value) > 40 else "")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else type(value).__name__
