"""Everything a run needs before its first step: data read and encoded, the model and its reference, source, feedback.

`align.py` holds the loop; this file turns an `AlignConfig` into the parts the loop moves, and refuses what cannot
work before any time is spent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from trueline.cachefolder import cache_folder
from trueline.config import AlignConfig
from trueline.drawing import drawer
from trueline.encode import encode, length_summary, limits_of, overlap, split_by_prompt
from trueline.engine.comparison import output_head
from trueline.engine.parallel import world
from trueline.engine.policy import Policy, frozen_copy, starting_reference
from trueline.engine.step import WeightedObjective
from trueline.errors import TruelineError
from trueline.feedback._preferences import Table, mixed_preferences
from trueline.feedback._specification import every, weights
from trueline.feedback.contract import Feedback, FeedbackContext, Progress, judge_labels
from trueline.following import Together, together
from trueline.groupfile import chunks, like
from trueline.groups import Audit, Group
from trueline.judgments import put_judgments
from trueline.matching import match_prompts
from trueline.models import Loaded, load, load_frozen, vocabulary_hash
from trueline.pairing import JUDGMENTS, Plan, Rules, plan
from trueline.readers import read, read_on_disk, streams
from trueline.registry import load as load_method
from trueline.resampling import redraw_flat
from trueline.sources.contract import Source, SourceContext
from trueline.subjects import prepared
from trueline.teachers import Teacher, fill_teachers
from trueline.toolkit import Toolkit
from trueline.vocabulary import embedding_rows

ON_DISK_BYTES = 64 * 2**20  # of data files: beyond this their groups (some 40 times as much memory) are kept on disk


@dataclass
class Parts:
    """What the loop moves. steps: optimiser steps of the whole run; own_judges and judges: label
    to feedback, for training and for evaluation; feedback_progress: what the loop tells them of where it stands."""

    config: AlignConfig
    loaded: Loaded
    policy: Policy
    objectives: list[WeightedObjective]
    source: Source
    own_judges: dict[str, Feedback]
    judges: dict[str, Feedback]
    train: list[Group]
    held_out: list[Group]
    steps: int
    data_report: dict[str, Any]
    sample: Callable[..., list[Group]]
    teachers: list[Teacher] = field(default_factory=list)  # those that read text
    feedback_progress: Progress = field(default_factory=Progress)
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> set[str]:
        return {o.needs for o in self.objectives}

    @property
    def uses_reference(self) -> bool:
        return self.policy.reference_kind != "none"

    @property
    def starts_at_reference(self) -> bool:
        """Whether policy and reference give equal scores before the first step."""
        return self.uses_reference and self.config.reference is None and not self.config.dropout

    @property
    def head(self) -> str:
        return str(self.objectives[0].declares("head"))

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    def judge_fresh(self, groups: list[Group]) -> None:
        """Reward the freshly sampled groups among these, and let teachers score them."""
        if self.teachers:
            unscored = [g for g in groups if any(r.teacher_logp is None for r in g.responses)]
            together(lambda own: fill_teachers(own, self.teachers), unscored, split=not self.config.reference_cache)
        fresh = [g for g in groups if any(r.source != "data" and r.reward is None for r in g.responses)]
        if fresh and self.own_judges:
            add_rewards(fresh, self.own_judges, judge_weights(self.config))

    def redraw_flat(self, groups: list[Group], step: int) -> int | None:
        """Draw and judge flat groups again where that was asked for; how many were, or None."""
        config = self.config
        if config.zero_variance != "resample":
            return None
        chosen = config.method_options.get(f"sources.{config.source}", {})
        return redraw_flat(
            groups,
            self.sample,
            self.judge_fresh,
            law={name: chosen[name] for name in ("temperature", "top_p", "top_k")},
            attempts=config.zero_variance_attempts,
            seed=config.seed,
            step=step,
        )

    def plan(self, groups: list[Group]) -> Plan:
        """The items of these groups that the objectives can use."""
        return plan(groups, self.needs, self.rules)

    @property
    def rules(self) -> Rules:
        """How judged groups become what the objectives take."""
        return _rules(self.config, self.objectives)


def assemble(config: AlignConfig) -> Parts:
    """Build every part, or say why the run cannot work."""
    objectives = [
        WeightedObjective(load_method("objectives", name), config.method_options.get(f"objectives.{name}", {}), weight)
        for name, weight in config.objective.items()
    ]
    head = objectives[0].declares("head")  # one head for all: options.py refuses mixtures and illegal cells
    samples = bool(load_method("sources", config.source).declared["samples"])
    raw = _read(config, objectives)  # before the model: bad data should show at once
    loaded = load(
        config.model,
        head=head,
        offline=config.offline,
        seed=config.seed,
        add_tokens=config.add_tokens,
        eos_tokens=config.eos_tokens,
        chat_template=config.chat_template,
        members=max(int(o.options.get("members", 1)) for o in objectives),
        subject=objectives[0].declares("subject"),
    )
    train, held_out, report = _encode(config, loaded, raw, objectives)
    policy = _policy(config, loaded, head, objectives)
    draw = drawer(policy, loaded, limits_of(config))
    steps = config.steps or max(1, round(config.epochs * len(train) / config.batch_size))
    context = FeedbackContext(
        loaded.tokenizer,
        config.token_budget,
        config.precision,
        str(policy.device),
        config.offline,
        seed=config.seed,
        sample_reference=_reference_drawer(config, policy, draw),
        options=config.method_options,
        progress=Progress(max_steps=steps),
    )
    own_judges, judges = _judges(config, context)
    toolkit = Toolkit(config, policy, loaded, context)
    source_context = SourceContext(train, config.batch_size, config.seed, draw, toolkit)
    source = load_method("sources", config.source).call(
        source_context, **config.method_options.get(f"sources.{config.source}", {})
    )
    parts = Parts(config, loaded, policy, objectives, source, own_judges, judges, train, held_out, steps, report, draw)
    parts.feedback_progress = context.progress
    _refuse_unusable(parts, samples)
    teachers = _text_teachers(config, loaded, str(policy.device), objectives)
    if teachers:
        together(lambda own: fill_teachers(own, teachers), train + held_out, split=not config.reference_cache)
    parts.teachers = teachers if samples else []  # nothing else will need them
    if any(o.declares("update") for o in objectives):
        output_head(policy)  # refuses one that is not trained
    if not samples and config.feedback != ["data"]:
        _relabel(train, own_judges, judge_weights(config))
    if any(o.declares("prompt_odds") and o.reads("prompt_odds") for o in objectives):
        match_prompts(policy, train, held_out, parts.rules, token_budget=config.token_budget, seed=config.seed)
    parts.fingerprints = {"data": data_fingerprint(train + held_out), "model": policy_fingerprint(policy)}
    world().same("data or model", parts.fingerprints)
    return parts


def _rules(config: AlignConfig, objectives: list[WeightedObjective]) -> Rules:
    """How judged groups become what these objectives take."""
    return Rules(
        pairing=config.pairing,
        margin=config.pairing_margin,
        selector=config.selector,
        selector_value=config.selector_value,
        thumb_threshold=config.thumb_threshold,
        judged=all(o.declares("judged") for o in objectives),
        mismatched=any(o.reads("mismatched") for o in objectives),
        fits=config.max_length,
        seed=config.seed,
        zero_variance=config.zero_variance,
    )


Raw = tuple[Any, Audit]  # a list of groups or a GroupFile


def _read(config: AlignConfig, objectives: list[WeightedObjective]) -> tuple[Raw, Raw]:
    """Training and held-out groups as text, and what was dropped while reading."""
    if not config.data:
        raise TruelineError("No data were given. Use --data FILE (trueline check FILE shows what is in it).")
    on_disk = _large(config.data) and _may_stay_on_disk(config, objectives)
    groups, audit = read_on_disk(config.data) if on_disk else read(config.data, offline=config.offline)
    if config.eval_data:
        return (groups, audit), read(config.eval_data, offline=config.offline)
    if not config.eval_fraction:
        return (groups, audit), ([], Audit())
    groups, held_out = split_by_prompt(groups, config.eval_fraction, config.seed)
    return (groups, audit), (held_out, Audit(read=len(held_out)))


def _large(paths: list[str]) -> bool:
    """Whether these are local files of JSON lines that together take more than ON_DISK_BYTES."""
    if not (hasattr(os, "pread") and streams(paths)):
        return False
    return sum(Path(p).expanduser().stat().st_size for p in paths) > ON_DISK_BYTES


def _may_stay_on_disk(config: AlignConfig, objectives: list[WeightedObjective]) -> bool:
    """Whether nothing writes into the training groups, looks at all of them at once, or turns one into several."""
    filled = config.reference_cache or bool(config.teachers) or any(o.declares("prompt_odds") for o in objectives)
    relabelled = config.source == "data" and config.feedback != ["data"]
    plain = objectives[0].declares("subject") == "responses" and all(o.needs != JUDGMENTS for o in objectives)
    renders = bool(config.system_prompt or config.chat_template_kwargs)  # refused by what all of the rows are
    return config.source in ("data", "policy") and plain and not (filled or relabelled or renders)


def _encode(
    config: AlignConfig, loaded: Loaded, raw: tuple[Raw, Raw], objectives: list[WeightedObjective]
) -> tuple[list[Group], list[Group], dict[str, Any]]:
    """Both sets in the model's tokens; the report says what was dropped at which stage."""
    subject, rules = objectives[0].declares("subject"), _rules(config, objectives)

    def encoded(groups: Any, audit: Audit) -> Any:
        found = like(groups)
        for part in chunks(groups):
            found.extend(of_part(part, audit))
        return found

    def of_part(groups: list[Group], audit: Audit) -> list[Group]:
        kept, more = encode(
            prepared(groups, subject, rules, audit),
            loaded.tokenizer,
            limits_of(config),
            eos_ids=loaded.eos_ids,
            system_prompt=config.system_prompt,
            chat_template_kwargs=config.chat_template_kwargs,
            vocabulary=embedding_rows(loaded.model),
        )
        audit.absorb(more)
        if any(o.needs == JUDGMENTS for o in objectives):
            audit.absorb(
                put_judgments(
                    kept,
                    loaded.tokenizer,
                    template=config.judgment_template,
                    max_length=config.max_length,
                    eos_ids=loaded.eos_ids,
                    chat_template_kwargs=config.chat_template_kwargs,
                )
            )
        return kept

    (groups, audit), (held_raw, held_audit) = raw
    train, held_out = encoded(groups, audit), encoded(held_raw, held_audit)
    audit.kept, held_audit.kept = len(train), len(held_out)
    if not train:
        raise TruelineError(f"No usable group is left in {config.data}: {audit.read} read, dropped {audit.dropped}.")
    report = {
        "train": audit.to_json(),
        "eval": held_audit.to_json(),
        "lengths": length_summary(train),
        "overlap": overlap(train, held_out),
        "duplicates": audit.dropped.get("duplicate row", 0) + audit.noted.get("duplicate row", 0),
    }
    return train, held_out, report


def _policy(
    config: AlignConfig, loaded: Loaded, head: Literal["lm", "scalar"], objectives: list[WeightedObjective]
) -> Policy:
    """The model with its adapter, and its reference: the one named, else the model as it is at the start."""
    full = [o.divergence for o in objectives if o.divergence is not None]
    uses_reference = any(o.reads_reference for o in objectives) or any(d.reads_reference for d in full)
    uses_reference |= (config.eval_reference and head == "lm") or draws_reference(config)
    torch.manual_seed(config.seed)  # fresh adapter weights
    options = config.method_options.get(f"adapters.{config.adapter}", {})
    # Moved before the probe, which must see the device's own attention. Module.to: a 4-bit model refuses its own `to`.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Module.to(load_method("adapters", config.adapter).call(loaded.model, **options), device)
    reference: Any = "none"
    if uses_reference and config.reference:
        reference = load_frozen(config.reference, device, head=head, offline=config.offline).model
    elif uses_reference:
        moves = any(o.declares("moves_reference") for o in objectives)
        reference = frozen_copy(model) if moves else starting_reference(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(
        model,
        reference=reference,
        head=head,
        layout=config.layout,
        precision=config.precision,
        max_length=config.max_length,
        dropout=config.dropout,
        temperature=_temperature(config, objectives),
        teachers=_distribution_teachers(config, loaded, device) if any(d.reads_teachers for d in full) else (),
        critic=any(o.declares("critic") for o in objectives),
        masks=next((o.masks for o in objectives if o.masks), None),
    )
    if any(o.declares("moves_reference") for o in objectives):
        policy.move_reference(0.0)  # changes nothing, and refuses now what could not move later
    return policy.train()


def draws_reference(config: AlignConfig) -> bool:
    """Whether the run's source or one of its judges samples the reference."""
    declared = load_method("sources", config.source).declared["draws_reference"]
    chosen = config.method_options.get(f"sources.{config.source}", {})
    by_source = bool(chosen.get(declared) if isinstance(declared, str) else declared)
    judges = every([*config.feedback, *config.eval_feedback])
    return by_source or any(load_method("feedback", j.name).declared.get("draws_reference") for j in judges)


def _temperature(config: AlignConfig, objectives: list[WeightedObjective]) -> float:
    """Ratio objectives compare log-probs at the temperature of the draw; every other objective scores at 1."""
    if not any(o.declares("behaviour") for o in objectives):
        return 1.0
    if config.scoring_temperature is not None:
        return config.scoring_temperature
    return float(config.method_options.get(f"sources.{config.source}", {}).get("temperature", 1.0))


def _distribution_teachers(config: AlignConfig, loaded: Loaded, device: str) -> list[nn.Module]:
    """Teachers whose token distributions are compared with the policy's: their vocabulary must be the policy's own."""
    teachers = []
    for path in config.teachers:
        teacher = load_frozen(path, device, offline=config.offline)
        if vocabulary_hash(teacher.tokenizer) != vocabulary_hash(loaded.tokenizer):
            raise TruelineError(
                f"The teacher '{path}' has another vocabulary than '{config.model}': their token distributions cannot be "
                "compared. Use a teacher with the same tokenizer, or an objective that reads teachers as text (poft)."
            )
        teachers.append(teacher.model)
    return teachers


def _text_teachers(
    config: AlignConfig, loaded: Loaded, device: str, objectives: list[WeightedObjective]
) -> list[Teacher]:
    """Teachers that score text in their own tokens, for objectives that read no distribution of theirs."""
    full = [o.divergence is not None and o.divergence.reads_teachers for o in objectives]
    if all(f or not o.declares("teachers") for f, o in zip(full, objectives, strict=True)):
        return []
    cache = cache_folder() / "scores" if config.reference_cache else None
    common: dict[str, Any] = {
        "device": device,
        "precision": config.precision,
        "offline": config.offline,
        "cache": cache,
    }
    return [Teacher.open(path, loaded.tokenizer, **common) for path in config.teachers]


def _reference_drawer(
    config: AlignConfig, policy: Policy, draw: Callable[..., list[Group]]
) -> Callable[[list[Group], int, int], list[Group]] | None:
    """Samples of the reference at the training temperature, for judges that calibrate by them."""
    if policy.reference_kind == "none":
        return None
    temperature = config.method_options.get(f"sources.{config.source}", {}).get("temperature", 1.0)
    return lambda groups, samples, seed: draw(groups, samples, seed, temperature=temperature, reference_share=1.0)


def _judges(config: AlignConfig, context: FeedbackContext) -> tuple[dict[str, Feedback], dict[str, Feedback]]:
    """Feedback by label, for training (several are summed) and for evaluation; the same judge is loaded once.

    A judge has the same label in both, and two judges never share one: readings and alarms go by label.
    """
    built: dict[str, Feedback] = {}

    def judge(spec: str) -> Feedback:
        if spec not in built:
            opened = context.open(spec)
            built[spec] = Together(opened, spec) if world().size > 1 else opened
        return built[spec]

    labels = judge_labels([*config.feedback, *config.eval_feedback])

    def by_label(specs: list[str]) -> dict[str, Feedback]:
        chosen = weights(specs)
        return {label: judge(spec) for label, spec in labels.items() if spec in chosen and spec != "data"}

    return by_label(config.feedback), by_label(config.eval_feedback or config.feedback)


def judge_weights(config: AlignConfig) -> dict[str, float]:
    """Label to the weight of that judge in the training reward: 'reward:A::0.3' counts 0.3 of what it says."""
    chosen = weights(config.feedback)
    labels = judge_labels([*config.feedback, *config.eval_feedback])
    return {label: chosen[spec] for label, spec in labels.items() if spec in chosen}


def add_rewards(
    groups: list[Group], judges: dict[str, Feedback], weight: Mapping[str, float] = MappingProxyType({})
) -> None:
    """Fill `reward` with the weighted sum over judges and `rewards` with each one's own; None only where all say so.

    weight: by label, 1 where it has none. Preferences are those of the judge that compares; where several do, their
    weighted mean, and where their rewards are summed with others' the order is that of the sum.
    """
    rows = [r for g in groups for r in g.responses]
    totals: list[float | None] = [None] * len(rows)
    tables: list[tuple[float, list[Table | None]]] = []
    for label, judge in judges.items():
        for group in groups:
            group.preferences = None
        judge(groups)
        share = weight.get(label, 1.0)
        if any(g.preferences for g in groups):
            tables.append((share, [g.preferences for g in groups]))
        for i, response in enumerate(rows):
            response.rewards[label] = response.reward
            if response.reward is not None:
                totals[i] = (totals[i] or 0.0) + share * response.reward
    for response, total in zip(rows, totals, strict=True):
        response.reward = total
    for i, group in enumerate(groups):
        group.preferences = mixed_preferences([(w, t[i]) for w, t in tables]) if len(tables) == len(judges) else None


def _relabel(groups: list[Group], judges: dict[str, Feedback], weight: Mapping[str, float]) -> None:
    """Let the judges replace the labels that the training data came with; held-out labels stay as they were read."""
    for group in groups:
        for response in group.responses:
            response.rank, response.label, response.reward = None, None, None
    add_rewards(groups, judges, weight)


def _refuse_unusable(parts: Parts, samples: bool) -> None:
    """Combinations of data and objective that cannot give a single usable item."""
    if samples or parts.config.feedback != ["data"]:
        return
    if parts.config.pairing_margin and all(r.reward is None for g in parts.train for r in g.responses):
        raise TruelineError(
            "pairing_margin has no effect: the data have no rewards to differ. Leave it out, or give a judge (--feedback)."
        )
    ties = 0
    for part in chunks(parts.train):
        usable = parts.plan(part)
        if usable.items:
            return
        ties += usable.ties
    if ties:
        raise TruelineError(
            f"No pair of the data differs by more than pairing_margin {parts.config.pairing_margin:g}: all {ties} are "
            "ties. Lower pairing_margin, or let a judge score the responses (--feedback)."
        )
    widths = sorted({len(g.responses) for g in parts.train})
    raise TruelineError(
        f"The objective {'+'.join(parts.config.objective)} needs {' and '.join(sorted(parts.needs)).lower()}, and the data "
        f"have none: groups of {widths} responses. Demonstrations fit --objective sft; prompts need --source policy "
        "with --feedback, which makes responses and judges them."
    )


def data_fingerprint(groups: list[Group]) -> str:
    """Content hash of the encoded data: a resume on other data is noticed."""
    digest = hashlib.sha256()
    for g in groups:
        row: list[Any] = [
            g.prompt_ids,
            [[r.ids, r.mask, r.rank, r.reward, r.label, r.step_labels] for r in g.responses],
        ]
        row += [[r.judged_prompt_ids for r in g.responses]] if any(r.judged_prompt_ids for r in g.responses) else []
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:24]


def policy_fingerprint(policy: Policy) -> str:
    """Content hash of the starting weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]
