"""What a run writes and prints while it goes: metrics, timings, samples, alarms, the first example, the summary."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trueline.alarms import Alarm
from trueline.assemble import Parts
from trueline.cachefolder import cache_folder
from trueline.encode import describe_first
from trueline.engine.journal import encode as encode_line
from trueline.engine.journal import read
from trueline.engine.layout import Layout
from trueline.engine.optimiser import Optimiser, Update
from trueline.engine.parallel import world
from trueline.engine.scorecache import TOLERANCE, Score, ScoreCache, scorer_key
from trueline.engine.step import StepResult
from trueline.environment import environment
from trueline.evaluate import Evaluation
from trueline.feedback.contract import counters
from trueline.groups import Group
from trueline.pairing import Plan
from trueline.run import Run, RunFolder, Stopwatch
from trueline.trackers import trackers

if TYPE_CHECKING:
    from trueline.align import Progress as RunProgress


class Recorder:
    """Writes the journals of a run and shows its progress in the terminal."""

    def __init__(self, folder: RunFolder, parts: Parts, watch: Stopwatch):
        self.folder, self.parts, self.watch = folder, parts, watch
        self.console = Console(stderr=True, quiet=not world().first)
        report_to = parts.config.report_to if world().first else []
        self.trackers = trackers(report_to, folder.ours, parts.config.model_dump(mode="json"))
        self.last_metrics: dict[str, Any] = {}
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not (sys.stderr.isatty() and world().first),
        )
        self.task = self.bar.add_task("align", total=parts.steps, note="")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def announce(self, optimiser: Optimiser) -> None:
        """The facts of the start: data, resolved batch size and steps, layout, first example with its masks."""
        config, parts = self.parts.config, self.parts
        audit = parts.data_report["train"]
        self.folder.write_json("data.json", parts.data_report)
        self.folder.write_json("environment.json", environment())
        self.say(
            f"[bold]{'+'.join(config.objective)}[/] on {audit['kept']} of {audit['read']} groups"
            f" (dropped: {_counts(audit['dropped'])}; noted: {_counts(audit['noted'])}; held out: {len(parts.held_out)}), {parts.steps} steps of"
            f" {config.batch_size} groups, {sum(p.numel() for p in optimiser.named.values()):,} trained parameters,"
            f" layout {parts.policy.mode}, output {self.folder.root}"
        )
        if parts.policy.mode != "shared" and parts.policy.probe_result is not None:
            self.say(f"Prefix sharing is off: {parts.policy.probe_result.reason}")
        for note in parts.loaded.notes:
            self.say(note)
        self.console.print(describe_first(parts.train[0], parts.tokenizer))
        self.bar.start()

    def step(self, step: int, groups: list[Group], plan: Plan, result: StepResult, update: Update) -> None:
        """One line of metrics (nothing in it depends on the clock), one of timings, the sampled groups."""
        metrics = step_metrics(step, groups, plan, result, update, self._beta())
        self.last_metrics = metrics
        self.folder.journals["metrics"].append(metrics)
        spent = self.watch.take()
        self.folder.journals["timing"].append(
            {"step": step, "tokens_per_second": result.tokens / spent["seconds"], **spent, **self._counters()}
        )
        if self.parts.config.record_stream and any(r.finish is not None for g in groups for r in g.responses):
            for group in groups:
                self.folder.journals["stream"].append({"step": step, **group.to_json()})
        for track in self.trackers:
            track(step, metrics)
        self.bar.update(self.task, completed=step, note=f"loss {metrics['loss']:.4g}")

    def _counters(self) -> dict[str, float]:
        """What judges asked and what failed there, so far; a resumed run asks less, as answers are kept."""
        judges = self.parts.own_judges.items()
        return {f"{label}/{name}": total for label, judge in judges for name, total in counters(judge).items()}

    def _beta(self) -> float:
        return next((float(o.options["beta"]) for o in self.parts.objectives if "beta" in o.options), 1.0)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        self.folder.journals["evals"].append({"step": step, "readings": evaluation.readings})
        for sample in evaluation.samples:
            self.folder.journals["samples"].append({"step": step, **sample})
        for track in self.trackers:
            track(step, {f"eval/{name}": r["value"] for name, r in evaluation.readings.items()})
        shown = ("eval_loss", "reward_accuracy", "ranking_accuracy", "kl")
        wins = [n for n in evaluation.readings if n.startswith("win_rate/")]
        parts = [f"{n} {evaluation.readings[n]['value']:.3f}" for n in (*shown, *wins) if n in evaluation.readings]
        self.say(f"step {step}: " + ", ".join(parts))

    def alarm(self, alarm: Alarm) -> None:
        self.folder.journals["alarms"].append({"step": alarm.step, "name": alarm.name, "message": alarm.message})
        self.say(f"[bold yellow]Alarm {alarm.name}[/] at step {alarm.step}: {alarm.message}")

    def save_batch(self, step: int, groups: list[Group]) -> Path:
        """Keep the groups of a step that went wrong, for inspection."""
        target = self.folder.ours / "nonfinite" / f"step-{step + 1}.jsonl"
        if world().first:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(b"".join(encode_line(g.to_json()) for g in groups))
        return target

    def close(self, status: str, progress: RunProgress, watched: Iterable[Any]) -> None:
        self.bar.stop()
        if not world().first:
            return
        policy = self.parts.policy
        probe = policy.probe_result
        summary = {
            "status": status,
            "steps": progress.step,
            "wall_seconds": round(self.watch.elapsed, 3),
            "phases": {k: round(v, 3) for k, v in self.watch.total.items()},
            "final": final_readings(self.folder, progress.kept_step(status)),
            "alarms_watched": list(watched),
            "layout": {
                "mode": policy.mode,
                "max_difference": probe.max_difference if probe else None,
                "reason": probe.reason if probe else "padded was asked for",
            },
            "parameters": sum(p.numel() for p in policy.model.parameters()),
            "trained_parameters": sum(p.numel() for p in policy.model.parameters() if p.requires_grad),
            "fingerprints": self.parts.fingerprints,
            "processes": {"count": world().size, "sharded": world().sharded},
        }
        self.folder.write_json("summary.json", summary)


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"


def step_metrics(
    step: int, groups: list[Group], plan: Plan, result: StepResult, update: Update, beta: float
) -> dict[str, Any]:
    """The metrics of one step under TRL's names; implicit rewards are beta times the log-ratio."""
    means = result.means()
    metrics: dict[str, Any] = {
        "step": step,
        "loss": result.loss,
        "learning_rate": update.learning_rate,
        "grad_norm": update.grad_norm,
        "tokens": result.tokens,
        "ties": plan.ties,
        "unjudged": plan.unjudged,
    }
    if plan.flat or any(item.members for item in plan.items):
        metrics["flat_groups"] = plan.flat
    if plan.redrawn is not None:
        metrics["redrawn_groups"] = plan.redrawn
    if update.moved is not None:
        metrics["moved"] = update.moved
    for kind, scale in (("log_ratio", beta), ("value", 1.0)):
        chosen, rejected = (result.statistics.get(f"{kind}/{side}") for side in ("chosen", "rejected"))
        if chosen and rejected:
            margins = [scale * (c - r) for c, r in zip(chosen, rejected, strict=True)]
            metrics["rewards/chosen"] = scale * means[f"{kind}/chosen"]
            metrics["rewards/rejected"] = scale * means[f"{kind}/rejected"]
            metrics["rewards/margins"] = sum(margins) / len(margins)
            metrics["rewards/accuracies"] = sum(m > 0 for m in margins) / len(margins)
    metrics.update({name: value for name, value in means.items() if not name.startswith(("value/", "loss/"))})
    by = {author: [r for g in groups for r in g.responses if r.source == author] for author in ("policy", "mixture")}
    fresh = by["policy"] or by["mixture"]
    ages = [step - 1 - r.policy_step for r in fresh if r.policy_step is not None]
    if ages:
        metrics["staleness"] = sum(ages) / len(ages)
    if fresh:
        rewards = [r.reward for r in fresh if r.reward is not None]
        if rewards:
            metrics["reward/mean"] = sum(rewards) / len(rewards)
            metrics["reward/std"] = statistics.pstdev(rewards)
        metrics["length/sampled"] = sum(len(r.ids or ()) for r in fresh) / len(fresh)
        metrics["finish/length"] = sum(r.finish == "length" for r in fresh) / len(fresh)
        sampled = [
            g for g in groups if len(g.responses) > 1 and all(r.source in ("policy", "mixture") for r in g.responses)
        ]
        if sampled:
            same = sum(len({tuple(r.ids or ()) for r in g.responses}) == 1 for g in sampled)
            metrics["identical_samples"] = same / len(sampled)
    return metrics


def final_readings(folder: RunFolder, step: int) -> dict[str, Any]:
    """Readings of the weights of this step; none where they were not evaluated, as in a run that was interrupted."""
    evals = [e for e in read(folder.ours / "evals.jsonl") if e["step"] == step]
    return evals[-1]["readings"] if evals else {}


def reference_key(parts: Parts) -> str:
    """What names the reference's scores on disk: its content, so whole weights are needed to make it."""
    policy = parts.policy
    scorer = policy.reference_model if policy.reference_model is not None else policy.model
    off = policy.reference_kind == "adapter_off"
    return scorer_key(scorer, precision=parts.config.precision, layout_mode=policy.mode, adapter_off=off)


def fill_reference_cache(parts: Parts, key: str) -> None:
    """Score every training and held-out response under the reference once, on disk, and reuse it. key: `reference_key`."""
    import torch

    from trueline.engine.precision import products

    policy, config = parts.policy, parts.config

    @torch.no_grad()
    def score(groups: list[Group]) -> list[list[list[float]]]:
        def micro_batch(cut: list[int]) -> list[list[list[float]]]:
            layout = Layout.of([groups[i] for i in cut]).to(policy.device)
            with products(config.precision):
                logp_N = policy(layout, reference=True).logp_N
            rows = iter(torch.split(logp_N, layout.length_R.tolist()))
            return [[next(rows).tolist() for _ in groups[i].responses] for i in cut]

        return world().spread(groups, config.token_budget, micro_batch)

    groups = [g for g in parts.train + parts.held_out if g.responses]

    def fill(ask: Score) -> list[list[Any]]:
        """On the first rank, which alone reads and writes the cache; the others score their share of what it asks."""
        ScoreCache(cache_folder() / "scores", key, tolerance=TOLERANCE[config.precision]).fill(groups, ask)
        return [[r.reference_logp for r in g.responses] for g in groups] if world().size > 1 else []

    for group, rows in zip(groups, world().led(fill, score), strict=False):
        for response, row in zip(group.responses, rows, strict=True):
            response.reference_logp = row


def model_card(parts: Parts, folder: RunFolder, final: dict[str, Any]) -> str:
    from trueline.modelcard import model_card as write

    return write(parts.config, final, folder.read_json("environment.json"))


def dry_run(parts: Parts) -> Run:
    """Print the resolved options, the first batch with its masks and a memory estimate; nothing is trained."""
    from trueline.models import memory_estimate

    console = Console(quiet=not world().first)
    config = parts.config
    console.print_json(data=config.model_dump(mode="json"))
    console.print(
        f"{len(parts.train)} training groups, {len(parts.held_out)} held out, {parts.steps} steps", highlight=False
    )
    if not parts.train[0].responses:
        console.print("The training data hold prompts only; responses are sampled.")
    console.print(describe_first(parts.train[0], parts.tokenizer))
    console.print("Memory of one training step, in GB:", highlight=False)
    console.print_json(data=memory_estimate(parts.policy.model, config))
    return Run(Path(config.output or "."), config, "dry run", {}, None, parts.tokenizer)
