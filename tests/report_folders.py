"""Run folders made up for the report's tests: written as a run writes them, with outcomes chosen by the test."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trueline.engine.journal import Journal
from trueline.intervals import bootstrap_mean
from trueline.measure.win_rate import win_rate

ITEMS = ("lamp", "kettle", "chair", "rug", "mirror", "clock", "drum", "scarf")
PARTS = ("its colour is green", "it stands by the bridge", "it was made by clara", "welcome dear guest", "bless you")


@dataclass
class Plan:
    """What a made-up run did. gain: final gold reward above the start; kl: final KL; proxy_gain: by its own judge."""

    gain: float = 1.5
    kl: float = 4.4
    proxy_gain: float = 1.5
    online: bool = True
    judges: tuple[str, ...] = ("lab", "implicit")
    feedback: tuple[str, ...] = ("lab",)
    peak: float = 1.0  # share of the run after which gold stops rising and falls back
    steps: int = 120
    evaluations: tuple[int, ...] = (0, 30, 60, 90, 120)
    prompts: int = 64
    world: int = 0  # another world: other prompts
    start: int = 0  # another starting model: other opponent
    status: str = "finished"
    alarms: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


def make_run(folder: Path, plan: Plan, seed: int = 0) -> Path:
    """Write the folder and return it."""
    home = folder / "trueline"
    home.mkdir(parents=True)
    rng = np.random.default_rng([seed, plan.world])
    prompts = [
        f"tell me kindly the colour of the {ITEMS[(i + plan.world) % 8]} number {i} ?" for i in range(plan.prompts)
    ]
    base = np.random.default_rng([plan.start, plan.world, 7]).normal(size=plan.prompts)  # how hard each prompt is
    opponent = _opponent(home, plan, prompts, base)
    _evaluations(home, plan, prompts, base, opponent, rng)
    _metrics(home, plan, rng)
    with Journal(home / "alarms.jsonl") as journal:
        for alarm in plan.alarms:
            journal.append(alarm)
    _documents(home, plan, seed)
    return folder


def _opponent(home: Path, plan: Plan, prompts: list[str], base: np.ndarray) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng([plan.start, plan.world])
    rewards = {}
    with Journal(home / "opponent.jsonl") as journal:
        for i, _ in enumerate(prompts):
            given = {j: (base[i] + rng.normal(size=4)).tolist() for j in plan.judges}
            texts = [f"{PARTS[rng.integers(5)]} . {PARTS[rng.integers(5)]} . sample {k} ." for k in range(4)]
            rewards[f"p{i}"] = given
            journal.append({"prompt_id": f"p{i}", "texts": texts, "rewards": given})
    return rewards


def _evaluations(
    home: Path, plan: Plan, prompts: list[str], base: np.ndarray, opponent: dict, rng: np.random.Generator
) -> None:
    noise = np.random.default_rng([plan.start, plan.world, 3]).normal(size=plan.prompts)
    with Journal(home / "evals.jsonl") as evals, Journal(home / "samples.jsonl") as samples:
        for step in plan.evaluations:
            share = step / max(plan.steps, 1)
            gold = plan.gain * (share / plan.peak if share <= plan.peak else 1 - 0.8 * (share - plan.peak))
            lift = {"lab": gold, "implicit": plan.proxy_gain * math.sqrt(share)}
            own: dict[str, list[list[float]]] = {j: [] for j in plan.judges}
            for i, prompt in enumerate(prompts):
                rewards = {
                    j: float(base[i] + noise[i] * (step == 0) + lift.get(j, gold) + rng.normal()) for j in plan.judges
                }
                for j in plan.judges:
                    own[j].append([rewards[j]])
                words = [PARTS[k] for k in rng.permutation(5)[: 2 + (step > 0)]]
                samples.append(
                    {
                        "step": step,
                        "prompt_id": f"p{i}",
                        "prompt": prompt,
                        "text": " . ".join(words) + " .",
                        "rewards": rewards,
                        "attributes": {
                            "well_formed": bool(rng.random() < 0.8),
                            "credit": round(float(rng.random()), 2),
                        },
                        "length": 3 * len(words),
                    }
                )
            evals.append({"step": step, "readings": _readings(plan, own, opponent, share, rng)})


def _readings(plan: Plan, own: dict, opponent: dict, share: float, rng: np.random.Generator) -> dict[str, Any]:
    def reading(values: Any, unit: str) -> dict[str, Any]:
        found = bootstrap_mean(values, resamples=200)
        return {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "unit": unit}

    readings: dict[str, Any] = {}
    for j in plan.judges:
        readings[f"reward/{j}"] = reading([x[0] for x in own[j]], "reward")
        readings[f"win_rate/{j}"] = win_rate(own[j], [opponent[f"p{i}"][j] for i in range(plan.prompts)]).to_json()
    spread = np.abs(rng.normal(size=plan.prompts))
    readings["kl"] = reading(plan.kl * math.sqrt(share) * (0.6 + 0.5 * spread), "nats")
    readings["entropy"] = reading(0.9 - 0.3 * share + 0.05 * rng.normal(size=plan.prompts), "nats/token")
    readings["length"] = reading(18 + 6 * share + 3 * rng.normal(size=plan.prompts), "tokens")
    accuracy = 0.5 + (0.15 if plan.online else 0.27) * math.sqrt(share)
    readings["reward_accuracy"] = reading((np.arange(256) < 256 * accuracy).astype(float), "share")
    return readings


def _metrics(home: Path, plan: Plan, rng: np.random.Generator) -> None:
    with Journal(home / "metrics.jsonl") as metrics, Journal(home / "timing.jsonl") as timing:
        for step in range(1, plan.steps + 1):
            share = step / plan.steps
            row: dict[str, Any] = {
                "step": step,
                "loss": 0.25 - 0.06 * share + 0.01 * rng.normal(),
                "learning_rate": 7e-4 * (1 - share),
                "grad_norm": 0.5 + 0.1 * abs(rng.normal()),
                "tokens": 1500,
                "log_ratio/chosen": -5 * share + 0.4 * rng.normal(),
                "log_ratio/rejected": -9 * share + 0.4 * rng.normal(),
            }
            if plan.online:
                row |= {"reward/mean": plan.gain * share + 0.2 * rng.normal(), "length/sampled": 18 + 6 * share}
            metrics.append(row)
            timing.append({"step": step, "seconds": 0.4, "tokens_per_second": 3500 + 300 * rng.normal()})


def _documents(home: Path, plan: Plan, seed: int) -> None:
    lengths = {side: {"p5": 8, "p50": 17, "p95": 31, "max": 44} for side in ("prompt", "chosen", "rejected")}
    audit = {
        "read": 4100,
        "kept": 4096,
        "dropped": {"identical pair": 4},
        "noted": {"duplicate row": 12},
        "examples": {
            "identical pair": [
                {"origin": "pairs.jsonl:17", "detail": "chosen == rejected: bless you ."},
                {"origin": "pairs.jsonl:60", "detail": "chosen == rejected: welcome ."},
            ],
            "duplicate row": [{"origin": "pairs.jsonl:99", "detail": "same as pairs.jsonl:3"}],
        },
    }
    held_out = {"read": 512, "kept": 512, "dropped": {}, "noted": {}, "examples": {}}
    source = "policy" if plan.online else "data"
    content = {
        "config": {
            "model": "models/sft",
            "data": ["data/pairs.jsonl"],
            "objective": {"ipo": 1.0},
            "source": source,
            "feedback": list(plan.feedback) if plan.online else ["data"],
            "eval_feedback": ["lab", "implicit:models/proxy"][: len(plan.judges)],
            "method_options": {"objectives.ipo": {"beta": 0.03}},
            "learning_rate": 7e-4,
            "seed": seed,
            **plan.config,
        },
        "environment": {
            "versions": {"python": "3.11.2", "trueline": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "cpu": "Example CPU @ 2.5 GHz",
            "cores": 2,
            "memory_gb": 16.4,
            "gpu": None,
            "date": "2026-03-01T10:00:00+00:00",
            "command": f"trueline align --model models/sft --data data/pairs.jsonl --objective ipo --source {source}",
        },
        "data": {"train": audit, "eval": held_out, "lengths": lengths, "overlap": 0, "duplicates": 12},
        "summary": {
            "status": plan.status,
            "steps": plan.steps,
            "wall_seconds": 71.3,
            "phases": {"sample": 20.0, "feedback": 6.0, "train": 39.0, "evaluate": 6.1},
            "alarms_watched": ["displacement", "over_optimisation", "length_drift", "non_finite", "entropy_collapse"],
            "layout": {"mode": "shared", "max_difference": 2.1e-6, "reason": ""},
            "parameters": 443648,
            "trained_parameters": 443648,
            "fingerprints": {"model": f"start{plan.start}", "data": f"data{plan.world}", "config": f"c{seed}"},
        },
    }
    for name, document in content.items():
        (home / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


OVER_OPTIMISED = {
    "step": 60,
    "name": "over_optimisation",
    "message": "reward/lab fell from 1.53 to 0.79 while reward/implicit rose from 2.74 to 5.75: the policy exploits its judge. "
    "Stop at step 30, raise beta, or use a better judge.",
}


def demo_runs(root: Path) -> list[Path]:
    """Three runs that tell the lab's story: offline, online by the proxy (over-optimised), online by gold."""
    plans = {
        "offline": Plan(gain=1.4, kl=4.7, proxy_gain=3.0, online=False),
        "online-proxy": Plan(
            gain=1.6, kl=17.5, proxy_gain=6.0, peak=0.25, feedback=("implicit:models/proxy",), alarms=[OVER_OPTIMISED]
        ),
        "online-gold": Plan(gain=2.6, kl=5.1, proxy_gain=2.3),
    }
    for plan in plans.values():
        plan.prompts = 256
    return [make_run(root / name, plan, seed=i) for i, (name, plan) in enumerate(plans.items())]
