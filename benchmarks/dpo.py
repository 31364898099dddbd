"""DPO on the HH file, ours beside TRL's DPOTrainer: pairs per second and peak memory, paired runs in one call.

    python benchmarks/dpo.py                    # the whole table (TRL comes with the development install)
    python benchmarks/dpo.py --rows live --repeats 1

Workload: the 40 M-parameter Qwen2-type model of the engine notes (hidden 512, 8 layers, 8 query and 4 key-value heads,
tied, vocabulary 32,000), the first pairs of the HH file, batches of 8 pairs, one thread. Each measurement is a
process of its own, so that peak memory is its own; a ratio compares two neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = {
    "live": ("DPO, fp32, reference live on both sides; TRL as shipped", "as_shipped", False),
    "cached": ("DPO, fp32, reference cached before the clock on both sides; TRL tuned", "tuned", True),
}
TARGETS = {"live": 5.0, "cached": 2.0, "memory": 0.35}
BATCH = 8


def data_file() -> Path:
    root = Path(os.environ.get("TRUELINE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    file = root / "preferences" / "hh_harmless_base_test.jsonl.gz"
    if not file.exists():
        sys.exit(f"The HH file is not at {file}. Set TRUELINE_DATA to the folder that holds preferences/.")
    return file


def prepare(folder: Path, pairs: int) -> None:
    """The model, its tokenizer and the pairs as explicit-prompt JSON lines, the same for both sides."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from trueline.readers import read

    groups, _ = read([str(data_file())])
    chosen = groups[:pairs]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [str(g.prompt) for g in groups] + [r.text for g in groups for r in g.responses]
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for g in chosen:
            row = {"prompt": g.prompt, "chosen": g.responses[0].text, "rejected": g.responses[1].text}
            file.write(json.dumps(row) + "\n")


def run_ours(folder: Path, cached: bool) -> float:
    """Seconds of the training steps alone, reference cache filled before."""
    from trueline.align import align

    pairs = sum(1 for _ in (folder / "pairs.jsonl").open(encoding="utf-8"))
    run = align(
        model=str(folder / "model"),
        data=[str(folder / "pairs.jsonl")],
        objective="dpo",
        output=str(folder / f"run-{time.time_ns()}"),
        steps=pairs // BATCH,
        batch_size=BATCH,
        schedule="constant",
        warmup=0,
        max_length=1024,
        learning_rate=1e-6,
        reference_cache=cached,
    )
    rows = [json.loads(x) for x in (run.folder / "trueline" / "timing.jsonl").read_text().splitlines()]
    return sum(row["seconds"] for row in rows)


def run_trl(folder: Path, settings: str) -> float:
    from datasets import load_dataset
    from peers.trl_dpo import SETTINGS
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    data = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train")
    if SETTINGS[settings].get("train_sampling_strategy") == "sequential":
        longest = [max(len(tokenizer(r["prompt"] + r[s]).input_ids) for s in ("chosen", "rejected")) for r in data]
        data = data.select(sorted(range(len(data)), key=longest.__getitem__))
    config = DPOConfig(output_dir=str(folder / "trl"), **SETTINGS[settings])
    trainer = DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def measure(folder: Path, side: str, row: str) -> dict[str, float]:
    """One measurement in a process of its own: {"seconds", "peak_gb"}."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--rows", row]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRUELINE_CACHE": str(folder / f"cache-{time.time_ns()}")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed on row {row}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(args: argparse.Namespace) -> None:
    """Run one side and print its numbers."""
    import torch

    torch.set_num_threads(1)
    _, settings, cached = ROWS[args.rows]
    folder = Path(args.folder)
    seconds = run_ours(folder, cached) if args.side == "ours" else run_trl(folder, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gb": peak}))


def machine() -> str:
    from importlib.metadata import version

    from trueline.environment import environment

    facts = environment()
    versions = facts["versions"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']:.0f} GiB, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, TRL {version('trl')}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=None, choices=list(ROWS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--side", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        child(args)
        return
    results = {}
    lines = [f"Measured on {machine()}; one thread, {args.pairs} pairs, {args.repeats} paired runs.", ""]
    lines += ["| row | TRL, pairs/s | ours, pairs/s | ratio (range) | target | TRL, GB | ours, GB | memory ratio |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args.pairs)
        for row in [args.rows] if args.rows else ROWS:
            measured = [(measure(folder, "trl", row), measure(folder, "ours", row)) for _ in range(args.repeats)]
            ratios = [trl["seconds"] / ours["seconds"] for trl, ours in measured]
            memory = [ours["peak_gb"] / trl["peak_gb"] for trl, ours in measured]
            rate = {i: args.pairs / statistics.median(m[i]["seconds"] for m in measured) for i in (0, 1)}
            peak = {i: statistics.median(m[i]["peak_gb"] for m in measured) for i in (0, 1)}
            for name, values, target, met in (
                (f"dpo_{row}", ratios, TARGETS[row], statistics.median(ratios) >= TARGETS[row]),
                (f"dpo_{row}_memory", memory, TARGETS["memory"], statistics.median(memory) <= TARGETS["memory"]),
            ):
                results[name] = {
                    "ratio_median": statistics.median(values),
                    "ratio_min": min(values),
                    "ratio_max": max(values),
                    "target": target,
                    "met": met,
                }
            lines.append(
                f"| {ROWS[row][0]} | {rate[0]:.2f} | {rate[1]:.2f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}–{max(ratios):.2f}) | {TARGETS[row]} | {peak[0]:.2f} | {peak[1]:.2f} | "
                f"{statistics.median(memory):.2f} |"
            )
            print("\n".join(lines), flush=True)
    here = Path(__file__).parent
    (here / "results.json").write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    (here / "dpo.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
