"""DPO and GRPO on one GPU at the shapes of 0.5 B and 7 B models: `python -m benchmarks.gpu [--shape 0.5b 7b] [--json FILE]`.

Random weights, made-up words, the runs that users start (`align`), bf16 products, each cell in a process of its own:

    shared       prompts shared, log-probs in chunks        padded       no sharing
    unchunked    one chunk of all response tokens           trl          TRL 1.16, where it is installed

0.5 B is trained whole (fp32 weights, a frozen reference), 7 B by LoRA (the adapter switched off is the reference): fp32
masters, gradients and AdamW's means of 7 B are more than one card holds. Printed a cell: tokens a second (every response
with its prompt, as an implementation without sharing would count them, so that all cells count alike), model-FLOPs
utilisation of those tokens and of the ones that were laid out, over the card's measured rate of bf16 products, and peak
memory. Without a GPU only `--shape tiny` runs, to see that everything works; its numbers mean nothing. None of this has
been measured on a GPU unless docs/benchmarks.md has a table with the card's name.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module, util
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.meter import peak_gb
from benchmarks.ours import COMMON
from benchmarks.workload import END, length_reward

METHODS = ("dpo", "grpo")
VARIANTS = ("shared", "padded", "unchunked", "trl")
WARM_UP = 1  # steps that are not timed


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2.5 model (as a Llama: no biases) and how much text a step takes: groups of a prompt and responses,
    lengths in tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_values: int
    vocabulary: int
    tied: bool
    adapter: str
    pairs: int
    prompts: int
    samples: int
    prompt: int
    response: int
    token_budget: int
    steps: int = 5

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_values * head
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


SHAPES = {
    "tiny": Shape(32, 48, 2, 4, 2, 300, True, "full", 2, 2, 2, 12, 6, 256, steps=2),
    "0.5b": Shape(896, 4864, 24, 14, 2, 151_936, True, "full", 16, 8, 8, 512, 256, 16_384),
    "7b": Shape(3584, 18_944, 28, 28, 4, 152_064, False, "lora", 8, 4, 8, 1024, 512, 16_384),
}


def model_flops(shape: Shape, method: str, *, shared: bool) -> float:
    """Operations that one step needs, sampling left out: products of body and head, and attention (engine notes §1).

    Passes over the body: forward and twice that backward, and one of the reference; with a frozen body the backward
    costs once the forward. The head sees responses only. shared: prompts once a group; else once a response.
    """
    groups, k = (shape.pairs, 2) if method == "dpo" else (shape.prompts, shape.samples)
    p, r = shape.prompt, shape.response
    tokens = groups * (p + k * r if shared else k * (p + r))
    pairs_of_tokens = groups * (p * p / 2 + k * (r * p + r * r / 2) if shared else k * (p + r) ** 2 / 2)
    passes = 4 if shape.adapter == "full" else 3
    body = 2 * shape.body * tokens + 4 * shape.hidden * shape.layers * pairs_of_tokens
    return passes * (body + 2 * shape.vocabulary * shape.hidden * groups * k * r)


def unshared_tokens(shape: Shape, method: str) -> int:
    """Tokens of a step with every prompt once a response."""
    groups, k = (shape.pairs, 2) if method == "dpo" else (shape.prompts, shape.samples)
    return groups * k * (shape.prompt + shape.response)


def prepare(folder: Path, shape: Shape, device: str) -> None:
    """A model with random weights, a tokenizer of one word a token, pairs and prompts of exactly the shape's lengths.

    A Llama, because a folder with a Qwen2 model always opens with Qwen2's own tokenizer, which would split the words.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [END, *(f"w{i}" for i in range(shape.vocabulary - 1))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_values,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4 * (shape.prompt + shape.response),
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{draw.randrange(shape.vocabulary - 1)}" for _ in range(count))

    count = (WARM_UP + shape.steps) * max(shape.pairs, shape.prompts)
    with (folder / "pairs.jsonl").open("w") as pairs, (folder / "prompts.jsonl").open("w") as prompts:
        for _ in range(count):
            prompt = text(shape.prompt)
            sides = {side: text(shape.response - 1) for side in ("chosen", "rejected")}  # and its end token
            pairs.write(json.dumps({"prompt": prompt, **sides}) + "\n")
            prompts.write(json.dumps({"prompt": prompt}) + "\n")


def run_ours(folder: Path, shape: Shape, method: str, variant: str) -> dict[str, Any]:
    """Seconds of a training step and of a whole one (with its sampling), medians of the steps after the warm-up."""
    from trueline.engine import logprob
    from trueline.engine.journal import read

    module = import_module("trueline.align")
    own: dict[str, Any] = {"objective": "dpo", "batch_size": shape.pairs, "data": [str(folder / "pairs.jsonl")]}
    if method == "grpo":
        own = {
            "objective": "grpo",
            "kl_weight": 0.04,
            "source": "policy",
            "samples": shape.samples,
            "feedback": ["rule:benchmarks.workload:length_reward"],
            "batch_size": shape.prompts,
            "max_response_length": shape.response,
            "data": [str(folder / "prompts.jsonl")],
        }
    output = folder / f"run-{time.time_ns()}"
    chunk = 2**62 if variant == "unchunked" else logprob.CHUNK_BYTES
    with mock.patch.object(module._Alignment, "_checkpoint"), mock.patch.object(logprob, "CHUNK_BYTES", chunk):
        module.align(
            model=str(folder / "model"),
            output=str(output),
            steps=WARM_UP + shape.steps,
            max_length=shape.prompt + shape.response,
            adapter=shape.adapter,
            precision="fast",
            layout="padded" if variant == "padded" else "auto",
            token_budget=shape.token_budget,
            **COMMON,
            **own,
        )
    steps = read(output / "trueline" / "timing.jsonl")[WARM_UP:]
    summary = json.loads((output / "trueline" / "summary.json").read_text(encoding="utf-8"))
    return {
        "train_seconds": statistics.median(s["train"] for s in steps),
        "step_seconds": statistics.median(s["seconds"] for s in steps),
        "layout": summary["layout"]["mode"],
    }


def run_trl(folder: Path, shape: Shape, method: str, device: str) -> dict[str, Any]:
    """TRL's trainer on the same text with its bf16 autocast; a step's seconds are those of the whole run over its steps."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    from benchmarks.peers import trl_dpo, trl_grpo
    from benchmarks.workload import read_rows

    policy = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if shape.adapter == "lora" else None
    changed = {"bf16": True, "use_cpu": device == "cpu", "max_steps": WARM_UP + shape.steps}
    if method == "dpo":
        settings = {**trl_dpo.FP32, **changed, "per_device_train_batch_size": shape.pairs}
        config = DPOConfig(output_dir=str(folder / "trl"), max_length=shape.prompt + shape.response, **settings)
        rows = Dataset.from_list(read_rows(folder / "pairs.jsonl"))
        trainer = DPOTrainer(policy, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    else:
        settings = {**trl_grpo.SETTINGS, **changed, "per_device_train_batch_size": 2 * shape.samples}
        config = GRPOConfig(
            output_dir=str(folder / "trl"),
            num_generations=shape.samples,
            max_completion_length=shape.response,
            gradient_accumulation_steps=max(1, shape.prompts // 2),
            **settings,
        )
        rows = Dataset.from_list(read_rows(folder / "prompts.jsonl"))
        trainer = GRPOTrainer(policy, length_reward, config, rows, processing_class=tokenizer, peft_config=lora)
    times: list[float] = []
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            _wait(device)
            times.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    gaps = [b - a for a, b in pairwise(times)]
    return {"step_seconds": statistics.median(gaps), "train_seconds": None, "layout": "padded"}


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def product_rate(device: str, width: int, seconds: float = 0.5) -> float:
    """Operations a second of square bf16 products on the device: what utilisation is a share of."""
    import torch

    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    _wait(device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(4):
            a @ b
        _wait(device)
        done += 4
    return 2 * width**3 * done / (time.perf_counter() - start)


def measure(shape: str, method: str, variant: str, device: str) -> dict[str, Any]:
    """One cell, in this process."""
    import torch

    sizes = SHAPES[shape]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, sizes, device)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        ran = run_trl(folder, sizes, method, device) if variant == "trl" else run_ours(folder, sizes, method, variant)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_gb()
    rate = product_rate(device, 8192 if device == "cuda" else 256)
    seconds = ran["step_seconds"] if method == "dpo" else ran["train_seconds"]
    shared = ran["layout"] == "shared"
    use = {
        name: None if seconds is None else model_flops(sizes, method, shared=laid_out) / seconds / rate
        for name, laid_out in (("utilisation", False), ("utilisation_laid_out", shared))
    }
    return {
        "shape": shape,
        "method": method,
        "variant": variant,
        **ran,
        "tokens_per_second": unshared_tokens(sizes, method) / ran["step_seconds"],
        **use,
        "peak_gb": peak,
        "product_rate": rate,
        "card": torch.cuda.get_device_name() if device == "cuda" else "no GPU: these numbers mean nothing",
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: a line a cell, the card's name above."""
    lines = [
        f"{cells[0]['card']}; products at {cells[0]['product_rate'] / 1e12:.2f} T operations a second.",
        "",
        "| shape | method | way | a step, s | tokens a second | utilisation | of the tokens laid out | peak, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        shares = ["–" if c[n] is None else f"{c[n]:.1%}" for n in ("utilisation", "utilisation_laid_out")]
        lines.append(
            f"| {c['shape']} | {c['method']} | {c['variant']} | {c['step_seconds']:.2f} | {c['tokens_per_second']:.0f} "
            f"| {shares[0]} | {shares[1]} | {c['peak_gb']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["0.5b", "7b"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, help="also write the cells here")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and set(args.shape) != {"tiny"}:
        sys.exit("There is no GPU here. `--shape tiny` shows on a CPU that everything runs.")
    if args.cell:
        print(json.dumps(measure(args.shape[0], args.method[0], args.variant[0], device)))
        return
    cells: list[dict[str, Any]] = []
    for shape in args.shape:
        for method in args.method:
            for variant in args.variant:
                if variant == "trl" and util.find_spec("trl") is None:
                    print("TRL is not installed: its rows are left out.", file=sys.stderr)
                    continue
                cell = ["--cell", "--shape", shape, "--method", method, "--variant", variant]
                command = [sys.executable, "-m", "benchmarks.gpu", *cell]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:  # out of memory, say: the other cells still tell something
                    print(f"{shape} {method} {variant} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
                    continue
                cells.append(json.loads(done.stdout.splitlines()[-1]))
                print(table(cells[-1:]), flush=True)
    if not cells:
        sys.exit("Every cell failed.")
    print(table(cells))
    if args.json:
        args.json.write_text(json.dumps(cells, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
