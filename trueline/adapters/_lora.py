"""Attaching a LoRA adapter through peft: shared by the adapters that differ only in their base."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from trueline.errors import TruelineError, nearest

CLASSIFIER = "ForSequenceClassification"


def attach(model: Any, *, r: int, alpha: int, dropout: float, target_modules: str, head: bool, rslora: bool) -> Any:
    """The model with a fresh adapter, or, if it carries one, with that one.

    target_modules: "all-linear" (every linear layer but the head) or layer names joined by commas. head: adapt the
    output head too. A reward model's new head is always trained, and saved with the adapter.
    """
    _check(r, alpha, dropout)
    if hasattr(model, "peft_config"):
        return _continued(model, r=r, lora_alpha=alpha, lora_dropout=dropout, use_rslora=rslora)
    from peft import LoraConfig, get_peft_model

    scalar = CLASSIFIER in type(model).__name__
    if head and scalar:
        raise TruelineError("A reward model's head is new and trained in full: --head does not apply to it.")
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rslora,
        target_modules=_targets(model, target_modules, head),
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # GPT-2's transposed layers are noticed and handled by peft, tied heads by our merge.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out|.*tie_word_embeddings|.*tied", category=UserWarning)
        return get_peft_model(model, config)


def _check(r: int, alpha: int, dropout: float) -> None:
    if r < 1 or alpha <= 0:
        raise TruelineError(f"LoRA has r = {r} and alpha = {alpha}; both must be at least 1.")
    if not 0 <= dropout < 1:
        raise TruelineError(f"LoRA dropout is {dropout}; expected 0 <= dropout < 1.")


def _targets(model: Any, wanted: str, head: bool) -> str | list[str]:
    """peft's notion of the target layers: names end with one of these."""
    linear = {name for name, module in model.named_modules() if _is_linear(module)}
    output = model.get_output_embeddings()
    head_name = next((n for n, m in model.named_modules() if output is not None and m is output), None)
    if wanted == "all-linear":
        if not head:
            return "all-linear"
        return sorted({n.rsplit(".", 1)[-1] for n in linear})
    names = [n.strip() for n in wanted.split(",") if n.strip()]
    known = {n.rsplit(".", 1)[-1] for n in linear}
    for name in names:
        if not any(full == name or full.endswith(f".{name}") for full in linear):
            raise TruelineError(f"target_modules: the model has no linear layer '{name}'. {nearest(name, known)}")
    if not names:
        raise TruelineError("target_modules is empty. Expected 'all-linear' or names such as 'q_proj,v_proj'.")
    return sorted({*names, *([head_name] if head and head_name else [])})


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Linear4bit")


def _continued(model: Any, **asked: Any) -> Any:
    """Go on with the adapter that is there; an option that contradicts it is an error, not a silent loss."""
    defaults = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "use_rslora": False}
    own = model.peft_config["default"]
    if str(own.peft_type).rsplit(".", 1)[-1] != "LORA":
        raise TruelineError(f"The model carries a {own.peft_type} adapter, not LoRA.")
    for name, value in asked.items():
        if value != defaults[name] and value != getattr(own, name):
            raise TruelineError(
                f"The adapter of this model has {name} = {getattr(own, name)}; going on with it, {name} cannot become {value}. Leave "
                "the option out, or merge the adapter and start a new one."
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise TruelineError("The model's adapter was loaded frozen; load it with for_training=True to train it.")
    return model
