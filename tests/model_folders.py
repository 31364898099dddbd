"""Model folders on the spot: a byte-level tokenizer with a ChatML template beside a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_config, tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
ROWS = 320


def tokenizer(*, template: str | None = CHATML, pad: str | None = "<|pad|>", specials: list[str] = SPECIAL) -> Any:
    """256 bytes, the special tokens and a few merges; EOS is <|endoftext|>, the template ends turns with <|im_end|>."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the cat sat on the mat", "the dog and the cat"] * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token=pad)
    made.chat_template = template
    return made


def model_folder(
    folder: Path,
    *,
    family: str = "llama",
    own_tokenizer: Any = None,
    tie: bool = True,
    sharp: bool = True,
    **overrides: Any,
) -> Path:
    """A saved causal LM whose embedding is padded beyond its tokenizer, as released models are.

    sharp: enlarged weights, as everywhere in the tests; False is transformers' own initialisation, where log-probs are
    small enough to be compared to 1e-5.
    """
    made = own_tokenizer if own_tokenizer is not None else tokenizer()
    overrides = {"vocab_size": ROWS, "eos_token_id": 0, "tie_word_embeddings": tie, **overrides}
    torch.manual_seed(0)
    made_model = (
        tiny_model(family, **overrides) if sharp else AutoModelForCausalLM.from_config(tiny_config(family, **overrides))
    )
    made_model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """[1, T, V] (or [1, 1] for a reward model), one plain unpacked call."""
    return model.eval()(torch.tensor([ids])).logits


@torch.no_grad()
def disturb(model: Any, scale: float = 0.3) -> None:
    """Move every trained weight, so that a save that loses one shows."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
