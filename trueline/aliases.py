"""Option names of other tools (Hugging Face Trainer, TRL) and what they are called here.

`RENAMED` names mean the same thing. `CONVERTED` names say it with another value. `ADVICE` names are well known and
not taken: the text says what to write instead. A name whose meaning differs from ours is never mapped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trueline.errors import TruelineError

RENAMED = {
    "model_name_or_path": "model",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "eval_dataset": "eval_data",
    "validation_file": "eval_data",
    "output_dir": "output",
    "ref_model": "reference",
    "num_train_epochs": "epochs",
    "lr": "learning_rate",
    "adam_eps": "adam_epsilon",
    "max_completion_length": "max_response_length",
    "max_new_tokens": "max_response_length",
    "truncation_mode": "truncation",
    "overwrite_output_dir": "overwrite",
    "metric_for_best_model": "best_metric",
    "early_stopping_patience": "early_stop",
    "precompute_ref_log_probs": "reference_cache",
    # options of methods: "family.option" is the option of whichever method of that family is chosen
    "num_generations": "sources.samples",
    "lora_r": "adapters.r",
    "lora_alpha": "adapters.alpha",
    "lora_dropout": "adapters.dropout",
    "lora_target_modules": "adapters.target_modules",
    "center_rewards_coefficient": "objectives.center",
}

# Their product is the batch size, so they are read together (`options.py`).
BATCH_PARTS = ("per_device_train_batch_size", "gradient_accumulation_steps")

ADVICE = {
    "train_batch_size": "Give batch_size, the groups of one optimiser step over all processes.",
    "logging_steps": "Every step is logged; leave it out.",
    "logging_dir": "Logs are written into output; leave it out.",
    "eval_strategy": "Give eval_steps.",
    "evaluation_strategy": "Give eval_steps.",
    "save_strategy": "Give save_steps.",
    "load_best_model_at_end": "Give best_metric: the best checkpoint then becomes the run's model.",
    "greater_is_better": "Give best_metric; whether more of it is better is known.",
    "use_vllm": "Sampling uses the built-in sampler; leave it out.",
    "padding_free": "Rows are packed without padding wherever the model allows it (see layout); leave it out.",
    "packing": "Rows are packed wherever the model allows it (see layout); leave it out.",
    "deepspeed": "Not available.",
    "fsdp": "Not available.",
    "generate_during_eval": "Give eval_feedback, a judge of samples at evaluation.",
    "load_in_8bit": "8-bit bases are not available; give adapter qlora for a 4-bit base.",
    "label_smoothing": "Its meaning differs by loss: give epsilon of objective cdpo, robust_dpo, exo or aot.",
    "loss_weights": "Give the weights with the objective: dpo:1,sft:0.2.",
    "bf16_full_eval": "Weights stay in float32; give precision fast for bf16 matrix products.",
    "tf32": "Give precision exact or fast.",
}

# TRL's names of losses that have another name here; the others are the objective of the same name, if there is one.
# Its `ipo` is left out on purpose, see `_loss_type`.
LOSS_TYPES = {
    "sigmoid": "dpo",
    "nll": "sft",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust_dpo",
    "sppo_hard": "sppo",
    "sigmoid_norm": "ln_dpo",
}

SCHEDULES = {"constant_with_warmup": "constant"}

Settings = dict[str, Any]


def truth(name: str, value: Any) -> bool:
    """A switch written as a YAML boolean, a flag without a value, or the word."""
    words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    known = value if isinstance(value, bool) else words.get(str(value).strip().lower())
    if known is None:
        raise TruelineError(f"{name} = {value!r}: expected true or false.")
    return known


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise TruelineError(f"{name} = {value!r}: expected a number.") from None


def _loss_type(value: Any) -> Settings:
    names = value if isinstance(value, list) else [value]
    if "ipo" in names:
        raise TruelineError(
            "loss_type = 'ipo' is TRL's length-averaged variant. The paper's loss, which sums over tokens, is "
            "`--objective ipo`; its beta is another number than TRL's, so it is not taken over in silence."
        )
    unpaired = {"objectives.aot.paired": False} if "aot_unpaired" in names else {}
    return {"objective": [LOSS_TYPES.get(str(n), str(n).removesuffix("_unpaired")) for n in names], **unpaired}


def _max_steps(value: Any) -> Settings:
    return {} if _number("max_steps", value) == -1 else {"steps": value}


def _warmup_ratio(value: Any) -> Settings:
    if not 0 <= _number("warmup_ratio", value) < 1:
        raise TruelineError(f"warmup_ratio = {value!r}: expected a share of the steps, at least 0 and below 1.")
    return {"warmup": value}


def _bf16(value: Any) -> Settings:
    return {"precision": "fast" if truth("bf16", value) else "exact"}


def _fp16(value: Any) -> Settings:
    if truth("fp16", value):
        raise TruelineError(
            "fp16 = true: half precision is not available. Give precision fast (bf16 products) or exact."
        )
    return {}


def _dtype(value: Any) -> Settings:
    if str(value) not in ("float32", "fp32", "torch.float32"):
        raise TruelineError(
            f"dtype = {value!r}: weights stay in float32, because bf16 weights lose the small updates of preference "
            "losses. Give precision fast for bf16 matrix products on float32 weights."
        )
    return {}


def _optimizer(value: Any) -> Settings:
    if str(value) not in ("adamw", "adamw_torch", "adamw_torch_fused"):
        raise TruelineError(f"optim = {value!r}: the optimiser is AdamW. Leave optim out.")
    return {}


def _resume(value: Any) -> Settings:
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        raise TruelineError(
            f"resume_from_checkpoint = {value!r}: a run goes on from the newest checkpoint in its own folder. Give the "
            "run folder as output, and resume."
        )
    return {"resume": truth("resume_from_checkpoint", value)}


CONVERTED: dict[str, Callable[[Any], Settings]] = {
    "loss_type": _loss_type,
    "max_steps": _max_steps,
    "warmup_ratio": _warmup_ratio,
    "warmup_steps": lambda value: {"warmup": value},
    "lr_scheduler_type": lambda value: {"schedule": SCHEDULES.get(str(value), value)},
    "reward_model_path": lambda value: {"feedback": f"reward:{value}"},
    "disable_dropout": lambda value: {"dropout": not truth("disable_dropout", value)},
    "use_peft": lambda value: {"adapter": "lora" if truth("use_peft", value) else "full"},
    "load_in_4bit": lambda value: {"adapter": "qlora"} if truth("load_in_4bit", value) else {},
    "bf16": _bf16,
    "fp16": _fp16,
    "dtype": _dtype,
    "torch_dtype": _dtype,
    "optim": _optimizer,
    "resume_from_checkpoint": _resume,
}


def names() -> set[str]:
    """Every foreign name that is taken."""
    return {*RENAMED, *CONVERTED, *BATCH_PARTS}
