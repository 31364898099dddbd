"""The HH study on a small model, start to finish: `make hh`, or `python recipes/hh.py [--output runs/hh]`.

A model of 2 M parameters is made from the file's own text, trained by SFT on chosen responses, then a reward model and
DPO and IPO, offline on the human pairs and online judged by that reward model. Every stage splits by prompt with one
seed, so the held-out 20 % are the same for all. Ends with a table of held-out accuracies before and after, with
intervals; `--table FILE` writes it as Markdown. Stages that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from trueline.align import align
from trueline.compare import compare
from trueline.newmodel import new_model
from trueline.recipe import read_recipe

RECIPE = read_recipe(str(Path(__file__).with_name("hh_dpo.yaml")))
MODEL = {"size": "2m", "vocab_size": 4096, "seed": 0, "steps": 0}
SFT = {"objective": "sft", "epochs": 3, "learning_rate": 2e-3, "batch_size": 16, "eval_steps": 200}
REWARD = {"objective": "bt", "epochs": 1, "learning_rate": 3e-4, "eval_steps": 30}
IPO = {"objective": "ipo", "learning_rate": 1e-4}
ONLINE = {"source": "policy", "samples": 2}


def stages(root: Path) -> dict[str, dict[str, Any]]:
    """Options of every stage, in order; each names its output under root."""
    base = {k: v for k, v in RECIPE.items() if k not in ("model", "objective", "beta", "output")}
    sft, judge = {"model": str(root / "sft")}, f"reward:{root / 'reward'}"
    offline = {**base, **sft, "eval_feedback": [judge]}
    online = {**base, **sft, **ONLINE, "feedback": [judge]}
    return {
        "sft": {**base, "model": str(root / "model"), **SFT},
        "reward": {**base, **sft, **REWARD},
        "dpo": {**offline, "objective": "dpo", "beta": RECIPE["beta"]},
        "ipo": {**offline, **IPO, "beta": RECIPE["beta"]},
        "dpo-online": {**online, "objective": "dpo", "beta": RECIPE["beta"]},
        "ipo-online": {**online, **IPO, "beta": RECIPE["beta"]},
    }


def finished(folder: Path) -> bool:
    summary = folder / "trueline" / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "finished"


def table(root: Path, names: list[str]) -> str:
    """Held-out readings before (step 0) and after (last step), as Markdown."""
    shown = {
        "ranking_accuracy": "ranking accuracy, summed",
        "ranking_accuracy_mean": "ranking accuracy, per token",
        "reward_accuracy": "reward accuracy",
        "kl": "KL, nats",
        "length": "length, tokens",
        "win_rate/reward": "win rate by the reward model",
    }
    lines = ["| run | reading | before | after | n |", "|---|---|---|---|---|"]
    for name in names:
        evals = [json.loads(x) for x in (root / name / "trueline" / "evals.jsonl").read_text().splitlines()]
        for key, title in shown.items():
            before, after = (e["readings"].get(key) for e in (evals[0], evals[-1]))
            if before and after:
                lines.append(
                    f"| {name} | {title} | {_with_interval(before)} | {_with_interval(after)} | {after['n']} |"
                )
    return "\n".join(lines)


def _with_interval(r: dict[str, Any]) -> str:
    if r["low"] is None:
        return f"{r['value']:.3g}"
    return f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="runs/hh")
    parser.add_argument("--table")
    args = parser.parse_args()
    root = Path(args.output)
    if not (root / "model").exists():
        new_model([str(RECIPE["data"])], output=str(root / "model"), **MODEL)
    for name, options in stages(root).items():
        if not finished(root / name):
            align(**{**options, "output": str(root / name), "overwrite": (root / name).exists()})
    compared = ["dpo", "ipo", "dpo-online", "ipo-online"]
    text = table(root, ["reward", *compared])
    print(text)
    if args.table:
        Path(args.table).write_text(text + "\n", encoding="utf-8")
    print(compare([str(root / n) for n in compared], str(root / "gap.html")))


if __name__ == "__main__":
    main()
