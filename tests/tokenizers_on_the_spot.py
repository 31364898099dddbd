"""Small tokenizers built in memory, one for each manner that encoding must cope with."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3: the reasoning of every assistant turn but the last is stripped.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The generation prompt holds a reasoning block that a finished turn does not show.
REASONING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n{{ block }}{% endif %}")
TEXTS = ["Hello world, how are you today?", "The answer is four.\n\nHuman: why?\n\nAssistant: because two and two"] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@functools.cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer.to_str()


def byte_level(template: str | None = CHATML, *, bos: bool = False) -> Any:
    """Byte-level BPE with ChatML tokens. bos: it puts <|endoftext|> before every text, as a post-processor does."""
    backend = Tokenizer.from_str(_byte_level())
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", backend.token_to_id("<|endoftext|>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = template
    return tokenizer


def sentence_piece() -> Any:
    """A tokenizer that begins every text with a space, as SentencePiece models do, and with <s>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = sorted({c for text in TEXTS for c in text} | {"▁"})
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def words() -> Any:
    """One id a word; anything else is <unk>. Sixty words, w0 to w59."""
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"w{i}": i + 2 for i in range(60)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def model_folder(folder: Path, tokenizer: Any, rows: int) -> Path:
    """What `trueline check --model` needs of a model: tokenizer and config, no weights."""
    from transformers import LlamaConfig

    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=rows, eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    return folder


def write_jsonl(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)
