"""Full training: every weight of the model is trained.

Weights, gradients and both AdamW means are fp32: 16 bytes a parameter, and a frozen copy for objectives that read a
reference. A model that already carries an adapter is refused: training "everything" of it has two meanings.
"""

from typing import Any

from trueline.adapters.contract import adapter
from trueline.errors import TruelineError


@adapter(paper="Full fine-tuning")
def full(model: Any) -> Any:
    if hasattr(model, "peft_config"):
        raise TruelineError(
            "The model carries an adapter. Give --adapter lora to go on training that adapter, or make a plain model of it first: "
            "trueline merge ADAPTER MERGED."
        )
    return model.requires_grad_(True)
