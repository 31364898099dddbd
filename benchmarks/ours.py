"""Our side of every row that has a peer, and of the rows about a run's own costs.

Each function does the same work as its peer on the same files and returns its units; what is timed is what is inside
`meter.region()`, the training steps, the sampling or the scoring alone.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.meter import Meter, gemm_rate
from benchmarks.peers.trl_grpo import KL_WEIGHT
from benchmarks.workload import BATCH, Sizes, end_tokens, read_rows

COMMON: dict[str, Any] = {
    "schedule": "constant",
    "warmup": 0,
    "learning_rate": 1e-6,
    "max_grad_norm": 1.0,
    "offline": True,
}


def dpo(
    folder: Path,
    sizes: Sizes,
    meter: Meter,
    *,
    precision: str = "exact",
    cached: bool = False,
    model: str = "model",
    data: str = "pairs",
    products: bool = False,
) -> dict[str, float]:
    """Train on every pair once; units are pairs. products: also measure the rate of plain fp32 products, before and after."""
    import trueline.align
    import trueline.report.build  # noqa: F401  # what the run imports at its end belongs to the imports, too

    meter.loaded()
    rates = [gemm_rate()] if products and meter.mode == "time" else []
    pairs = len(read_rows(folder / f"{data}.jsonl"))
    run = _steps(
        meter,
        folder,
        model=str(folder / model),
        data=[str(folder / f"{data}.jsonl")],
        objective="dpo",
        beta=0.1,
        steps=pairs // BATCH,
        batch_size=BATCH,
        max_length=sizes.max_length,
        precision=precision,
        reference_cache=cached,
    )
    if rates:
        rates.append(gemm_rate())
    return {"units": pairs, "parameters": run["parameters"], **({"gemm_rate": max(rates)} if rates else {})}


def grpo(folder: Path, sizes: Sizes, meter: Meter, *, precision: str = "exact") -> dict[str, float]:
    """One optimiser step on every prompt, sampling included; units are completions."""
    import trueline.align
    import trueline.report.build  # noqa: F401

    meter.loaded()
    prompts = folder / "grpo_prompts.jsonl"
    rows = read_rows(folder / "prompts.jsonl")[: sizes.grpo_prompts]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = _steps(
        meter,
        folder,
        model=str(folder / "model"),
        data=[str(prompts)],
        objective="grpo",
        kl_weight=KL_WEIGHT,
        source="policy",
        samples=sizes.samples,
        feedback=["rule:benchmarks.workload:length_reward"],
        steps=1,
        batch_size=len(rows),
        max_length=sizes.max_length,
        max_response_length=sizes.new_tokens,
        precision=precision,
    )
    return {"units": len(rows) * sizes.samples, "parameters": run["parameters"], "tokens": run["tokens"]}


def _steps(meter: Meter, folder: Path, **options: Any) -> dict[str, float]:
    """An `align` run whose training steps, sampling and judging included, are the meter's region."""
    module = import_module("trueline.align")  # trueline.align is also the name of its function
    from trueline.engine.journal import read

    output = folder / f"run-{time.time_ns()}"
    loop = module._Alignment._loop

    def metered(self: Any, recorder: Any) -> str:
        with meter.region():
            return loop(self, recorder)

    with mock.patch.object(module._Alignment, "_loop", metered), mock.patch.object(module._Alignment, "_checkpoint"):
        module.align(output=str(output), **COMMON, **options)
    steps = read(output / "trueline" / "metrics.jsonl")
    summary = json.loads((output / "trueline" / "summary.json").read_text(encoding="utf-8"))
    assert summary["layout"]["mode"] == "shared", summary["layout"]
    assert len(steps) == options["steps"] and all(s["grad_norm"] > 0 for s in steps), steps
    shutil.rmtree(output)
    return {"parameters": summary["parameters"], "tokens": sum(s["tokens"] for s in steps)}


def _policy(folder: Path, sizes: Sizes) -> tuple[Any, Any]:
    from trueline.engine.policy import Policy
    from trueline.models import load

    loaded = load(folder / "model", for_training=False, offline=True)
    policy = Policy(loaded.model, max_length=sizes.max_length).train(False)
    assert policy.mode == "shared", policy.probe_result
    return loaded, policy


def sampling(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, float]:
    """Sample every prompt, a finished row's slot going to the next; units are tokens, the end token included."""
    from trueline.engine.sampler import sample

    meter.loaded()
    loaded, policy = _policy(folder, sizes)
    rows = read_rows(folder / "prompts.jsonl")[: sizes.sampled_prompts]
    prompts = [loaded.tokenizer(row["prompt"])["input_ids"] for row in rows]
    common: dict[str, Any] = {"eos_ids": end_tokens(sizes), "seed": 0, "max_rows": sizes.rows}
    sample(policy, prompts[:1], sizes.samples, max_new_tokens=2, **common)  # what is done once is done
    with meter.region():
        drawn = sample(policy, prompts, sizes.samples, max_new_tokens=sizes.new_tokens, **common)
    responses = [s for of_prompt in drawn for s in of_prompt]
    return {
        "units": sum(len(s.ids) for s in responses),
        "responses": len(responses),
        "ended": sum(s.finish == "stop" for s in responses),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
    }


def scoring(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, float]:
    """Log-probs of both responses of every pair, from text; units are pairs."""
    import torch

    from trueline.encode import Limits, encode
    from trueline.engine.layout import laid_out
    from trueline.readers import read

    meter.loaded()
    loaded, policy = _policy(folder, sizes)
    file = str(folder / "scored_pairs.jsonl")
    with meter.region(), torch.no_grad():
        groups, _ = encode(read([file])[0], loaded.tokenizer, Limits(2 * sizes.max_length), eos_ids=loaded.eos_ids)
        logp: list[float] = []
        for _, layout in laid_out(groups, 4096, policy.device):
            sums_R = torch.zeros(len(layout.length_R)).index_add(0, layout.owner_N, policy(layout).logp_N)
            logp += sums_R.tolist()
    ranking = sum(w > r for w, r in zip(logp[::2], logp[1::2], strict=True))
    return {
        "units": len(groups),
        "ranking": ranking,
        "logp": sum(logp),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
    }


def bookkeeping(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, float]:
    """Tokenising, packing, logging and checkpointing of a run with its files, as a share of its wall time."""
    module = import_module("trueline.align")  # trueline.align is also the name of its function
    from trueline import assemble, recording
    from trueline.engine import checkpoint, layout

    meter.loaded()
    spent: dict[str, float] = {"tokenising": 0.0, "packing": 0.0, "logging": 0.0, "checkpointing": 0.0}
    output = folder / f"run-{time.time_ns()}"
    start = time.perf_counter()
    with (
        _timed(spent, "tokenising", assemble, "read"),
        _timed(spent, "tokenising", assemble, "encode"),
        _timed(spent, "packing", layout.Layout, "of", wrap=classmethod),
        _timed(spent, "logging", recording.Recorder, "announce"),
        _timed(spent, "logging", recording.Recorder, "step"),
        _timed(spent, "logging", recording.Recorder, "close"),
        _timed(spent, "checkpointing", checkpoint, "save"),
        _timed(spent, "checkpointing", module, "save"),
        meter.region(),
    ):
        module.align(
            model=str(folder / "model"),
            data=[str(folder / "run_pairs.jsonl")],
            objective="dpo",
            output=str(output),
            steps=sizes.run_pairs // BATCH,
            batch_size=BATCH,
            max_length=sizes.max_length,
            **COMMON,
        )
    wall = time.perf_counter() - start
    shutil.rmtree(output)
    return {"units": sizes.run_pairs, "share": sum(spent.values()) / wall, **{k: v / wall for k, v in spent.items()}}


@contextmanager
def _timed(
    spent: dict[str, float], part: str, owner: Any, name: str, wrap: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Add the time of every call of owner.name to a part."""
    original = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*(args[1:] if wrap else args), **kwargs)  # a bound class method has its class already
        finally:
            spent[part] += time.perf_counter() - start

    with mock.patch.object(owner, name, wrap(timed) if wrap else timed):
        yield


def startup(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, float]:
    """Seconds of `trueline --help` and of `import trueline`, each in a fresh process; whether the import brings torch."""
    import subprocess
    import sys

    meter.loaded()
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trueline", "--help"], check=True, capture_output=True)
    shown = time.perf_counter() - start
    program = (
        "import sys, time; start = time.perf_counter(); import trueline; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    seconds, torch_came = done.stdout.split()
    assert torch_came == "False", "importing the package imports torch"
    return {"units": 1, "help": shown, "import": float(seconds)}
