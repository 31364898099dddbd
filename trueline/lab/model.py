"""The lab's language model: a word-level tokenizer and a small Llama, both plain Hugging Face objects.

A prompt is encoded as `<bos> words <sep>`, a reply as its words and `<eos>`. The tokenizer knows the words of its world
and nothing else: text and ids are one to one, and a foreign word is an error of the tokenizer, never a silent <unk>.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trueline.lab.settings import ModelShape
from trueline.lab.world import SPECIAL, World

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def tokenizer(world: World) -> PreTrainedTokenizerFast:
    """One id per word; special tokens first, in the order pad, bos, eos, sep."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(world.vocabulary)}
    backend = Tokenizer(models.WordLevel(ids))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos, sep = SPECIAL["bos"], SPECIAL["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {sep}", special_tokens=[(bos, ids[bos]), (sep, ids[sep])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL["pad"],
        bos_token=bos,
        eos_token=SPECIAL["eos"],
        sep_token=sep,
        clean_up_tokenization_spaces=False,
    )


def language_model(world: World, shape: ModelShape, seed: int) -> LlamaForCausalLM:
    """A freshly initialised Llama in fp32 whose weights depend on the seed alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    special: dict[str, Any] = {
        f"{name}_token_id": world.vocabulary.index(SPECIAL[name]) for name in ("pad", "bos", "eos")
    }
    config = LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        initializer_range=shape.initializer_range,
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    count = sum(p.numel() for p in model.parameters())
    if count != shape.parameters:
        raise RuntimeError(f"The lab model has {count} parameters, its specification {shape.parameters}.")
    return model
