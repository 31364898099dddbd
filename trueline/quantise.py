"""A 4-bit base under an adapter: quantise a loaded model in place, and round it the same way without bitsandbytes' layers.

NormalFloat-4 with double quantisation (QLoRA, arXiv 2305.14314). Every linear layer but the output head is quantised;
embeddings, norms and the head stay in fp32. `Quantisation` is written beside the adapter, so that a saved adapter is
always put back on the base it was trained on, which differs from the fp32 base by a few per cent of each weight.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueline.errors import TruelineError

FILE = "base_quantization.json"
BLOCK = 64  # weights that share a scale; bitsandbytes' default for 4 bits


@dataclass(frozen=True)
class Quantisation:
    """How a base was quantised. compute: dtype of the products. double: block scales are themselves quantised."""

    kind: str = "nf4"
    double: bool = True
    compute: str = "float32"

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Quantisation | None:
        """The quantisation an adapter folder was trained on; None for a plain base."""
        file = folder / FILE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    @classmethod
    def of(cls, model: nn.Module) -> Quantisation | None:
        """The quantisation of a model that `quantise` treated."""
        return getattr(model, "trueline_quantisation", None)


def require_bitsandbytes() -> Any:
    """The bitsandbytes module, or an error that says how to go on without it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TruelineError(
            "A 4-bit base needs bitsandbytes, which is not installed: pip install 'trueline[qlora]'. "
            "Without it, --adapter lora trains the same adapter on the fp32 base."
        )
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise TruelineError(
            f"bitsandbytes is installed but does not run on this machine: {error}. Use --adapter lora."
        ) from error
    return bitsandbytes


def quantise(model: nn.Module, how: Quantisation) -> nn.Module:
    """Replace the linear layers of a loaded fp32 model by 4-bit ones, in place, one layer at a time."""
    bnb = require_bitsandbytes()
    targets = list(_linear_layers(model))
    if not targets:
        raise TruelineError(
            f"{type(model).__name__} has no nn.Linear layer outside its head, so there is nothing to quantise (GPT-2 keeps "
            "its weights in Conv1D). Use --adapter lora."
        )
    for parent, name, layer in targets:
        _check_width(layer, name)
        quantised = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=getattr(torch, how.compute),
            compress_statistics=how.double,
            quant_type=how.kind,
        )
        # Without this, a CPU with AVX512-BF16 scores in evaluation with a bf16 kernel (and repacked weights) that training
        # does not use: policy and reference would differ on identical weights.
        quantised.support_avx512bf16_for_cpu = False
        quantised.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=how.double, quant_type=how.kind
        )
        quantised.bias = layer.bias
        quantised = quantised.to(layer.weight.device)  # `to` is what quantises
        if quantised.weight.dtype != torch.uint8:
            raise TruelineError(f"bitsandbytes does not quantise on {layer.weight.device}. Use --adapter lora.")
        setattr(parent, name, quantised.train(layer.training))
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks for
    model.trueline_quantisation = how  # type: ignore[assignment]
    return model


def _check_width(layer: nn.Linear, name: str) -> None:
    """bitsandbytes' CPU kernels restore a wrong matrix, silently, when rows are no whole number of blocks (38 % rms, not 9 %)."""
    if layer.in_features % BLOCK:
        raise TruelineError(
            f"The layer '{name}' is {layer.in_features} wide; 4-bit weights come in blocks of {BLOCK}, and bitsandbytes does not "
            "restore rows that are not whole blocks. Use --adapter lora."
        )


@torch.no_grad()
def round_weights(model: nn.Module, how: Quantisation) -> nn.Module:
    """Give a model the fp32 values its 4-bit version computes with. Merging an adapter into this is exact."""
    functional = require_bitsandbytes().functional
    for _, _, layer in _linear_layers(model):
        packed, state = functional.quantize_4bit(layer.weight.data, compress_statistics=how.double, quant_type=how.kind)
        layer.weight.copy_(functional.dequantize_4bit(packed, state))
    return model


def _linear_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, attribute, layer) of every nn.Linear except the output head, a language model's or a classifier's."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    heads = [head, getattr(model, "score", None), getattr(model, "classifier", None)]
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not any(layer is h for h in heads):
                yield parent, name, layer
