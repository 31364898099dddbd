"""How a run grows with its data: time to the first step a group, time a step, and peak memory at 10^2, 10^4, 10^6 groups.

The model is tiny, so that what is measured is the data's way through reading, checks, tokenising and the source. The
groups are made-up words of uneven lengths, all different.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.meter import Meter
from benchmarks.ours import COMMON
from benchmarks.workload import BATCH, END, Sizes

WORDS = 500
TINY = {"hidden": 32, "layers": 1, "heads": 2}


def write_groups(file: Path, count: int) -> None:
    """Preference pairs of random words, one JSON object a line; line by line, so that this needs no memory either."""
    draw = random.Random(count)
    names = [f"w{i}" for i in range(WORDS)]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            prompt = " ".join(["row", *str(number), *draw.choices(names, k=draw.randint(4, 12))])
            sides = {side: " ".join(draw.choices(names, k=draw.randint(3, 9))) for side in ("chosen", "rejected")}
            out.write(json.dumps({"prompt": prompt, **sides}) + "\n")


def write_model(folder: Path) -> None:
    """A model of one layer whose tokenizer knows the words; a Llama, because Qwen2 folders open with Qwen2's own tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [END, "<|unknown|>", "row", *map(str, range(10)), *(f"w{i}" for i in range(WORDS))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<|unknown|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=TINY["hidden"],
        intermediate_size=2 * TINY["hidden"],
        num_hidden_layers=TINY["layers"],
        num_attention_heads=TINY["heads"],
        num_key_value_heads=TINY["heads"],
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def growth(folder: Path, sizes: Sizes, meter: Meter, *, place: int) -> dict[str, float]:
    """A run on sizes.growth[place] groups. prepare: seconds to the first step; step: seconds a step, the median."""
    import statistics

    module = import_module("trueline.align")  # trueline.align is also the name of its function
    from trueline.engine.journal import read

    meter.loaded()
    count = sizes.growth[place]
    own = folder / f"growth-{count}"
    own.mkdir(exist_ok=True)
    if not (own / "model").exists():
        write_groups(own / "groups.jsonl", count)
        write_model(own / "model")
    output = own / f"run-{time.time_ns()}"
    loop, first = module._Alignment._loop, 0.0

    def noted(self: Any, recorder: Any) -> str:
        nonlocal first
        first = time.perf_counter()
        return loop(self, recorder)

    start = time.perf_counter()
    with meter.region(), mock.patch.object(module._Alignment, "_loop", noted):
        module.align(
            model=str(own / "model"),
            data=[str(own / "groups.jsonl")],
            objective="dpo",
            output=str(output),
            steps=sizes.growth_steps,
            batch_size=BATCH,
            **COMMON,
        )
    steps = [row["seconds"] for row in read(output / "trueline" / "timing.jsonl")]
    shutil.rmtree(output)
    return {"units": count, "prepare": first - start, "step": statistics.median(steps)}
