"""Which methods and options go together, and why the others do not.

A rule of `refusal` is one reason for a cell of the matrix objective x source x feedback. Option parsing refuses an
illegal cell with its reason; the documentation prints the whole matrix from the same function. An option that could do
nothing in a run is refused as well (`refuse_inert`). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from trueline.catalogue import Entry, entry
from trueline.config import AlignConfig
from trueline.errors import TruelineError


def scalar_head(objective: Entry) -> bool:
    """Whether it trains a reward model (one number a response) instead of a language model."""
    return objective.declared.get("head", "lm") == "scalar"


def reads_reference(objective: Entry) -> bool:
    return bool(objective.declared.get("reference", True))


def compares(objective: Entry) -> bool:
    """Whether it takes pairs of responses to one prompt."""
    return objective.needs == "PAIRS"


def samples(source: Entry) -> bool:
    return bool(source.declared.get("samples", False))


def refusal(objective: Entry, source: Entry, feedback: Entry) -> str | None:
    """The reason why these three do not go together, or None."""
    if scalar_head(objective) and samples(source):
        return (
            f"Objective {objective.name} trains a reward model, which cannot write responses; source {source.name} "
            "draws them from the trained model. Use source data."
        )
    if samples(source) and feedback.name == "data":
        return (
            f"Source {source.name} draws new responses, which no label in the data judges. Give a judge, for example "
            "--feedback reward:PATH or --feedback rule:MODULE:FUNCTION."
        )
    return None


def mixture_refusal(objectives: list[Entry]) -> str | None:
    """The reason why these objectives cannot be summed, or None."""
    if len({scalar_head(o) for o in objectives}) > 1:
        scalar = ", ".join(o.name for o in objectives if scalar_head(o))
        others = ", ".join(o.name for o in objectives if not scalar_head(o))
        return f"Objective {scalar} trains a reward model and {others} a language model; they cannot share one run. Make two runs."
    return None


def refuse_illegal(config: AlignConfig, chosen: Mapping[str, list[Entry]]) -> None:
    """Raise TruelineError, with the reason, for methods that do not go together. chosen: entries by family."""
    objectives, source = chosen["objectives"], chosen["sources"][0]
    judges = [entry("feedback", text.partition(":")[0]) for text in config.feedback]
    if not judges:
        raise TruelineError("feedback is empty. Give data, or a judge such as reward:PATH.")
    if len(judges) > 1 and any(j.name == "data" for j in judges):
        raise TruelineError(
            f"feedback = {config.feedback}: data judges nothing anew beside another judge. Leave data out."
        )
    if "data" in config.eval_feedback:
        raise TruelineError(
            "eval_feedback = data: the labels of a file judge no samples. Give a judge, or leave it out."
        )
    drawn = config.method_options[f"sources.{source.name}"].get("samples")
    if drawn is not None and drawn < 2 and any(compares(o) for o in objectives):
        names = ", ".join(o.name for o in objectives)
        raise TruelineError(
            f"sources.{source.name}.samples is {drawn}: objective {names} compares responses to one prompt. Give 2 or more."
        )
    reason = mixture_refusal(objectives)
    cells = (refusal(o, source, j) for o in objectives for j in judges)
    reason = reason or next((r for r in cells if r is not None), None)
    if reason is not None:
        raise TruelineError(reason)


def refuse_inert(config: AlignConfig, chosen: Mapping[str, list[Entry]]) -> None:
    """Raise TruelineError for an option that differs from its default and could do nothing in this run."""
    objectives = chosen["objectives"]
    referenced = any(reads_reference(o) for o in objectives)
    scalar = any(scalar_head(o) for o in objectives)
    paired = any(compares(o) for o in objectives)
    held_out = bool(config.eval_data or config.eval_fraction)
    names = ", ".join(o.name for o in objectives)
    judged = ("eval_feedback", "eval_prompts", "eval_samples", "eval_opponent_samples")
    rules: list[tuple[tuple[str, ...], bool, str]] = [
        (("data",), not config.data, "is empty. Give the files, folders or hub ids to train on"),
        (
            ("reference", "reference_cache", "kl_budget"),
            not referenced,
            f"has no effect: no objective reads a reference ({names})",
        ),
        (("eval_feedback",), scalar, f"has no effect: {names} trains a reward model, which writes no samples to judge"),
        ((*judged, "eval_steps"), not held_out, "has no effect without held-out data. Give eval_data or eval_fraction"),
        (
            (*judged, "eval_data", "eval_fraction", "best_metric", "early_stop", "kl_budget"),
            config.eval_steps is None,
            "has no effect without eval_steps: nothing would be evaluated",
        ),
        (("pairing", "pairing_margin"), not paired, f"has no effect: {names} compares no responses"),
        (("final_learning_rate",), config.schedule == "constant", "has no effect with schedule constant"),
        (("early_stop",), config.best_metric is None, "needs best_metric, the reading that must get better"),
        (("accept_changes",), not config.resume, "has no effect without resume"),
        (("eval_fraction",), bool(config.eval_data), "has no effect beside eval_data. Keep one"),
        (("epochs",), config.steps is not None, "has no effect beside steps. Keep one"),
        (("overwrite",), config.resume, "contradicts resume: one deletes the run and the other goes on with it"),
    ]
    for fields, active, reason in rules:
        for name in fields if active else ():
            default = AlignConfig.model_fields[name].get_default(call_default_factory=True)
            if getattr(config, name) != default or name == "data":
                raise TruelineError(f"{name} {reason}.")
    adapter = config.method_options[f"adapters.{config.adapter}"]
    if adapter.get("dropout") and not config.dropout:
        raise TruelineError(
            f"adapters.{config.adapter}.dropout has no effect without dropout: all dropout is off unless it is asked for. "
            "Give dropout, or leave it out."
        )
