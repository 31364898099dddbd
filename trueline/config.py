"""Configuration of an align run: every option, its default and its meaning, in one typed place.

A run's options come from a YAML file, from flags or from keyword arguments, in that order of strength, and end here.
Unknown names and options that the chosen methods do not use are errors with the nearest valid name (`options.py`
does that part). Method options (`beta`, `samples`, ...) are not listed here: they are the keyword arguments of
the methods themselves and live in `method_options`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Names of other tools, mapped to ours. Values keep their meaning except where `options.py` says how they combine.
ALIASES = {
    "model_name_or_path": "model",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "output_dir": "output",
    "loss_type": "objective",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "max_completion_length": "max_response_length",
    "max_new_tokens": "max_response_length",
    "per_device_train_batch_size": "batch_size",  # multiplied by gradient_accumulation_steps when both are given
    "train_batch_size": "batch_size",
    "resume_from_checkpoint": "resume",
    "overwrite_output_dir": "overwrite",
    "reward_model_path": "feedback",
    "early_stopping_patience": "early_stop",
    "truncation_mode": "truncation",
}


class AlignConfig(BaseModel):
    """Options of `trueline align`. Lengths are tokens, rates are per optimiser step, batch sizes are groups."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    model: str = Field(description="model folder, hub id, or a finished run folder")
    data: list[str] = Field(
        default_factory=list, description="data files, folders or hub ids; 'FILE::0.3' gives a weight"
    )
    output: str | None = Field(default=None, description="run folder; refused if it already holds a run")

    objective: dict[str, float] = Field(description="objective name to weight, e.g. {'dpo': 1.0, 'sft': 0.2}")
    source: str = Field(default="data", description="where groups come from")
    feedback: list[str] = Field(
        default=["data"], description="who fills in rewards: data, reward:PATH, rule:MODULE:FN, ..."
    )
    adapter: str = Field(default="full", description="which parameters are trained: full, lora, qlora")
    reference: str | None = Field(default=None, description="reference model; default: the starting model")
    method_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of the chosen methods: {'objectives.dpo': {'beta': 0.1}}"
    )

    pairing: Literal["best_worst", "all_pairs", "adjacent"] = Field(
        default="best_worst", description="how a group of scored responses becomes pairs"
    )
    pairing_margin: float = Field(default=0.0, ge=0, description="a pair must differ by more than this reward")

    steps: int | None = Field(default=None, ge=1, description="optimiser steps; default: from epochs")
    epochs: float = Field(default=1.0, gt=0, description="passes over the data when steps is not given")
    batch_size: int = Field(default=32, ge=1, description="groups per optimiser step, over all processes")
    learning_rate: float = Field(default=1e-6, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="linear", description="decay after warm-up")
    final_learning_rate: float = Field(default=0.0, ge=0, le=1, description="end of the decay, as a share of the peak")
    warmup: float = Field(
        default=0.1, ge=0, description="warm-up: a share of the steps below 1, else a number of steps"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0, description="clip the global gradient norm")
    seed: int = Field(default=0, ge=0)

    max_length: int = Field(default=1024, ge=2, description="prompt plus response, tokens")
    max_prompt_length: int | None = Field(default=None, ge=1, description="prompt alone; longer ones are cut")
    max_response_length: int | None = Field(default=None, ge=1, description="response alone, also the sampling limit")
    truncation: Literal["keep_end", "keep_start", "drop"] = Field(
        default="keep_end", description="which part of an over-long prompt stays; drop: leave the group out"
    )
    system_prompt: str | None = Field(default=None, description="put before conversations that have none")
    chat_template: str | None = Field(default=None, description="a Jinja file that replaces the tokenizer's template")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_tokens: list[str] = Field(default_factory=list, description="special tokens to add; embeddings are resized")
    eos_tokens: list[str] = Field(default_factory=list, description="further tokens that end a response")

    eval_data: list[str] = Field(default_factory=list, description="held-out data; default: split off by prompt")
    eval_fraction: float = Field(default=0.0, ge=0, lt=1, description="share of prompts held out from data")
    eval_steps: int | None = Field(default=None, ge=1, description="evaluate every so many steps, and at both ends")
    eval_feedback: list[str] = Field(default_factory=list, description="judges of samples at evaluation")
    eval_prompts: int = Field(default=64, ge=1, description="held-out prompts to sample at evaluation")
    eval_samples: int = Field(default=1, ge=1, description="samples a prompt at evaluation")
    eval_opponent_samples: int = Field(
        default=4, ge=1, description="samples of the starting model a prompt: the opponent"
    )
    best_metric: str | None = Field(
        default=None, description="reading that picks the best checkpoint, e.g. reward_accuracy"
    )
    early_stop: int | None = Field(
        default=None, ge=1, description="stop after so many evaluations without a better one"
    )

    save_steps: int | None = Field(
        default=None, ge=1, description="checkpoint every so many steps; default: at the end"
    )
    save_total_limit: int | None = Field(default=None, ge=1, description="keep so many checkpoints (and the best)")
    resume: bool = Field(default=False, description="go on from the newest checkpoint in output")
    overwrite: bool = Field(default=False, description="delete the run that output holds")
    accept_changes: bool = Field(default=False, description="resume although data or options changed")

    token_budget: int = Field(default=4096, ge=16, description="tokens a scoring micro-batch; never changes a step")
    precision: Literal["exact", "fast"] = Field(
        default="exact", description="fast: bf16 matrix products, fp32 elsewhere"
    )
    reference_cache: bool = Field(default=False, description="score the reference once and keep it on disk")
    layout: Literal["auto", "padded"] = Field(
        default="auto", description="auto: shared prefixes where the probe passes"
    )
    gradient_checkpointing: bool = Field(default=False)
    dropout: bool = Field(default=False, description="keep the model's dropout on while training")
    max_nonfinite_steps: int = Field(
        default=3, ge=0, description="stop after so many steps with a non-finite loss or gradient"
    )
    kl_budget: float | None = Field(
        default=None, gt=0, description="alarm when KL to the reference passes this, in nats"
    )
    record_stream: bool = Field(default=True, description="keep sampled groups so that they can be replayed")
    report_to: list[str] = Field(default_factory=list, description="tensorboard, wandb, trackio, beside metrics.jsonl")
    offline: bool = Field(default=False, description="never ask a hub")
    dry_run: bool = Field(
        default=False, description="print the resolved options, the first batch and a memory estimate"
    )
