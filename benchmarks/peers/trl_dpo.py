"""TRL 1.16's DPOTrainer at its best legal settings, for `make bench`. Anyone may improve this file.

as_shipped: TRL's defaults in fp32 without gradient checkpointing (it recomputes, which only costs time on a CPU).
tuned: reference log-probs precomputed before the clock starts, batches sorted by length, fused AdamW, no evaluation,
no logging, no saving. Both run the same pairs, batch size, maximum length, learning rate and precision as ours.
"""

from __future__ import annotations

from typing import Any

SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "max_length": 1024,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "beta": 0.1,
    "max_grad_norm": 1.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "seed": 0,
    "disable_tqdm": True,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "as_shipped": SHARED,
    "tuned": {
        **SHARED,
        "precompute_ref_log_probs": True,
        "train_sampling_strategy": "sequential",  # the data are sorted by length beforehand
        "optim": "adamw_torch_fused",
        "dataloader_pin_memory": False,
    },
}
