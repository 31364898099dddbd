"""From a client's request to requests of the decode engine: tokens, method, law, masks and limits.

Everything that can be refused is refused here, before a row of the engine is taken.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.decoding.request import Budget, Request
from trueline.encode import UNLIMITED, encode
from trueline.engine.draw import Law
from trueline.errors import TruelineError, nearest
from trueline.groups import Group, Prompt
from trueline.serving.errors import ApiError, refused
from trueline.serving.grammar import Banned, both
from trueline.serving.host import Host
from trueline.serving.protocol import Alignment, ChatRequest, CompletionRequest, Generation, JsonOfSchema

COMPLETION_TOKENS = 16  # what OpenAI's /v1/completions writes where max_tokens is left out
LETTERS_PER_TOKEN = 256  # a text longer than this times the context is refused before it is tokenised


@dataclass(frozen=True)
class Plan:
    """What is to be decoded for one HTTP request. prompts: their texts, for echo. prompt_tokens: of the client's prompts."""

    requests: list[Request]
    prompts: list[str]
    model: str
    alternatives: int | None
    trace: bool
    on_budget: str
    prompt_tokens: int


def plan_chat(body: ChatRequest, host: Host) -> Plan:
    """One prompt: the conversation through the model's own chat template."""
    if not host.chats:
        raise refused("The model has no chat template; use /v1/completions.", param="messages", code="no_chat_template")
    turns: Prompt = [message.plain() for message in body.messages]
    return _plan(body, host, [(turns, _ids(turns, host, "messages"))], ["messages"], default=None)


def plan_completion(body: CompletionRequest, host: Host) -> Plan:
    """One prompt or many, as text or as token ids."""
    given = body.prompts()
    places = ["prompt"] if len(given) == 1 else [f"prompt[{i}]" for i in range(len(given))]
    if len(given) > host.limits.prompts:
        raise refused(f"{len(given)} prompts; this server takes {host.limits.prompts} at once.", param="prompt")
    prompts: list[tuple[Prompt, list[int]]] = []
    for prompt, place in zip(given, places, strict=True):
        if isinstance(prompt, str):
            prompts.append((prompt, _ids(prompt, host, place)))
            continue
        if wrong := next((i for i in prompt if i >= host.vocabulary), None):
            raise refused(f"Token id {wrong}: the model has ids 0 to {host.vocabulary - 1}.", param=place)
        prompts.append((host.tokenizer.decode(prompt), prompt))
    return _plan(body, host, prompts, places, default=COMPLETION_TOKENS)


def _plan(
    body: Generation,
    host: Host,
    prompts: Sequence[tuple[Prompt, list[int]]],
    places: Sequence[str],
    default: int | None,
) -> Plan:
    method, options = resolve(body, host)
    alignment, limits, n = body.alignment, host.limits, body.n or 1
    _check_width(method, options, n, host)
    rewards = _rewards(alignment, method, host)
    for role, name in alignment.models.items():
        if name not in host.models:
            raise refused(_unknown("model", name, host.models), param=f"alignment.models.{role}")
    asked = alignment.budget
    budget = Budget(asked.max_lm_tf, asked.max_rm_calls, min(asked.max_seconds or math.inf, limits.seconds))
    seed = secrets.randbits(31) if body.seed is None else body.seed
    requests = [
        Request(
            prompt_ids=ids,
            method=method,
            options=options,
            max_new_tokens=_room(body, host, len(ids), default, place),
            law=_law(body),
            eos_ids=host.eos_ids,
            stop=body.stops(),
            seed=seed,
            stream=number,
            n=n,
            prompt=prompt,
            rewards=rewards,
            models=alignment.models,
            allowed=_mask(body, host),
            top_logprobs=body.alternatives() or 0,
            scored=alignment.scored,
            budget=budget,
        )
        for number, ((prompt, ids), place) in enumerate(zip(prompts, places, strict=True))
    ]
    texts = [prompt if isinstance(prompt, str) else "" for prompt, _ in prompts]
    tokens = sum(len(ids) for _, ids in prompts)
    return Plan(requests, texts, body.model, body.alternatives(), alignment.trace, alignment.on_budget, tokens)


def resolve(body: Generation, host: Host) -> tuple[str, dict[str, Any]]:
    """Method and options of a request: from `alignment`, from the model's name, or the server's own."""
    named, options = parse_model(body.model, host)
    asked = body.alignment
    if named is not None:
        if asked.method not in (None, named) or asked.options:
            raise refused(
                f"The model name asks for '{named}' and alignment.method or alignment.options for something else. Give "
                "one of them.",
                param="alignment",
            )
        return named, options
    method = host.method if asked.method is None else asked.method
    check_method(method, host, "alignment.method")
    return method, {**(host.options if method == host.method else {}), **asked.options}


def parse_model(model: str, host: Host) -> tuple[str | None, dict[str, Any]]:
    """'lab@best_of_n:n=8' -> best_of_n, {n: 8}; a bare value is the method's first option. None: only the model is named."""
    name, at, rest = model.partition("@")
    if name != host.name:
        raise refused_model(model, host)
    if not at:
        return None, {}
    method, colon, written = rest.partition(":")
    check_method(method, host, "model")
    known = list(host.capabilities[method]["options"]) if method in host.capabilities else []
    options = {}
    for item in written.split(",") if colon else []:
        option, equals, value = item.partition("=")
        if not equals:
            option, value = (known or [""])[0], item
        if option not in known or option in options:
            raise refused(f"'{model}': '{item}' is no option of {method}. {nearest(option, known)}", param="model")
        options[option] = _literal(value)
    return method, options


def check_method(method: str, host: Host, param: str) -> None:
    """Refuse what is not among the methods this server was started with."""
    for part in method.split("+"):
        known = host.capabilities.get(part)
        runs = [name for name, facts in host.capabilities.items() if facts["runs"]]
        if known is None:
            raise refused(_unknown("method", part, runs), param=param, code="unknown_method")
        if not known["runs"]:
            raise refused(f"'{part}' cannot run on this server: {known['why']}", param=param, code="method_unavailable")


def refused_model(model: str, host: Host) -> ApiError:
    return ApiError(
        404,
        f"The model '{model[:200]}' does not exist. This server has '{host.name}', and '{host.name}@METHOD:OPTION=VALUE'.",
        param="model",
        code="model_not_found",
    )


def _check_width(method: str, options: Mapping[str, Any], n: int, host: Host) -> None:
    """Rows that a request takes at once: choices times what the methods declare to need."""
    rows, parts = n, method.split("+")
    for part in parts:
        facts = host.capabilities[part]
        own = options.get(part) if len(parts) > 1 else options
        own = own if isinstance(own, Mapping) else {}
        for name in str(facts.get("width") or "").split():
            value = own.get(name, facts["options"][name]["default"])
            rows *= value if isinstance(value, int) and value > 0 else 1  # what is wrong with it the engine will say
    if rows > host.limits.rows:
        raise refused(
            f"'{method}' with n = {n} takes {rows} rows at once; this server gives a request {host.limits.rows}. Lower n "
            "or the method's number of candidates.",
            param="n" if n > 1 else "alignment.options",
        )


def default_rewards(method: str, host: Host, *, scored: bool = False) -> dict[str, float]:
    """What a request goes by that names no reward: all of the server's, where the method has a use for one."""
    judged = any(host.capabilities[part].get("reward", "none") != "none" for part in method.split("+"))
    return dict(host.weights) if judged or scored else {}


def _rewards(alignment: Alignment, method: str, host: Host) -> dict[str, float]:
    if not alignment.rewards:
        return default_rewards(method, host, scored=alignment.scored)
    for number, reward in enumerate(alignment.rewards):
        if reward.name not in host.rewards:
            raise refused(
                _unknown("reward", reward.name, list(host.rewards)), param=f"alignment.rewards[{number}].name"
            )
    weights = {reward.name: reward.weight for reward in alignment.rewards}
    if len(weights) < len(alignment.rewards):
        raise refused("A reward is named twice; give it once, with one weight.", param="alignment.rewards")
    return weights


def _law(body: Generation) -> Law:
    def given(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    try:
        return Law(float(given(body.temperature, 1.0)), float(given(body.top_p, 1.0)), given(body.top_k, 0))
    except TruelineError as error:
        raise refused(str(error), param="temperature") from None


def _mask(body: Generation, host: Host) -> Any:
    """The hook of response_format and bans; each request has its own, because it remembers where it stands."""
    banned = body.banned()
    try:
        bans = Banned(banned, host.vocabulary) if banned else None
    except TruelineError as error:
        raise refused(str(error), param="logit_bias") from None
    form = body.response_format
    if form is None or form.type == "text":
        return bans
    try:
        schema = form.json_schema.schema_ if isinstance(form, JsonOfSchema) else None
        return both(host.grammars.json(schema), bans)
    except TruelineError as error:
        raise refused(str(error), param="response_format") from None


def _room(body: Generation, host: Host, prompt: int, default: int | None, place: str) -> int:
    """New tokens of an answer. A limit that the client named must fit; a default is cut to what fits."""
    asked, most = body.limit(), host.limits.new_tokens
    if asked is not None and asked > most:
        raise refused(f"max_tokens is {asked}; this server writes at most {most}.", param="max_tokens")
    left = math.inf if host.context is None else host.context - prompt
    wanted = asked if asked is not None else min(default or most, most)
    if left < (wanted if asked is not None else 1):
        raise refused(
            f"The model has {host.context} positions; the prompt takes {prompt} and the answer may take {wanted}. Shorten "
            "the prompt or lower max_tokens.",
            param=place,
            code="context_length_exceeded",
        )
    return int(min(wanted, left))


def _ids(prompt: Prompt, host: Host, place: str) -> list[int]:
    """The prompt in tokens. Raises ApiError for what cannot be one."""
    letters = len(prompt) if isinstance(prompt, str) else sum(len(turn["content"]) for turn in prompt)
    if host.context is not None and letters > host.context * LETTERS_PER_TOKEN:
        raise refused(
            f"A prompt of {letters} characters cannot fit into the model's {host.context} positions.",
            param=place,
            code="context_length_exceeded",
        )
    try:
        groups, audit = encode(
            [Group(prompt, [], origin=place)],
            host.tokenizer,
            UNLIMITED,
            eos_ids=host.eos_ids,
            vocabulary=host.vocabulary,
        )
    except TruelineError as error:
        raise refused(str(error), param=place) from None
    if not groups:
        reason = next(iter(audit.dropped))
        detail = audit.examples[reason][0]["detail"]
        raise refused(f"The prompt cannot be used: {reason} ({detail}).", param=place)
    ids = groups[0].prompt_ids or []
    if not ids:
        raise refused("The prompt is empty; the model needs at least one token.", param=place)
    return ids


def _literal(value: str) -> Any:
    """8 and 0.5 and true as what they are, everything else as text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    if not known:
        return f"There is no {what} '{name[:100]}': the server was started without any."
    return f"There is no {what} '{name[:100]}'. {nearest(name[:100], known)}"
