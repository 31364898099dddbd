"""What a request asks for, taken apart: its methods by hook, their options, the rewards and the second models they need.

Everything that cannot be run is refused here, before any model is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trueline import registry
from trueline.decoding.loop import Loop, Steps
from trueline.decoding.models import check_room
from trueline.decoding.proposal import Gate, Mix, Shaper
from trueline.decoding.request import Allowed, Request
from trueline.errors import TruelineError, nearest

if TYPE_CHECKING:
    from trueline.decoding.engine import DecodeEngine

DEFAULT = "plain"


@dataclass
class Plan:
    """request: after prompt hooks. width: rows that a choice takes at once."""

    request: Request
    loop: tuple[registry.Method, dict[str, Any]]
    mix: Mix | None = None
    gate: Gate | None = None
    masks: list[Allowed] = field(default_factory=list)
    marks: list[Shaper] = field(default_factory=list)
    prepares: list[tuple[registry.Method, dict[str, Any]]] = field(default_factory=list)
    rewrites: list[tuple[registry.Method, dict[str, Any]]] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    width: int = 1

    def steps(self, loop: Loop) -> Steps:
        """The whole generator of one choice: another prompt, the search, the rewriters, then a last score where one is asked for."""
        for prepare, chosen in self.prepares:
            yield from prepare.call(loop, **chosen)
        method, options = self.loop
        yield from method.call(loop, **options)
        for rewrite, chosen in self.rewrites:
            yield from rewrite.call(loop, loop.line, **chosen)
        if self.request.scored and loop.line.reward is None and loop.committed:
            yield from _last_score(loop)


def _last_score(loop: Loop) -> Generator[Any, Any, None]:
    yield from loop.score([loop.line])


def plan_of(engine: DecodeEngine, request: Request) -> Plan:
    """Raises TruelineError for unknown methods and options, missing rewards and models, and rewards that cannot judge what
    the method shows them."""
    methods = [(method, options) for method, options in _methods(request)]
    loops = [(m, o) for m, o in methods if _said(m)["hook"] == "loop"]
    if len(loops) > 1:
        raise TruelineError(
            f"'{request.method}' names {len(loops)} searches ({', '.join(m.name for m, _ in loops)}); one at a time goes."
        )
    if not loops:
        loops = [(registry.load("decode", DEFAULT), {})]
        methods += loops
    plan = Plan(request, loops[0])
    for method, _ in methods:
        for role in str(_said(method)["models"]).split():
            if not role.endswith("?") or request.models.get(role[:-1], role[:-1]) in engine.models:
                plan.roles[role.rstrip("?")] = engine.role(request, role.rstrip("?"))
    _set_rewards(engine, plan, methods)
    hooks = {
        hook: [(m, o) for m, o in methods if _said(m)["hook"] == hook]
        for hook in ("prompt", "mix", "mask", "mark", "gate", "rewrite")
    }
    plan.prepares = [(m, o) for m, o in hooks["prompt"] if inspect.isgeneratorfunction(m.call)]
    for method, options in hooks["prompt"]:
        if (method, options) not in plan.prepares:
            plan.request = method.call(engine, plan.request, **options)
    if len(hooks["mix"]) > 1 or len(hooks["gate"]) > 1:
        raise TruelineError(f"'{request.method}' names several mixers or gates; one of each goes.")
    for method, options in hooks["mix"]:
        plan.mix = method.call(engine, plan.request, **options)
    for method, options in hooks["gate"]:
        plan.gate = method.call(engine, plan.request, **options)
    plan.masks = [method.call(engine, plan.request, **options) for method, options in hooks["mask"]]
    if plan.request.allowed is not None:
        plan.masks.append(plan.request.allowed)
    plan.marks = [method.call(engine, plan.request, **options) for method, options in hooks["mark"]]
    plan.rewrites = hooks["rewrite"]
    method, options = plan.loop
    if plan.gate is not None and _said(method)["unit"] != "token":
        raise TruelineError(
            f"A gate chooses between tokens, and '{method.name}' works on whole {_said(method)['unit']}s. Leave it out."
        )
    for name in str(_said(method)["width"]).split():
        plan.width *= max(1, int({**method.options(), **options}[name]))
    return plan


def _said(method: registry.Method) -> dict[str, Any]:
    from trueline.decode.contract import declared

    return declared(method)


def _methods(request: Request) -> list[tuple[registry.Method, dict[str, Any]]]:
    names = [name.strip() for name in request.method.split("+")]
    if len(set(names)) != len(names):
        raise TruelineError(f"'{request.method}' names a method twice.")
    methods = [registry.load("decode", name) for name in names]
    by_name: Mapping[str, Any] = request.options if len(names) > 1 else {names[0]: request.options}
    for name, options in by_name.items():
        if name not in names:
            raise TruelineError(
                f"options has '{name}', which is not in '{request.method}'. With several methods options go by method: "
                f"{{'{names[0]}': {{...}}}}. {nearest(name, names)}"
            )
        if not isinstance(options, Mapping):
            raise TruelineError(f"options['{name}'] is {options!r}; expected the options of '{name}' by name.")
    return [(method, _checked(method, by_name.get(method.name, {}))) for method in methods]


def _checked(method: registry.Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options given, of the kinds that their defaults have."""
    defaults = method.options()
    found = {}
    for name, value in options.items():
        if name not in defaults:
            known = f"{nearest(name, defaults)}" if defaults else "It has none."
            raise TruelineError(f"decode method '{method.name}' has no option '{name}'. {known}")
        default = defaults[name]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default) or (isinstance(value, float) and value != value):
            raise TruelineError(
                f"decode option {method.name}.{name} is {value!r}; expected {_kind(default)} such as {default!r}."
            )
        found[name] = value
    return found


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(type(value), type(value).__name__)


def _set_rewards(engine: DecodeEngine, plan: Plan, methods: list[tuple[registry.Method, dict[str, Any]]]) -> None:
    """The rewards of a request, refused where they cannot judge what the method shows them."""
    request = plan.request
    for name in request.rewards:
        if name not in engine.rewards:
            raise TruelineError(
                f"There is no reward '{name}'. {nearest(name, engine.rewards) if engine.rewards else 'None is registered.'}"
            )
    kinds = {_said(m)["reward"]: m for m, _ in methods}
    wanted = set(kinds) & {"prefix", "whole"}
    plan.rewards = dict(request.rewards)
    if not plan.rewards and wanted and len(engine.rewards) == 1:
        plan.rewards = dict.fromkeys(engine.rewards, 1.0)
    if wanted and not plan.rewards:
        have = f"name some of {', '.join(engine.rewards)}" if engine.rewards else "register one with the engine"
        raise TruelineError(f"Method '{request.method}' needs a reward: {have} (rewards={{'NAME': 1.0}}).")
    if request.scored and not plan.rewards:
        raise TruelineError("scored asks for the finished response's reward, and the request has no reward.")
    if "prefix" in kinds:
        method = kinds["prefix"]
        options = next(o for m, o in methods if m is method)
        lookahead = {**method.options(), **options}.get("lookahead", 0)
        to_the_end = lookahead == -1 or lookahead >= request.max_new_tokens
        for name in plan.rewards:
            if engine.rewards[name].capabilities.unit == "whole" and not to_the_end:
                way = (
                    "set lookahead=-1 so that candidates are finished before they are judged, or "
                    if "lookahead" in method.options()
                    else ""
                )
                raise TruelineError(
                    f"Reward '{name}' judges finished responses only, and '{method.name}' shows it unfinished ones: {way}use a "
                    "whole-sample method such as best_of_n."
                )


def check_request(engine: DecodeEngine, request: Request) -> None:
    """Refuse what no method could run, naming the value."""
    for name in ("max_new_tokens", "n"):
        value = getattr(request, name)
        if not isinstance(value, int) or value < 1:
            raise TruelineError(f"{name} is {value!r}; expected a whole number from 1 up.")
    if request.top_logprobs < 0:
        raise TruelineError(f"top_logprobs is {request.top_logprobs}; expected 0 or more.")
    vocabulary = engine.policy.model.vocabulary
    ids = request.prompt_ids
    if not ids:
        raise TruelineError("The prompt is empty; decoding needs at least one token (a BOS token, say).")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise TruelineError(
            f"The prompt has token id {wrong}, but the model has ids 0 to {vocabulary - 1}. Tokenizer and model do not belong together."
        )
    for token in request.eos_ids:
        if not 0 <= token < vocabulary:
            raise TruelineError(f"End token {token} does not exist: the model has token ids 0 to {vocabulary - 1}.")
    if request.stop and engine.tokenizer is None:
        raise TruelineError("stop texts need a tokenizer; open the engine with one.")
    if any(not stop for stop in request.stop):
        raise TruelineError("A stop text is empty; expected at least one character.")
    for name, voice in {"policy": engine.policy, **engine.models}.items():
        check_room(name, voice.model, len(ids), request.max_new_tokens)
