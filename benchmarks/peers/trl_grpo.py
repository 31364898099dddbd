"""TRL 1.16's GRPOTrainer at its best legal settings, for `make bench`. Anyone may improve this file.

One optimiser step: all prompts of the step are sampled in one `generate` call (generation_batch_size is the whole step),
and trained in micro-batches of two prompts, TRL's fastest here. KL to a reference as on our side. The default `generate`
path: vLLM has no place on these machines, and continuous batching is slower than `generate` on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.meter import Meter
from benchmarks.workload import Sizes, length_reward, read_rows

KL_WEIGHT = 0.04
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "loss_type": "grpo",
    "beta": KL_WEIGHT,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_grad_norm": 1.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "shuffle_dataset": False,
    "seed": 0,
    "disable_tqdm": True,
}


def run(folder: Path, sizes: Sizes, meter: Meter, *, switch: bool = False) -> dict[str, float]:
    """One optimiser step on every prompt; units are completions."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    meter.loaded()
    if switch:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    policy = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    rows = read_rows(folder / "prompts.jsonl")[: sizes.grpo_prompts]
    completions = len(rows) * sizes.samples
    micro_batch = min(2 * sizes.samples, completions)
    config = GRPOConfig(
        output_dir=str(folder / "trl-grpo"),
        num_generations=sizes.samples,
        max_completion_length=sizes.new_tokens,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=completions // micro_batch,
        max_steps=1,
        **SETTINGS,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=length_reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    with meter.region():
        trainer.train()
    return {"units": completions, "parameters": sum(p.numel() for p in policy.parameters())}
