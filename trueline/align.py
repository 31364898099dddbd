"""`align`: take a model, a source of groups and a notion of better, and make the model follow it.

The loop reads top to bottom: groups come from the source, judges reward the fresh ones, a plan says which responses
are compared, one optimiser step follows, and everything is written down. Offline and online differ only in the source.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trueline import recording
from trueline.alarms import Alarms
from trueline.assemble import Parts, assemble
from trueline.config import AlignConfig
from trueline.engine import checkpoint, comparison
from trueline.engine.optimiser import Optimiser, Update
from trueline.engine.parallel import joined, world
from trueline.engine.precision import products
from trueline.engine.sharding import assembled, like, shard, whole_on_first
from trueline.engine.step import (
    StepResult,
    WeightedObjective,
    accumulate,
    loss_at_reference,
    minibatches,
    note_values,
)
from trueline.errors import TruelineError
from trueline.evaluate import Evaluator
from trueline.following import fingerprint, open_folder, refuse_shard
from trueline.groups import Group
from trueline.launch import Launch, read_launch
from trueline.measure.contract import SMALLER_IS_BETTER
from trueline.models import save
from trueline.options import resolve
from trueline.pairing import Plan
from trueline.randomness import derive
from trueline.run import Run, RunFolder, Stopwatch, graceful_stop
from trueline.sources.contract import restore_source, source_state


def align(**options: Any) -> Run:
    """Run one alignment, together with the other processes where a launcher started several. Keywords are the options of `trueline align --help`, method options included.

    Returns the run with its metrics, readings, model and tokenizer; status is "finished", or "interrupted" after
    SIGTERM or SIGINT (resume=True goes on from there). Raises TruelineError for anything the user can mend.
    """
    config = resolve(options)
    launch = read_launch(os.environ, shard=config.shard)
    with joined(launch), _forked_randomness(config.seed):
        return _Alignment(config, launch).run()


@dataclass
class Progress:
    """What a resume needs beside weights and optimiser: all of it goes into the checkpoint."""

    step: int = 0
    nonfinite: int = 0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0

    def kept_step(self, status: str) -> int:
        """The step whose weights become the run's model: the best of a finished run where one is kept, else the last."""
        best = self.best_step if status == "finished" else None
        return self.step if best is None else best


class _Alignment:
    """One run: the parts, where it stands, and the loop."""

    def __init__(self, config: AlignConfig, launch: Launch | None = None):
        self.config = config
        self.watch = Stopwatch()
        if world().first and not config.dry_run:
            RunFolder.check_free(config)  # before anything is loaded
        self.parts: Parts = assemble(config)
        self.policy = self.parts.policy
        if config.dry_run:
            return
        if launch is not None and launch.shard:
            refuse_shard(self.parts)
        self.folder = open_folder(config)
        uses_cache = config.reference_cache and self.parts.uses_reference
        self.reference_key = recording.reference_key(self.parts) if uses_cache else None
        if launch is not None and launch.shard:
            shard(self.policy, launch)
        decay = next((float(o.options["mask_decay"]) for o in self.parts.objectives if o.masks), 0.0)
        trained = self.policy.trained_parameters()
        self.optimiser = Optimiser(trained, config, self.parts.steps, mask_decay=decay)
        self.progress = Progress()
        self.alarms = self._alarms()
        self.evaluator = Evaluator(self.parts, self.folder)

    def _alarms(self) -> Alarms:
        at_reference = self.parts.starts_at_reference
        return Alarms(
            kl_budget=self.config.kl_budget,
            starts_at_reference=at_reference,
            initial_loss=loss_at_reference(self.parts.objectives) if at_reference else None,
            learning_rate=self.config.learning_rate,
            training_judges=set(self.parts.own_judges),
        )

    def run(self) -> Run:
        if self.config.dry_run:
            return recording.dry_run(self.parts)
        self._start_or_resume()
        recorder = recording.Recorder(self.folder, self.parts, self.watch)
        recorder.announce(self.optimiser)
        status = "failed"
        try:
            status = self._loop(recorder)
        finally:
            recorder.close(status, self.progress, self.alarms.watched)
        return self._finish(status)

    def _loop(self, recorder: recording.Recorder) -> str:
        """Steps until the end, an early stop or a request to stop."""
        if self.progress.step == 0:
            self._evaluate(recorder, step=0)
        with graceful_stop() as stop:
            for step in range(self.progress.step, self.parts.steps):
                if self._stops_early():  # also where an early-stopped run is resumed
                    break
                self.watch.reset()
                self.parts.feedback_progress.global_step = step
                with self.watch.phase("sample"):
                    groups = self.parts.source(step)
                with self.watch.phase("feedback"):
                    self.parts.judge_fresh(groups)
                    redrawn = self.parts.redraw_flat(groups, step)
                plan = self.parts.plan(groups)
                plan.redrawn = redrawn
                with self.watch.phase("train"):
                    result, update = self._step(step, plan)
                self.progress.step = step + 1
                recorder.step(self.progress.step, groups, plan, result, update)
                self._guard(step, groups, result, update, recorder)
                last = self.progress.step == self.parts.steps
                if self.config.eval_steps and (last or self.progress.step % self.config.eval_steps == 0):
                    self._evaluate(recorder, step=self.progress.step)
                due = self.config.save_steps and self.progress.step % self.config.save_steps == 0
                asked = world().any(bool(stop))
                if last or asked or due or self._stops_early():
                    self._checkpoint()
                if asked:
                    return "interrupted"
        return "finished"

    def _stops_early(self) -> bool:
        return self.config.early_stop is not None and self.progress.since_best >= self.config.early_stop

    def _step(self, step: int, plan: Plan) -> tuple[StepResult, Update]:
        """Gradient of the whole batch, then one update: or as many as were asked for, each on its share of the groups.

        A batch of ties only gives no gradient and no update.
        """
        rank = (world().rank,) if world().rank else ()  # two ranks must not drop the same entries
        torch.manual_seed(derive(self.config.seed, "dropout", step, *rank))
        if world().size > 1:
            world().same("batches", fingerprint(plan))
        if not plan.items:
            return StepResult(), self.optimiser.skip(step)
        config, objectives = self.config, self.parts.objectives
        results, updates = [], []
        with products(config.precision):
            if any(o.declares("critic") for o in objectives):
                note_values(self.policy, plan.items, objectives, token_budget=config.token_budget)
            for number in range(config.updates_per_batch):
                for items in minibatches(plan.items, config.minibatches, config.seed, step, number):
                    results.append(accumulate(self.policy, items, objectives, token_budget=config.token_budget))
                    updates.append(self.optimiser.step(step, loss=results[-1].loss, probe=step % 50 == 2))
            moved = comparison.update(self.policy, plan.items, objectives, seed=config.seed, step=step)
        self._move_reference(step)
        result = StepResult.mean(results)
        result.statistics.update(moved)
        return result, Update.worst(updates)

    def _move_reference(self, step: int) -> None:
        """Let the reference follow the policy where an objective says so (TR-DPO)."""
        for moving in self._moving():
            if (step + 1) % int(moving.options["every"]) == 0:
                self.policy.move_reference(float(moving.options["mix"]))

    def _moving(self) -> list[WeightedObjective]:
        return [o for o in self.parts.objectives if o.declares("moves_reference")]

    def _guard(
        self, step: int, groups: list[Group], result: StepResult, update: Update, recorder: recording.Recorder
    ) -> None:
        """Non-finite steps are counted, kept for inspection and limited; alarms are raised and written down."""
        if not update.finite:
            self.progress.nonfinite += 1
            saved = recorder.save_batch(step, groups)
            recorder.say(f"Step {step + 1}: the loss or the gradient is not finite; the step was not taken ({saved}).")
            if self.progress.nonfinite > self.config.max_nonfinite_steps:
                raise TruelineError(
                    f"{self.progress.nonfinite} steps had a non-finite loss or gradient (max_nonfinite_steps is "
                    f"{self.config.max_nonfinite_steps}). The batches are in {saved.parent}. Lower the learning rate or look "
                    "at those rows; the last checkpoint is intact."
                )
        for alarm in self.alarms.on_step(step + 1, recorder.last_metrics):
            recorder.alarm(alarm)

    def _evaluate(self, recorder: recording.Recorder, *, step: int) -> None:
        self.parts.feedback_progress.global_step = step
        with self.watch.phase("evaluate"):
            evaluation = self.evaluator.evaluate(step)
        if evaluation is None:
            return
        recorder.evaluation(step, evaluation)
        for alarm in self.alarms.on_eval(step, evaluation.readings):
            recorder.alarm(alarm)
        if self.config.best_metric:
            self._keep_best(step, evaluation.readings)

    def _keep_best(self, step: int, readings: dict[str, dict[str, Any]]) -> None:
        name = str(self.config.best_metric)
        if name not in readings:
            raise TruelineError(f"best_metric '{name}' is not measured in this run. Measured: {', '.join(readings)}.")
        value = readings[name]["value"] * (-1 if name in SMALLER_IS_BETTER else 1)
        if math.isfinite(value) and (self.progress.best is None or value > self.progress.best):
            self.progress.best, self.progress.best_step, self.progress.since_best = value, step, 0
            self._checkpoint()
        else:
            self.progress.since_best += 1

    def _checkpoint(self) -> None:
        """Weights, optimiser and progress in one atomic folder; older ones are pruned, never the best."""
        step = self.progress.step
        weights = {n: p.detach() for n, p in self.optimiser.named.items()}
        if world().size > 1 and not world().sharded:
            world().same("weights", {n: float(p.double().sum()) for n, p in weights.items()})
        tensors = {
            "model": whole_on_first(weights),
            "optimizer": whole_on_first(checkpoint.flatten_optimizer(self.optimiser.adamw, self.optimiser.named)),
        }
        if not world().first:
            return
        if self._moving():
            tensors["reference"] = self.policy.own_reference()
        state = {
            "progress": vars(self.progress),
            "alarms": self.alarms.state(),
            "objectives": {o.method.name: o.state for o in self.parts.objectives},
            "source": source_state(self.parts.source),
            "fingerprints": self.parts.fingerprints,
        }
        for journal in self.folder.journals.values():
            journal.sync()  # the checkpoint counts on their lines
        checkpoint.save(self.folder.checkpoints, step, tensors=tensors, state=state)
        if self.config.save_total_limit:
            keep = set() if self.progress.best_step is None else {self.progress.best_step}
            checkpoint.prune(self.folder.checkpoints, self.config.save_total_limit, protect=keep)

    def _start_or_resume(self) -> None:
        if not self.config.resume:
            self.folder.write_json("config.json", self.config.model_dump(mode="json"))
            self._fill_reference_cache()
            return
        self.folder.check_same(self.config)
        newest = world().from_first(self._newest)
        if newest is not None:
            self._restore(newest)
        self.folder.truncate_after(self.progress.step or -1)
        self._fill_reference_cache()

    def _newest(self) -> Path | None:
        """The checkpoint to go on from; one at step 0 holds nothing that is done yet."""
        newest = checkpoint.newest(self.folder.checkpoints)
        return None if checkpoint.steps(self.folder.checkpoints) == [0] else newest

    def _restore(self, folder: Any) -> None:
        tensors, state = checkpoint.load(folder)
        changed = [k for k, v in self.parts.fingerprints.items() if state["fingerprints"].get(k) != v]
        if changed and not self.config.accept_changes:
            raise TruelineError(
                f"The {' and the '.join(changed)} changed since '{folder}' was written. Give --accept-changes if you mean it."
            )
        self._load_weights(tensors["model"])
        named = self.optimiser.named
        state_of = {key: like(named.get(key.rpartition("/")[0]), value) for key, value in tensors["optimizer"].items()}
        checkpoint.restore_optimizer(self.optimiser.adamw, named, state_of)
        for objective in self.parts.objectives:
            objective.state.update(state["objectives"].get(objective.method.name, {}))
        for name, parameter in self.policy.own_reference().items() if self._moving() else ():
            parameter.copy_(tensors["reference"][name])
        restore_source(self.parts.source, state["source"])
        self.progress = Progress(**state["progress"])
        self.alarms.restore(state["alarms"])

    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.optimiser.named.items():
                parameter.copy_(like(parameter, weights[name]))

    def _fill_reference_cache(self) -> None:
        if self.reference_key is not None:
            recording.fill_reference_cache(self.parts, self.reference_key)

    def _finish(self, status: str) -> Run:
        """The best (or last) weights as a Hugging Face folder, a model card, the report."""
        kept = self.progress.kept_step(status)
        final = world().from_first(lambda: recording.final_readings(self.folder, kept))
        if kept != self.progress.step:
            tensors, _ = checkpoint.load(self.folder.checkpoints / f"step-{kept}")
            self._load_weights(tensors["model"])
        with assembled(self.policy):
            world().from_first(lambda: self._write_model(final))
        model = None if world().sharded else self.policy.model
        return Run(self.folder.root, self.config, status, final, model, self.parts.tokenizer)

    def _write_model(self, final: dict[str, Any]) -> None:
        card = recording.model_card(self.parts, self.folder, final)
        save(self.policy.model, self.parts.tokenizer, self.folder.root, card=card, eos_ids=self.parts.loaded.eos_ids)
        from trueline.report.build import report

        report(self.folder.root)


@contextmanager
def _forked_randomness(seed: int) -> Iterator[None]:
    """The caller's global torch generator is as before when the run is over."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
