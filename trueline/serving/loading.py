"""A host out of folders: the policy, its rewards and second models, and one engine over all of them, tried once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trueline import catalogue
from trueline.decoding import DecodeEngine, Request, RewardModel
from trueline.decoding.plan import plan_of
from trueline.decoding.text_rewards import open_reward
from trueline.encode import UNLIMITED, encode
from trueline.engine.policy import Policy
from trueline.errors import TruelineError, nearest
from trueline.feedback._specification import weights as weights_of
from trueline.feedback.contract import FeedbackContext, judge_labels
from trueline.groups import Group, Response
from trueline.models import Loaded, load_frozen
from trueline.serving.errors import ApiError
from trueline.serving.grammar import Grammars
from trueline.serving.host import Host, Limits
from trueline.serving.prepare import check_method, default_rewards


@dataclass(frozen=True)
class Settings:
    """What `trueline serve` is told. rewards: specifications as for `--feedback`, with
    weights for requests that name none; second_models: NAME=PATH.

    name: the model id of the API, the folder's name by default. methods: names that clients may ask for, all that can run by
    default. max_length: longest prompt and answer together. prefix_tokens: tokens of earlier prompts that are kept for later
    requests that begin alike.
    """

    model: str
    name: str | None = None
    rewards: Sequence[str] = ()
    second_models: Sequence[str] = ()
    methods: Sequence[str] = ()
    method: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict)
    max_length: int = 2048
    prefix_tokens: int = 16384
    prefix_rewards: bool = False
    offline: bool = False
    limits: Limits = field(default_factory=Limits)


def open_host(settings: Settings) -> Host:
    """Load everything and run one token of the default method. Raises TruelineError for what would fail later."""
    loaded = _frozen(settings.model, settings)
    policy = _policy(loaded, settings)
    models = _second_models(settings, loaded)
    rewards, weights = _rewards(settings, loaded)

    def make_engine() -> DecodeEngine:
        return DecodeEngine(
            policy,
            rewards=rewards,
            models=models,
            tokenizer=loaded.tokenizer,
            max_rows=settings.limits.rows,
            prefix_tokens=settings.prefix_tokens,
        )

    engine = make_engine()
    voices = [engine.policy, *engine.models.values()]
    positions = [voice.model.positions for voice in voices if voice.model.positions is not None]
    host = Host(
        name=settings.name or Path(os.path.normpath(settings.model)).name,
        tokenizer=loaded.tokenizer,
        eos_ids=loaded.eos_ids,
        vocabulary=engine.policy.model.vocabulary,
        context=min([settings.max_length, *positions]),
        make_engine=make_engine,
        grammars=Grammars(loaded.tokenizer, loaded.eos_ids, engine.policy.model.vocabulary),
        capabilities=_capabilities(engine, settings.methods),
        as_run=lambda engine, request: plan_of(engine, request).request,
        rewards=rewards,
        weights=weights,
        models=tuple(models),
        method=settings.method,
        options=settings.options,
        limits=settings.limits,
    )
    if "@" in host.name:
        raise TruelineError(
            f"The model's name '{host.name}' holds '@', which parts a model from a method. Give --name."
        )
    _try(engine, host)
    return host


def _frozen(path: str, settings: Settings) -> Loaded:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_frozen(path, device=device, offline=settings.offline)


def _policy(loaded: Loaded, settings: Settings) -> Policy:
    return Policy(loaded.model, max_length=settings.max_length).requires_grad_(False).eval()


def _second_models(settings: Settings, policy: Loaded) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for text in settings.second_models:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in found:
            raise TruelineError(
                f"--second-model '{text}': expected NAME=PATH with a name of its own, such as aligned=runs/dpo."
            )
        loaded = _frozen(path, settings)
        if loaded.vocabulary_hash != policy.vocabulary_hash:
            raise TruelineError(
                f"'{path}' and '{settings.model}' have different vocabularies; their logits cannot be mixed."
            )
        found[name] = _policy(loaded, settings)
    return found


def _rewards(settings: Settings, policy: Loaded) -> tuple[dict[str, RewardModel], dict[str, float]]:
    """Rewards by label, and their weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context = FeedbackContext(policy.tokenizer, settings.max_length, "exact", device, settings.offline)
    weight_of = weights_of(settings.rewards)
    rewards: dict[str, RewardModel] = {}
    weights: dict[str, float] = {}
    for label, spec in judge_labels(settings.rewards).items():
        reward = open_reward(spec, context, policy.tokenizer, prefix=settings.prefix_rewards)
        if getattr(reward, "encode", False) is None:  # it reads ids, and /v1/score brings texts
            reward.encode = _coder(policy)
        rewards[label] = reward
        weights[label] = weight_of[spec]
    return rewards, weights


def _coder(policy: Loaded) -> Any:
    """(prompt, response) -> ids of both, as responses that were read become ids everywhere."""

    def coded(prompt: Any, response: str) -> tuple[list[int], list[int]]:
        groups, audit = encode(
            [Group(prompt, [Response(text=response)], origin="the response")],
            policy.tokenizer,
            UNLIMITED,
            eos_ids=policy.eos_ids,
        )
        if not groups:
            raise TruelineError(f"The response cannot be scored: {next(iter(audit.dropped))}.")
        return groups[0].prompt_ids or [], list(groups[0].responses[0].ids or ())

    return coded


def _capabilities(engine: DecodeEngine, allowed: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the engine says of its methods, with the rows that each takes; methods not allowed do not run."""
    found = engine.capabilities()
    for name in allowed:
        if name not in found:
            raise TruelineError(f"There is no decoding method '{name}'. {nearest(name, found)}")
    for name, facts in found.items():
        facts["width"] = str(catalogue.entry("decode", name).declared.get("width", ""))
        if allowed and name not in allowed:
            facts |= {"runs": False, "why": "the server was started without it"}
    return found


def _try(engine: DecodeEngine, host: Host) -> None:
    """One token by the default method: its options, its reward and its models are checked before anybody asks."""
    try:
        check_method(host.method, host, "method")
    except ApiError as error:
        raise TruelineError(error.message) from None
    ids = host.tokenizer("a", add_special_tokens=True)["input_ids"]
    rewards = default_rewards(host.method, host)
    engine.run(
        [Request(ids, host.method, host.options, max_new_tokens=1, eos_ids=host.eos_ids, prompt="a", rewards=rewards)]
    )
