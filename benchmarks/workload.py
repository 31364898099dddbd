"""What is trained, sampled and scored: one model, one tokenizer and the HH pairs, the same files for both sides.

Workload A: the 40 M-parameter Qwen2-type model (hidden 512, 8 layers, 8 query and 4 key-value heads, tied, vocabulary
32,000) with random weights, and the first pairs of the HH file. `--smoke` swaps in a model of a few thousand weights
and made-up words, to see that every row runs; its numbers mean nothing.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 8  # pairs an optimiser step
END = "<|endoftext|>"  # what Qwen2 tokenizers add by themselves where it is missing
END_EVERY = 32  # in the sampling row one token id in so many ends a text: responses of 32 tokens on average


@dataclass(frozen=True)
class Sizes:
    """One scale of the workload. Pairs are preference pairs of the file, prompts are distinct, lengths are tokens."""

    label: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_values: int
    vocabulary: int
    wide_vocabulary: int  # of the large-vocabulary rows
    max_length: int
    pairs: int  # DPO: two optimiser steps
    wide_pairs: int  # large vocabulary: one step
    scored_pairs: int
    run_pairs: int  # of the run whose bookkeeping is timed
    grpo_prompts: int
    sampled_prompts: int
    new_tokens: int
    samples: int
    rows: int  # decoded at once
    growth: tuple[int, int, int]  # groups in the file
    growth_steps: int
    shares: tuple[float, ...]
    widths: tuple[int, ...]  # k
    shared_length: int  # prompt plus response in the sharing row
    shared_tokens: int  # unshared tokens a measurement there, at least
    real_data: bool

    def model_config(self, *, layers: int | None = None, vocabulary: int | None = None, **more: Any) -> Any:
        """The Qwen2 configuration of this scale."""
        from transformers import Qwen2Config

        return Qwen2Config(
            vocab_size=vocabulary or self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_values,
            tie_word_embeddings=True,
            max_position_embeddings=2 * self.max_length,
            **more,
        )


FULL = Sizes(
    label="full",
    hidden=512,
    intermediate=1408,
    layers=8,
    heads=8,
    key_values=4,
    vocabulary=32_000,
    wide_vocabulary=151_936,
    max_length=1024,
    pairs=16,
    wide_pairs=8,
    scored_pairs=48,
    run_pairs=64,
    grpo_prompts=4,
    sampled_prompts=16,
    new_tokens=64,
    samples=8,
    rows=64,
    growth=(100, 10_000, 1_000_000),
    growth_steps=30,
    shares=(0.1, 0.3, 0.5, 0.7, 0.9),
    widths=(2, 4, 8, 16),
    shared_length=256,
    shared_tokens=2048,
    real_data=True,
)
SMOKE = Sizes(
    label="smoke",
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    key_values=2,
    vocabulary=300,
    wide_vocabulary=420,
    max_length=128,
    pairs=8,
    wide_pairs=8,
    scored_pairs=4,
    run_pairs=8,
    grpo_prompts=2,
    sampled_prompts=4,
    new_tokens=8,
    samples=4,
    rows=8,
    growth=(20, 40, 80),
    growth_steps=2,
    shares=(0.5,),
    widths=(2, 4),
    shared_length=32,
    shared_tokens=64,
    real_data=False,
)
SCALES = {s.label: s for s in (FULL, SMOKE)}


def data_file() -> Path:
    """The HH file, found by TRUELINE_DATA."""
    root = Path(os.environ.get("TRUELINE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    file = root / "preferences" / "hh_harmless_base_test.jsonl.gz"
    if not file.exists():
        sys.exit(f"The HH file is not at {file}. Set TRUELINE_DATA to the folder that holds preferences/.")
    return file


def made_up_pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of random words with uneven lengths: prompts of 12 words on average, responses of 8."""
    draw = random.Random(seed)

    def words(mean: int) -> str:
        return " ".join(f"w{draw.randrange(100)}" for _ in range(draw.randint(mean // 2, mean * 3 // 2)))

    return [{"prompt": words(12) + "\n", "chosen": words(8), "rejected": words(8)} for _ in range(count)]


def _pairs(sizes: Sizes) -> list[dict[str, str]]:
    if not sizes.real_data:
        return made_up_pairs(64)
    from trueline.readers import read

    groups, _ = read([str(data_file())])
    return [{"prompt": g.prompt, "chosen": g.responses[0].text, "rejected": g.responses[1].text} for g in groups]


def prepare(folder: Path, sizes: Sizes) -> None:
    """Write model/, wide/ (the large vocabulary) and the data files of every row."""
    rows = _pairs(sizes)
    tokenizer = _tokenizer(rows, sizes.vocabulary)
    _save_model(folder / "model", sizes, tokenizer, sizes.vocabulary)
    _save_model(folder / "wide", sizes, tokenizer, sizes.wide_vocabulary)
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    most = max(sizes.grpo_prompts, sizes.sampled_prompts)
    _write(folder / "prompts.jsonl", [{"prompt": p} for p in prompts if _short(tokenizer, p, sizes)][:most])
    for name in ("pairs", "wide_pairs", "scored_pairs", "run_pairs"):
        _write(folder / f"{name}.jsonl", rows[: getattr(sizes, name)])


def _short(tokenizer: Any, prompt: str, sizes: Sizes) -> bool:
    return len(tokenizer(prompt)["input_ids"]) + sizes.new_tokens < sizes.max_length


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _tokenizer(rows: list[dict[str, str]], vocabulary: int) -> Any:
    """A byte-level BPE of the data's own texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([row[side] for row in rows for side in ("prompt", "chosen", "rejected")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)


def _save_model(folder: Path, sizes: Sizes, tokenizer: Any, vocabulary: int) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    model = Qwen2ForCausalLM(sizes.model_config(vocabulary=vocabulary, eos_token_id=end, pad_token_id=end))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def end_tokens(sizes: Sizes) -> list[int]:
    """The token ids that end a text in the sampling row."""
    return list(range(0, sizes.vocabulary, END_EVERY))


def length_reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A toy reward with the signature that both sides take: the share of letters that are vowels."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]
