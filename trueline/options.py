"""From what a person wrote (a recipe, flags, keyword arguments) to a complete and legal `AlignConfig`.

`resolve_layers` takes what each place said, weaker first, and is strict: an unknown name, an option that no chosen method has, a value of
the wrong type and a combination without effect are errors that say what to write. Method options are read from the
method files' signatures (`catalogue.py`), so nothing here imports torch. What other tools call things is in
`aliases.py`, which methods go together in `legality.py`, the fields themselves in `config.py`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from trueline import aliases, catalogue, legality
from trueline.config import AlignConfig
from trueline.errors import TruelineError, nearest
from trueline.feedback import _specification as specification

FIELDS = AlignConfig.model_fields
# A field that chooses methods, and the family it chooses from.
SELECTS = {"objective": "objectives", "source": "sources", "feedback": "feedback", "adapter": "adapters"}
FAMILIES = tuple(SELECTS.values())


@dataclass(frozen=True)
class Layer:
    """What one place said: its names as written there, and the place's name for messages."""

    values: Mapping[str, Any]
    origin: str


@dataclass(frozen=True)
class Setting:
    """One name and value. name: a field, a bare method option, or 'family.method.option' / 'family.option'."""

    name: str
    value: Any
    written: str
    origin: str

    def __str__(self) -> str:
        return f"{self.written} ({self.origin})"


@dataclass(frozen=True)
class Resolved:
    """A complete configuration, and what was worked out on the way that its reader should see."""

    config: AlignConfig
    notes: tuple[str, ...] = ()


def resolve(given: Mapping[str, Any], origin: str = "align()") -> AlignConfig:
    """The configuration that keyword arguments come to; a complete configuration comes to itself."""
    return resolve_layers(Layer(given, origin)).config


def resolve_layers(*layers: Layer) -> Resolved:
    """The configuration that these layers, weaker first, come to. Raises TruelineError for anything doubtful."""
    base, options = _merge(layers)
    notes = _batch_size(base)
    values = {s.name: _shaped(s.value, FIELDS[s.name].annotation) for s in base.values()}
    if "objective" not in values:
        raise TruelineError(
            f"Nothing says what to train with. Give objective, one of: {_list(catalogue.names('objectives'))}."
        )
    values["objective"] = parse_objective(values["objective"])
    chosen = _choose(values)
    values["method_options"] = _place(options, chosen)
    notes += _said_elsewhere(base["objective"], values["method_options"])
    config = _validate(values, base)
    legality.refuse_illegal(config, chosen)
    legality.refuse_inert(config, chosen)
    return Resolved(config, tuple(notes))


# ---- names ----------------------------------------------------------------------------------------------------------


def canonical(written: str) -> str:
    """Hyphens are underscores, and a dotted name starts with its family: 'objective.dpo.beta' -> 'objectives.dpo.beta'."""
    parts = written.strip().replace("-", "_").removeprefix("method_options.").split(".")
    if len(parts) > 1:
        parts[0] = SELECTS.get(parts[0], parts[0])
    return ".".join(parts)


def _settings(layer: Layer) -> Iterator[Setting]:
    """The layer's settings under our names, nested blocks opened."""
    for written, value in layer.values.items():
        name = canonical(written)
        for ours, ours_value in _translated(name, value, layer.origin):
            yield Setting(ours, ours_value, written, layer.origin)


def _translated(name: str, value: Any, origin: str) -> Iterator[tuple[str, Any]]:
    if name in aliases.ADVICE and name not in FIELDS:
        raise TruelineError(f"{name} ({origin}) is not an option here. {aliases.ADVICE[name]}")
    if name in aliases.RENAMED:
        yield aliases.RENAMED[name], value
    elif name in aliases.CONVERTED:
        yield from aliases.CONVERTED[name](value).items()
    elif name == "method_options":
        for family_or_method, block in _mapping(name, value, origin).items():
            yield from _block(canonical(family_or_method), block, origin)
    elif name in SELECTS and isinstance(value, Mapping):
        yield from _selection(name, value, origin)
    elif (name in FAMILIES and name not in FIELDS) or (name.count(".") == 1 and isinstance(value, Mapping)):
        yield from _block(name, value, origin)
    else:
        yield name, value


def _mapping(name: str, value: Any, origin: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TruelineError(f"{name} ({origin}): expected a block of options, found {value!r}.")
    return value


def _block(name: str, value: Any, origin: str) -> Iterator[tuple[str, Any]]:
    """Leaves of a nested block: {'objectives': {'dpo': {'beta': 0.2}}} -> 'objectives.dpo.beta'."""
    for key, inner in _mapping(name, value, origin).items():
        inside = f"{name}.{str(key).replace('-', '_')}"
        if inside.count(".") < 2:
            yield from _block(inside, inner, origin)
        else:
            yield inside, inner


def _selection(name: str, value: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Any]]:
    """A field that chooses by a block: {'source': {'policy': {'samples': 4}}} chooses policy and sets its option."""
    chosen: dict[str, float] = {}
    for key, inner in value.items():
        chosen[key] = 1.0 if isinstance(inner, Mapping) else inner
        if isinstance(inner, Mapping):
            yield from _block(f"{SELECTS[name]}.{key.split(':')[0]}", inner, origin)
        elif name != "objective":
            raise TruelineError(f"{name}.{key} ({origin}): expected a block of options, found {inner!r}.")
    if name in ("source", "adapter") and len(chosen) != 1:
        raise TruelineError(f"{name} ({origin}): expected one method, found {_list(chosen) or 'none'}.")
    yield name, chosen if name == "objective" else list(chosen) if name == "feedback" else next(iter(chosen))


def _merge(layers: tuple[Layer, ...]) -> tuple[dict[str, Setting], list[Setting]]:
    """Fields with the strongest layer's value, and every other setting in order of strength."""
    base: dict[str, Setting] = {}
    options: list[Setting] = []
    for layer in layers:
        here: dict[str, Setting] = {}
        for setting in _settings(layer):
            if setting.name in here:
                raise TruelineError(
                    f"{layer.origin} says {setting.name} twice: {here[setting.name].written} and {setting.written}. Keep one."
                )
            here[setting.name] = setting
        _one_batch_size(base, here)
        for setting in here.values():
            if setting.name in FIELDS or setting.name in aliases.BATCH_PARTS:
                base[setting.name] = setting
            else:
                options.append(setting)
    return base, options


# ---- batch size ------------------------------------------------------------------------------------------------------


def _one_batch_size(base: dict[str, Setting], here: dict[str, Setting]) -> None:
    """A layer that speaks of the batch size in one vocabulary silences weaker layers that used the other."""
    parts = [name for name in aliases.BATCH_PARTS if name in here]
    if "batch_size" in here and parts:
        raise TruelineError(
            f"{here[parts[0]].origin} gives both batch_size and {_list(parts)}. batch_size is the groups of one "
            "optimiser step; token_budget alone cuts it into micro-batches. Keep batch_size."
        )
    if "batch_size" in here:
        for name in aliases.BATCH_PARTS:
            base.pop(name, None)
    elif aliases.BATCH_PARTS[0] in here:
        base.pop("batch_size", None)


def _batch_size(base: dict[str, Setting]) -> list[str]:
    """Replace the two Hugging Face names by their product, and say so."""
    device, accumulation = (base.pop(name, None) for name in aliases.BATCH_PARTS)
    if device is None and accumulation is None:
        return []
    if device is None:
        raise TruelineError(
            f"{accumulation} has no effect alone: batch_size is the groups of one optimiser step, and token_budget cuts "
            "it into micro-batches. Give batch_size, or per_device_train_batch_size beside it."
        )
    rows, times = (_whole(s) if s else 1 for s in (device, accumulation))
    base["batch_size"] = Setting("batch_size", rows * times, device.written, device.origin)
    return [
        f"batch_size = {rows * times} groups per optimiser step "
        f"(per_device_train_batch_size {rows} x gradient_accumulation_steps {times})"
    ]


def _whole(setting: Setting) -> int:
    text = str(setting.value)
    if isinstance(setting.value, bool) or not text.isdigit() or int(text) < 1:
        raise TruelineError(f"{setting} = {setting.value!r}: expected a whole number of at least 1.")
    return int(text)


# ---- methods ---------------------------------------------------------------------------------------------------------


def parse_objective(value: Any) -> dict[str, float]:
    """Names and weights: 'dpo', 'dpo:1,sft:0.2', ['dpo', 'sft'] or {'dpo': 1, 'sft': 0.2}."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list):
        pairs = [(str(part).partition(":")[0], str(part).partition(":")[2] or 1.0) for part in value]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise TruelineError(f"objective = {value!r}: expected a name, or names with weights such as dpo:1,sft:0.2.")
    weights: dict[str, float] = {}
    for name, weight in pairs:
        _known("objectives", name)
        if name in weights:
            raise TruelineError(f"objective names {name} twice. Give it once, with one weight.")
        weights[name] = _typed(weight, "float", f"The weight of objective {name}")
        if weights[name] <= 0:
            raise TruelineError(
                f"The weight of objective {name} is {weight}: expected a number above 0, or leave it out."
            )
    if not weights:
        raise TruelineError(f"objective is empty. Give one of: {_list(catalogue.names('objectives'))}.")
    return weights


def _said_elsewhere(setting: Setting, options: dict[str, dict[str, Any]]) -> list[str]:
    """What TRL's loss_type came to: defaults here are the papers', where TRL has one beta for every loss."""
    if canonical(setting.written) != "loss_type":
        return []
    return [
        f"loss_type: objective {name} with {_list(f'{k} = {v}' for k, v in values.items()) or 'no options'}"
        for key, values in options.items()
        for family, _, name in [key.partition(".")]
        if family == "objectives"
    ]


def _known(family: str, name: str) -> catalogue.Entry:
    if name not in catalogue.names(family):
        raise TruelineError(f"There is no {family} method '{name}'. {nearest(name, catalogue.names(family))}")
    return catalogue.entry(family, name)


def _choose(values: dict[str, Any]) -> dict[str, list[catalogue.Entry]]:
    """The methods that the fields choose, by family. Judges of training and of evaluation are both feedback."""

    def value(field: str) -> Any:
        return values.get(field, FIELDS[field].get_default(call_default_factory=True))

    judges = [*_strings(value("feedback"), "feedback"), *_strings(value("eval_feedback"), "eval_feedback")]
    named = {
        "objectives": list(values["objective"]),
        "sources": _strings([value("source")], "source"),
        "feedback": list(dict.fromkeys(name for text in judges for name in _judges(text))),
        "adapters": _strings([value("adapter")], "adapter"),
    }
    return {family: [_known(family, name) for name in chosen] for family, chosen in named.items()}


def _strings(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise TruelineError(f"{field} = {value!r}: expected the name of a method.")
    return value


def _judges(text: str) -> list[str]:
    """The method of 'reward:PATH' and of judges inside it, after checking that each has after its colon what it needs."""
    spec = specification.parse(text)
    name = spec.name
    wanted = _known("feedback", name).declared.get("argument")
    if wanted and not spec.argument:
        raise TruelineError(f"feedback '{text}' lacks its argument. Write {name}:{wanted}.")
    if not wanted and (spec.argument or str(spec) != text.partition("::")[0]):
        raise TruelineError(f"feedback '{text}': {name} takes nothing after a colon. Write {name}.")
    return [name, *(inner for member in spec.inner() for inner in _judges(member))]


def _place(options: list[Setting], chosen: dict[str, list[catalogue.Entry]]) -> dict[str, dict[str, Any]]:
    """Every option of every chosen method, defaults filled in, later settings over earlier ones."""
    methods = {f"{family}.{e.name}": e for family, entries in chosen.items() for e in entries}
    placed: dict[str, dict[str, Any]] = {key: {} for key in methods}
    said: dict[tuple[str, str], Setting] = {}
    for setting in options:
        key, option = _home(setting, methods)
        earlier = said.get((key, option.name))
        if earlier is not None and earlier.origin == setting.origin:
            raise TruelineError(
                f"{setting.origin} says {key}.{option.name} twice: {earlier.written} and {setting.written}."
            )
        said[key, option.name] = setting
        placed[key][option.name] = _typed(setting.value, option.type, f"{setting}")
    for key, entry in methods.items():
        for option in entry.options:
            if option.required and option.name not in placed[key]:
                raise TruelineError(f"{key} needs its option {option.name} ({option.type}). Give --{option.name}.")
        placed[key] = {o.name: placed[key].get(o.name, o.default) for o in entry.options}
    return placed


def _home(setting: Setting, methods: dict[str, catalogue.Entry]) -> tuple[str, catalogue.Option]:
    """The chosen method that a setting belongs to, or an error that says why there is none or more than one."""
    prefix, _, name = setting.name.rpartition(".")
    found = [
        (key, option)
        for key, entry in methods.items()
        for option in entry.options
        if option.name == name and f"{key}.".startswith(f"{prefix}." if prefix else "")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        dotted = " or ".join(f"--{key}.{name}" for key, _ in found)
        raise TruelineError(f"{setting} could mean several chosen methods. Write {dotted}.")
    raise TruelineError(_why_homeless(setting, prefix, name, methods))


def _why_homeless(setting: Setting, prefix: str, name: str, methods: dict[str, catalogue.Entry]) -> str:
    if "." in prefix:
        family, _, method = prefix.partition(".")
        if family not in FAMILIES:
            return f"{setting}: there is no family '{family}'. {nearest(family, FAMILIES)}"
        entry = _known(family, method)
        if prefix not in methods:
            return f"{setting}: {prefix} is not chosen. {_chosen(family, methods)}"
        return f"{setting}: {prefix} has no option '{name}'. {_nearest_option(name, entry)}"
    alike = [e for e in catalogue.entries() if any(o.name == name for o in e.options) and prefix in ("", e.family)]
    owners = [e for e in alike if e.family in FAMILIES] or alike  # methods of other commands only where no run has it
    if owners:
        of = _list(f"{e.family}.{e.name}" for e in owners[:3])
        of += f" and {len(owners) - 3} others (trueline methods lists them)" if len(owners) > 3 else ""
        families = dict.fromkeys(e.family for e in owners if e.family in FAMILIES)
        return f"{setting} has no effect: it is an option of {of}. {' '.join(_chosen(f, methods) for f in families)}"
    here = {o.name for e in methods.values() for o in e.options}
    return f"There is no option {setting}. {nearest(name, {*FIELDS, *here, *aliases.names()})}"


def _chosen(family: str, methods: dict[str, catalogue.Entry]) -> str:
    return f"Chosen {family}: {_list(e.name for e in methods.values() if e.family == family)}."


def _nearest_option(name: str, entry: catalogue.Entry) -> str:
    return nearest(name, (o.name for o in entry.options)) if entry.options else "It has none."


def _list(names: Any) -> str:
    return ", ".join(names)


# ---- values ----------------------------------------------------------------------------------------------------------


def _members(annotation: Any) -> set[Any]:
    """The plain types that an annotation accepts: list[str] | None -> {list, NoneType}."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_members(a) for a in get_args(annotation)))
    return {get_origin(annotation) or annotation}


def type_text(annotation: Any) -> str:
    """A type as a person reads it: 'float', 'list[str]', 'constant | linear | cosine'."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(type_text(a) for a in get_args(annotation))
    if annotation is types.NoneType:
        return "none"
    return str(annotation).replace("typing.", "") if get_origin(annotation) else annotation.__name__


def _shaped(value: Any, annotation: Any) -> Any:
    """A flag's text in the shape its type needs: one value where a list is expected, YAML where a block is."""
    accepts = _members(annotation)
    if not isinstance(value, str):
        return value
    if value.lower() in ("none", "null") and types.NoneType in accepts:
        return None
    if (dict in accepts and value.startswith("{")) or (list in accepts and value.startswith("[")):
        from trueline.recipe import parse_value

        return parse_value(value)
    return [value] if list in accepts and str not in accepts else value


def _typed(value: Any, type_text: str, what: str) -> Any:
    """The value as the type that a method's signature names. The text comes from this package's own files."""
    annotation = eval(type_text, {"Literal": Literal})
    shaped = _shaped(value, annotation)
    problem = _not_scalar(shaped, annotation)
    if problem is None:
        try:
            return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(shaped)
        except ValidationError as error:
            problem = _reason(error.errors()[0])
    raise TruelineError(f"{what} = {value!r}: expected {type_text}; {problem}.")


def _not_scalar(value: Any, annotation: Any) -> str | None:
    """What pydantic would let pass: a boolean is not a number, and two values are not one."""
    accepts = _members(annotation)
    if isinstance(value, bool) and not accepts & {bool, Any, dict} and value not in get_args(annotation):
        return "found a boolean (a flag without a value means true)"
    if isinstance(value, list) and list not in accepts:
        return f"it takes one value and {len(value)} were given (a recipe stands before the flags)"
    return None


def _reason(error: Any) -> str:
    return str(error["msg"]).replace("Input should be", "it should be")


def _validate(values: dict[str, Any], base: dict[str, Setting]) -> AlignConfig:
    problems = []
    for name, value in values.items():
        problem = _not_scalar(value, FIELDS[name].annotation)
        if problem is not None and name in base:
            problems.append(f"{base[name]} = {value!r}: expected {type_text(FIELDS[name].annotation)}; {problem}.")
    if problems:
        raise TruelineError("\n".join(problems))
    try:
        return AlignConfig.model_validate(values)
    except ValidationError as error:
        raise TruelineError("\n".join(_field_problem(e, base) for e in error.errors())) from None


def _field_problem(error: Any, base: dict[str, Setting]) -> str:
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{name} is missing: {FIELDS[name].description}."
    annotation = FIELDS[name].annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    expected = f"{_reason(error)}. {nearest(str(error['input']), choices)}" if choices else None
    expected = expected or f"expected {type_text(annotation)}; {_reason(error)}."
    return f"{base.get(name, name)} = {error['input']!r}: {expected}"
