"""Readings of a policy on held-out groups and prompts, each with its interval.

Two kinds. On held-out comparisons: does the policy rank and reward them as people did. On samples for held-out
prompts: what the judges say, how often it beats the starting model, how far it moved (exact KL), how long it talks.
The opponent is fixed at step 0: `eval_opponent_samples` draws a prompt, kept in `opponent.jsonl`, of the starting model
or of the model that `eval_opponent` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trueline.assemble import Parts, add_rewards
from trueline.drawing import drawer
from trueline.encode import limits_of
from trueline.engine.journal import Journal, read
from trueline.engine.layout import Layout
from trueline.engine.parallel import world
from trueline.engine.policy import Policy
from trueline.engine.precision import products
from trueline.engine.step import WeightedObjective, accumulate, global_counts
from trueline.errors import TruelineError
from trueline.feedback._preferences import Table, duels
from trueline.feedback.contract import is_relative
from trueline.groups import Group, prompt_text
from trueline.measure.contract import Reading
from trueline.models import load_frozen
from trueline.pairing import PAIRS, plan
from trueline.randomness import derive
from trueline.registry import load
from trueline.run import RunFolder


@dataclass
class Evaluation:
    """readings: name to {value, low, high, n, unit}. samples: rows of samples.jsonl, without the step."""

    readings: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]


class Evaluator:
    """Evaluates one run's policy, always on the same held-out groups, prompts and sampling streams."""

    def __init__(self, parts: Parts, folder: RunFolder):
        self.parts, self.folder, self.config = parts, folder, parts.config
        comparable = [g for g in parts.held_out if g.responses]
        self.items = plan(comparable, parts.needs | {PAIRS}, parts.rules).items
        self.objectives = self._with_a_loss()
        self.prompts = self._prompts() if self._samples() else []
        self.judge_readings: list[Reading] | None = None
        self.opponent: dict[str, dict[str, list[float | None]]] | None = None
        self.opponent_texts: dict[str, list[str]] = {}
        self.scoring = {label: judge for label, judge in parts.judges.items() if not is_relative(judge)}
        self.comparing = {label: judge for label, judge in parts.judges.items() if is_relative(judge)}

    def _with_a_loss(self) -> list[WeightedObjective]:
        """The objectives if held-out data hold all that they read: those of fresh samples have no loss there."""
        objectives = self.parts.objectives
        of_samples = ("behaviour", "critic", "answers")
        if not self.items or any(o.declares(fact) for o in objectives for fact in of_samples):
            return []
        try:
            counts = global_counts(objectives, self.items, heads=self.parts.policy.heads)
        except TruelineError:  # held-out rows keep the labels they were read with, and these lack scores, say
            return []
        return objectives if all(counts) else []

    def _samples(self) -> bool:
        """Sampling tells something where a judge or a reference can say what."""
        wanted = bool(self.parts.judges) or self.parts.uses_reference
        return self.parts.head == "lm" and wanted and bool(self.config.eval_steps)

    def _prompts(self) -> list[Group]:
        unique = {g.prompt_key(): g for g in self.parts.held_out}
        chosen = sorted(unique)[: self.config.eval_prompts]
        return [Group(unique[k].prompt, [], unique[k].prompt_ids, unique[k].extras, unique[k].origin) for k in chosen]

    def evaluate(self, step: int) -> Evaluation | None:
        """All readings at this step, or None where nothing is held out or evaluation was not asked for."""
        if not self.config.eval_steps or not (self.items or self.prompts):
            return None
        readings: list[Reading] = []
        samples: list[dict[str, Any]] = []
        with torch.no_grad(), products(self.config.precision), self.parts.policy.at_temperature(1.0):
            if self.items:
                readings += self._on_comparisons()
                readings += self._judge_accuracies()
            if self.prompts:
                found, samples = self._on_samples(step)
                readings += found
        return Evaluation({r.name: r.to_json() for r in readings}, samples)

    def _on_comparisons(self) -> list[Reading]:
        result = accumulate(
            self.parts.policy,
            self.items,
            self.objectives,
            token_budget=self.config.token_budget,
            gradient=False,
            reference=self.parts.uses_reference,
        )
        found, values = [], result.statistics
        clusters = [item.group.prompt_key() for item in self.items for _ in item.pairs]
        if clusters:
            if "log_ratio/chosen" in values:
                found.append(
                    measure("reward_accuracy", values["log_ratio/chosen"], values["log_ratio/rejected"], clusters)
                )
                for side in ("chosen", "rejected"):
                    found.append(mean(f"log_ratio_{side}", values[f"log_ratio/{side}"], "nats", clusters))
            if "value/chosen" in values:
                found.append(measure("reward_accuracy", values["value/chosen"], values["value/rejected"], clusters))
            if "logps/chosen" in values:
                found.append(measure("ranking_accuracy", values["logps/chosen"], values["logps/rejected"], clusters))
                per_token = measure(
                    "ranking_accuracy", values["mean_logps/chosen"], values["mean_logps/rejected"], clusters
                )
                found.append(per_token.renamed("ranking_accuracy_mean"))
        prompts = [item.group.prompt_key() for item in self.items if item.pairs]
        stepped = [
            i.group.prompt_key() for i in self.items for r in i.stepped for _ in i.group.responses[r].marks or ()
        ]
        if stepped and len(values.get("steps/accuracy", ())) == len(stepped):
            found.append(mean("step_accuracy", values["steps/accuracy"], "share", stepped))
        if "loss/pair" in values:
            found.append(mean("eval_loss", values["loss/pair"], "", clusters))
        elif len(values.get("loss/group", ())) == len(prompts) > 0:
            found.append(mean("eval_loss", values["loss/group"], "", prompts))
        elif self.objectives:  # a sum of terms, or a mean over tokens: no one number a prompt to resample
            found.append(Reading("eval_loss", result.loss, None, None, len(self.items), ""))
        return found

    def _judge_accuracies(self) -> list[Reading]:
        """How often each judge agrees with the held-out labels: a judge is fixed, so once is enough."""
        if self.judge_readings is None:
            self.judge_readings = []
            clusters = [item.group.prompt_key() for item in self.items for _ in item.pairs]
            for label, judge in self.parts.judges.items() if clusters else ():
                copies = [replace(i.group, responses=[replace(r) for r in i.group.responses]) for i in self.items]
                judge(copies)
                given: list[tuple[float, float, str]] = []
                for item, copy in zip(self.items, copies, strict=True):
                    for better, worse in item.pairs:
                        chosen, rejected = copy.responses[better].reward, copy.responses[worse].reward
                        if chosen is not None and rejected is not None:
                            given.append((chosen, rejected, copy.prompt_key()))
                if given:
                    accuracy = measure("reward_accuracy", *map(list, zip(*given, strict=True)))
                    self.judge_readings.append(accuracy.renamed(f"judge_accuracy/{label}"))
        return self.judge_readings

    def _draw(self, samples: int, stream: str) -> list[Group]:
        return self.parts.sample(self.prompts, samples, derive(self.config.seed, "evaluation", stream))

    def _opponent_samples(self) -> list[Group]:
        """Draws of the model as it is now, before its first step, or of the one that `eval_opponent` names."""
        if self.config.eval_opponent is None:
            return self._draw(self.config.eval_opponent_samples, "opponent")
        named = load_frozen(self.config.eval_opponent, self.parts.policy.device, offline=self.config.offline)
        if named.vocabulary_hash != self.parts.loaded.vocabulary_hash:
            raise TruelineError(
                f"The opponent '{self.config.eval_opponent}' has another vocabulary than '{self.config.model}'. Give a model "
                "with the same tokenizer, or compare saved samples with `trueline compare`."
            )
        opponent = Policy(named.model, reference="none", max_length=self.config.max_length)
        draw = drawer(opponent.requires_grad_(False).eval(), named, limits_of(self.config))
        seed = derive(self.config.seed, "evaluation", "opponent")
        return draw(self.prompts, self.config.eval_opponent_samples, seed)

    def _fixed_opponent(self, step: int) -> dict[str, dict[str, list[float | None]]]:
        """Judges' rewards of the opponent's samples by prompt; drawn at step 0, read back on a resume."""
        if self.opponent is not None:
            return self.opponent
        file = self.folder.ours / "opponent.jsonl"
        if step == 0:
            drawn = self._opponent_samples()
            add_rewards(drawn, self.scoring)
            if world().first:
                self._write_opponent(file, drawn)
        rows = world().from_first(lambda: read(file) if file.exists() else [])
        self.opponent_texts = {row["prompt_id"]: row["texts"] for row in rows}
        found = {row["prompt_id"]: row["rewards"] for row in rows}
        for judge in self.parts.judges:
            if any(judge not in found.get(group.prompt_key(), {}) for group in self.prompts):
                raise TruelineError(
                    f"{file} lacks samples of the opponent judged by '{judge}' for some evaluation prompts: judges or "
                    "prompts changed since this run began. Resume it with those it had, or start a new run."
                )
        self.opponent = found
        return found

    def _write_opponent(self, file: Path, drawn: list[Group]) -> None:
        file.unlink(missing_ok=True)
        with Journal(file) as journal:
            for group in drawn:
                texts = [r.text for r in group.responses]
                rewards = {j: [r.rewards.get(j) for r in group.responses] for j in self.parts.judges}
                journal.append({"prompt_id": group.prompt_key(), "texts": texts, "rewards": rewards})

    def _on_samples(self, step: int) -> tuple[list[Reading], list[dict[str, Any]]]:
        groups = self._draw(self.config.eval_samples, "policy")
        add_rewards(groups, self.scoring)
        keys = [g.prompt_key() for g in groups for _ in g.responses]
        lengths = [float(len(r.ids or ())) for g in groups for r in g.responses]
        found = [mean("length", lengths, "tokens", keys), *self._divergence(groups, keys)]
        opponent = self._fixed_opponent(step) if self.parts.judges else {}
        for judge in self.scoring:
            rewards = {g.prompt_key(): [r.rewards[judge] for r in g.responses] for g in groups}
            found += judged(judge, rewards, {k: opponent[k][judge] for k in rewards})
        for label, judge_of_two in self.comparing.items():
            found += compared(label, groups, duels(groups, self.opponent_texts, judge_of_two))
        found += attributes(groups)
        return found, [row for g in groups for row in sample_rows(g)]

    def _divergence(self, groups: list[Group], keys: list[str]) -> list[Reading]:
        """Exact per-prefix KL to the reference, summed over each sample, and the mean entropy a token."""
        if not self.parts.uses_reference:
            return []

        def sums(cut: list[int]) -> list[tuple[float, float]]:
            layout = Layout.of([groups[i] for i in cut]).to(self.parts.policy.device)
            kl_R, entropy_R = (
                values.new_zeros(layout.rows).index_add(0, layout.owner_N, values)
                for values in self.parts.policy.kl(layout)
            )
            return list(zip(kl_R.tolist(), (entropy_R / layout.length_R).tolist(), strict=True))

        kl, entropy = map(list, zip(*world().spread(groups, self.config.token_budget, sums), strict=True))
        return [measure("kl", kl, keys), mean("entropy", entropy, "nats/token", keys)]


def measure(name: str, *arguments: Any) -> Reading:
    """A reading of the `measure` family, by name."""
    return load("measure", name).call(*arguments)


def mean(name: str, values: Sequence[float], unit: str, clusters: Sequence[str]) -> Reading:
    """A plain mean with its bootstrap interval over prompts."""
    return Reading.of_mean(name, values, unit=unit, clusters=clusters)


def judged(
    judge: str, rewards: dict[str, list[float | None]], opponent: dict[str, list[float | None]]
) -> list[Reading]:
    """Mean reward and win rate against the opponent, over the prompts where the judge gave rewards."""
    own = {k: [x for x in v if x is not None] for k, v in rewards.items()}
    other = {k: [x for x in opponent[k] if x is not None] for k in rewards}
    prompts = [k for k in rewards if own[k] and other[k]]
    if not prompts:
        return []
    flat = [x for k in prompts for x in own[k]]
    clusters = [k for k in prompts for _ in own[k]]
    win = measure("win_rate", [own[k] for k in prompts], [other[k] for k in prompts])
    return [mean(f"reward/{judge}", flat, "reward", clusters), win.renamed(f"win_rate/{judge}")]


def compared(judge: str, groups: list[Group], tables: list[Table]) -> list[Reading]:
    """The win rate of a judge that compares, asked about every sample and every one of the opponent's texts.

    Each sample's reward under this judge becomes its own share of wins. Comparisons without a verdict are left out.
    """
    shares: list[tuple[str, float]] = []
    for group, table in zip(groups, tables, strict=True):
        for response, row in zip(group.responses, table, strict=True):
            known = [p for p in row if p is not None]
            response.rewards[judge] = sum(known) / len(known) if known else None
            shares += [(group.prompt_key(), p) for p in known]
    if not shares:
        return []
    clusters, values = map(list, zip(*shares, strict=True))
    return [Reading.of_mean(f"win_rate/{judge}", values, unit="share", clusters=clusters, bounds=(0.0, 1.0))]


def attributes(groups: list[Group]) -> list[Reading]:
    """Means of the numbers that a judge reported beside its reward."""
    rows = [(g.prompt_key(), r.attributes) for g in groups for r in g.responses]
    names = sorted({name for _, row in rows for name in row})
    found = []
    for name in names:
        present = [(k, float(row[name])) for k, row in rows if isinstance(row.get(name), (int, float))]
        if present:
            found.append(mean(f"attribute/{name}", [v for _, v in present], "", [k for k, _ in present]))
    return found


def sample_rows(group: Group) -> list[dict[str, Any]]:
    """Lines of samples.jsonl for one group."""
    return [
        {
            "prompt_id": group.prompt_key(),
            "prompt": prompt_text(group.prompt),
            "text": r.text,
            "rewards": r.rewards,
            "attributes": r.attributes,
            "length": len(r.ids or ()),
            "finish": r.finish,
        }
        for r in group.responses
    ]
