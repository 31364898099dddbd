"""Configuration of an align run: every option, its default and its meaning, in one typed place.

A run's options come from a YAML file, from flags or from keyword arguments, in that order of strength, and end here.
Unknown names and options that the chosen methods do not use are errors with the nearest valid name (`options.py`
does that part). Method options (`beta`, `samples`, ...) are not listed here: they are the keyword arguments of
the methods themselves and live in `method_options`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# The judgment goes first: what stands right before the response stays what it is without one.
JUDGMENT_TEMPLATE = "Write a response that matches this judgment.\n\n### Judgment:\n{judgment}\n\n{prompt}"

# The sections of `trueline align --help` and of the options page. Every field stands in exactly one.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Model and data": ("model", "data", "output", "adapter", "reference"),
    "Method": (
        "objective",
        "source",
        "feedback",
        "teachers",
        "method_options",
        "pairing",
        "pairing_margin",
        "selector",
        "selector_value",
        "thumb_threshold",
        "zero_variance",
        "zero_variance_attempts",
    ),
    "Optimisation": (
        "steps",
        "epochs",
        "batch_size",
        "updates_per_batch",
        "minibatches",
        "scoring_temperature",
        "learning_rate",
        "schedule",
        "final_learning_rate",
        "warmup",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "dropout",
        "seed",
    ),
    "Text": (
        "max_length",
        "max_prompt_length",
        "max_response_length",
        "truncation",
        "system_prompt",
        "chat_template",
        "chat_template_kwargs",
        "judgment_template",
        "add_tokens",
        "eos_tokens",
    ),
    "Evaluation": (
        "eval_data",
        "eval_fraction",
        "eval_steps",
        "eval_feedback",
        "eval_prompts",
        "eval_samples",
        "eval_opponent",
        "eval_opponent_samples",
        "eval_reference",
        "best_metric",
        "early_stop",
    ),
    "Saving and resuming": (
        "save_steps",
        "save_total_limit",
        "resume",
        "overwrite",
        "accept_changes",
        "record_stream",
    ),
    "Engine": ("token_budget", "precision", "layout", "reference_cache", "gradient_checkpointing", "shard"),
    "Watching": ("max_nonfinite_steps", "kl_budget", "report_to"),
    "Running": ("offline", "dry_run"),
}


class AlignConfig(BaseModel):
    """Options of `trueline align`. Lengths are tokens, rates are per optimiser step, batch sizes are groups."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    model: str = Field(description="model folder, hub id, or a finished run folder")
    data: list[str] = Field(
        default_factory=list, description="data files, folders or hub ids; 'FILE::0.3' gives a weight"
    )
    output: str | None = Field(default=None, description="run folder; refused if it already holds a run")

    objective: dict[str, float] = Field(description="what is trained for: dpo, or a weighted sum dpo:1,sft:0.2")
    source: str = Field(default="data", description="where groups come from")
    feedback: list[str] = Field(
        default=["data"],
        description="who fills in rewards: data, reward:PATH, rule:MODULE:FN, ...; '::0.3' gives a weight",
    )
    adapter: str = Field(default="full", description="which parameters are trained: full, lora, qlora")
    reference: str | None = Field(default=None, description="reference model; default: the starting model")
    teachers: list[str] = Field(
        default_factory=list, description="frozen models to learn from: folders, hub ids or run folders"
    )
    method_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of the chosen methods: {'objectives.dpo': {'beta': 0.1}}"
    )

    pairing: Literal["best_worst", "all_pairs", "adjacent", "best_random"] = Field(
        default="best_worst", description="how a group of scored responses becomes pairs"
    )
    pairing_margin: float = Field(default=0.0, ge=0, description="rewards of a pair must differ by more than this")
    selector: Literal["best", "top_fraction", "threshold"] = Field(
        default="best", description="which judged responses are demonstrations: the best of each group, or of the step"
    )
    selector_value: float = Field(default=0.0, description="that fraction of the step's responses, or that reward")
    thumb_threshold: float | None = Field(
        default=None, description="a lone scored response is good where its reward is above this"
    )
    zero_variance: Literal["keep", "skip", "resample"] = Field(
        default="keep", description="groups whose samples all got one score: use them, leave them out, draw them again"
    )
    zero_variance_attempts: int = Field(
        default=3, ge=1, description="with resample: draw a group again so many times, then leave it out"
    )

    steps: int | None = Field(default=None, ge=1, description="optimiser steps; default: from epochs")
    epochs: float = Field(default=1.0, gt=0, description="passes over the data when steps is not given")
    batch_size: int = Field(default=32, ge=1, description="groups per optimiser step, over all processes")
    updates_per_batch: int = Field(default=1, ge=1, description="passes over each batch before the next is drawn")
    minibatches: int = Field(
        default=1, ge=1, description="optimiser updates of one pass; each takes its share of the groups"
    )
    scoring_temperature: float | None = Field(
        default=None, gt=0, description="temperature of ratio objectives; default: that of the source"
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="linear", description="decay after warm-up")
    final_learning_rate: float = Field(default=0.0, ge=0, le=1, description="end of the decay, as a share of the peak")
    warmup: float = Field(
        default=0.1, ge=0, description="warm-up: a share of the steps below 1, else a number of steps"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decay of AdamW, decoupled from the gradient")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of AdamW's gradient mean")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of AdamW's squared-gradient mean")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="added to AdamW's denominator")
    max_grad_norm: float = Field(default=1.0, gt=0, description="clip the global gradient norm")
    seed: int = Field(default=0, ge=0, description="names every random stream of the run")

    max_length: int = Field(default=1024, ge=2, description="prompt plus response, tokens")
    max_prompt_length: int | None = Field(default=None, ge=1, description="prompt alone; longer ones are cut")
    max_response_length: int | None = Field(default=None, ge=1, description="response alone, also the sampling limit")
    truncation: Literal["keep_end", "keep_start", "drop"] = Field(
        default="keep_end", description="which part of an over-long prompt stays; drop: leave the group out"
    )
    system_prompt: str | None = Field(default=None, description="put before conversations that have none")
    chat_template: str | None = Field(default=None, description="a Jinja file that replaces the tokenizer's template")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="keywords for the chat template")
    judgment_template: str = Field(
        default=JUDGMENT_TEMPLATE,
        description="how a prompt holds its judgment in words: {prompt} and {judgment}, once each",
    )
    add_tokens: list[str] = Field(default_factory=list, description="special tokens to add; embeddings are resized")
    eos_tokens: list[str] = Field(default_factory=list, description="further tokens that end a response")

    eval_data: list[str] = Field(default_factory=list, description="held-out data; default: split off by prompt")
    eval_fraction: float = Field(default=0.0, ge=0, lt=1, description="share of prompts held out from data")
    eval_steps: int | None = Field(default=None, ge=1, description="evaluate every so many steps, and at both ends")
    eval_feedback: list[str] = Field(default_factory=list, description="judges of samples at evaluation")
    eval_prompts: int = Field(default=64, ge=1, description="held-out prompts to sample at evaluation")
    eval_samples: int = Field(default=1, ge=1, description="samples a prompt at evaluation")
    eval_opponent: str | None = Field(
        default=None, description="model whose samples are the opponent of win rates; default: the starting model"
    )
    eval_opponent_samples: int = Field(default=4, ge=1, description="samples of the opponent a prompt")
    eval_reference: bool = Field(
        default=False, description="measure KL to the starting model also where no objective reads it (a frozen copy)"
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
    reference_cache: bool = Field(
        default=False, description="score the reference (and teachers, as text) once and keep it on disk"
    )
    layout: Literal["auto", "padded"] = Field(
        default="auto", description="auto: shared prefixes where the probe passes"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in backward: less memory, more time"
    )
    dropout: bool = Field(default=False, description="keep the model's dropout on while training")
    max_nonfinite_steps: int = Field(
        default=3, ge=0, description="stop after so many steps with a non-finite loss or gradient"
    )
    kl_budget: float | None = Field(
        default=None, gt=0, description="alarm when KL to the reference passes this, in nats"
    )
    record_stream: bool = Field(default=True, description="keep sampled groups so that they can be replayed")
    report_to: list[str] = Field(default_factory=list, description="tensorboard, wandb, trackio, beside metrics.jsonl")
    shard: bool = Field(
        default=False, description="spread weights, gradients and optimiser state over a launcher's processes (FSDP2)"
    )
    offline: bool = Field(default=False, description="never ask a hub")
    dry_run: bool = Field(
        default=False, description="print the resolved options, the first batch and a memory estimate"
    )
