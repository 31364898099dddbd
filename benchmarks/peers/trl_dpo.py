"""TRL 1.16's DPOTrainer at its best legal settings, for `make bench`. Anyone may improve this file.

fp32: TRL's defaults in fp32 without gradient checkpointing (it recomputes, which only costs time on a CPU).
tuned: reference log-probs precomputed before the clock starts, batches sorted by length, fused AdamW, no evaluation, no
logging, no saving. shipped: the defaults as they are, which on a CPU means bf16 autocast and gradient checkpointing.
All take the same pairs, batch size, maximum length and learning rate as ours. `switch`: fp32 products in bf16, by the
same PyTorch switch that our `precision: fast` sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.meter import Meter
from benchmarks.workload import BATCH, Sizes, read_rows

ALL: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "beta": 0.1,
    "max_grad_norm": 1.0,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "seed": 0,
    "disable_tqdm": True,
}
FP32 = {**ALL, "bf16": False, "gradient_checkpointing": False}

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": FP32,
    "tuned": {
        **FP32,
        "precompute_ref_log_probs": True,
        "train_sampling_strategy": "sequential",  # the data are sorted by length beforehand
        "optim": "adamw_torch_fused",
        "dataloader_pin_memory": False,
    },
    "shipped": ALL,
}


def run(
    folder: Path,
    sizes: Sizes,
    meter: Meter,
    *,
    settings: str = "fp32",
    switch: bool = False,
    model: str = "model",
    data: str = "pairs",
) -> dict[str, float]:
    """Train on every pair once; units are pairs."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    meter.loaded()
    if switch:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    chosen = SETTINGS[settings]
    policy = AutoModelForCausalLM.from_pretrained(folder / model, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder / model)
    rows = read_rows(folder / f"{data}.jsonl")
    if chosen.get("train_sampling_strategy") == "sequential":
        rows.sort(key=lambda r: max(len(tokenizer(r["prompt"] + r[s]).input_ids) for s in ("chosen", "rejected")))
    config = DPOConfig(output_dir=str(folder / "trl-dpo"), max_length=sizes.max_length, **chosen)
    trainer = DPOTrainer(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    with meter.region():
        trainer.train()
    assert trainer.state.global_step == len(rows) // BATCH, f"{trainer.state.global_step} steps"
    return {"units": len(rows), "parameters": sum(p.numel() for p in policy.parameters())}
