"""One optimiser step's arithmetic: score in micro-batches, reduce by global counts, accumulate the gradient.

Any cut of the same items into micro-batches gives the same gradient: each loss term is divided by the count of its
unit over the whole step, which is known before scoring because an objective's term sizes depend on the groups and
not on the scores. Objectives that couple rows take the exact two-pass route instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trueline.engine.layout import Layout, micro_batches
from trueline.engine.policy import Policy
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.objectives.contract import DEMONSTRATIONS, PAIRS, Demonstrations, Loss, Pairs, Scored
from trueline.pairing import Item
from trueline.randomness import derive
from trueline.registry import Method


@dataclass(frozen=True)
class WeightedObjective:
    """An objective with its options bound and its weight in the sum."""

    method: Method
    options: dict[str, Any]
    weight: float = 1.0

    def __call__(self, views: dict[str, Any]) -> Loss:
        return self.weight * self.method.call(views[self.method.declared["needs"]], **self.options)


def total_loss(objectives: Sequence[WeightedObjective], items: list[Item], scored: Scored) -> Loss:
    """The weighted sum of all objectives on these scored items."""
    views = _views(items, scored)
    losses = [o(views) for o in objectives]
    return sum(losses[1:], losses[0])


def _views(items: list[Item], scored: Scored) -> dict[str, Any]:
    chosen, rejected, shown, first = [], [], [], 0
    for item in items:
        chosen += [first + w for w, _ in item.pairs]
        rejected += [first + r for _, r in item.pairs]
        shown += [first + i for i in item.demonstrations]
        first += len(item.group.responses)
    return {
        PAIRS: Pairs(scored.rows(chosen), scored.rows(rejected)),
        DEMONSTRATIONS: Demonstrations(scored.rows(shown)),
    }


def score(policy: Policy, items: list[Item], *, reference: bool, gradient: bool) -> Scored:
    """Score one micro-batch. The reference comes from the cache where every response has it, else from the policy."""
    groups = [item.group for item in items]
    layout = Layout.of(groups).to(policy.device)
    with torch.set_grad_enabled(gradient):
        own = policy(layout)
    reference_N = None
    if reference:
        cached = [r.reference_logp for g in groups for r in g.responses]
        if all(c is not None for c in cached):
            flat = [x for c in cached for x in c or ()]
            reference_N = torch.tensor(flat, dtype=own.logp_N.dtype, device=policy.device)
        else:
            with torch.no_grad():
                reference_N = policy(layout, reference=True).logp_N
    return Scored(groups, layout.owner_N, layout.length_R, own.logp_N, reference_N, own.value_R)


def global_counts(objectives: Sequence[WeightedObjective], items: list[Item]) -> list[float]:
    """The divisor of every loss term over the whole step, from a pass of the objectives over zeros."""
    responses = [r for item in items for r in item.group.responses]
    length_R = torch.tensor([sum(r.mask or ()) for r in responses])
    owner_N = torch.repeat_interleave(torch.arange(len(responses)), length_R)
    zeros_N, zeros_R = torch.zeros(len(owner_N)), torch.zeros(len(responses))
    groups = [item.group for item in items]
    return total_loss(objectives, items, Scored(groups, owner_N, length_R, zeros_N, zeros_N, zeros_R)).counts()


def loss_at_reference(objectives: Sequence[WeightedObjective]) -> float | None:
    """The loss of a policy that equals its reference, or None where it depends on the responses (length, score, NLL)."""
    if not all(o.method.declared["reference"] and o.method.declared["needs"] == PAIRS for o in objectives):
        return None
    values = []
    for chosen, rejected, rewards in (([-1.0], [-1.0], (1.0, 0.0)), ([-1.0, -2.0, -0.5], [-3.0, -1.0], (5.0, 1.0))):
        responses = [Response(mask=[True] * len(s), reward=r) for s, r in zip((chosen, rejected), rewards, strict=True)]
        length_R = torch.tensor([len(chosen), len(rejected)])
        owner_N = torch.repeat_interleave(torch.arange(2), length_R)
        logp_N = torch.tensor(chosen + rejected)
        group = Group("", responses)
        loss = total_loss(objectives, [Item(group, pairs=[(0, 1)])], Scored([group], owner_N, length_R, logp_N, logp_N))
        values.append(float(loss.reduce(loss.counts())))
    return values[0] if abs(values[0] - values[1]) <= 1e-5 * max(abs(values[0]), 1.0) else None


@dataclass
class StepResult:
    """What a step's forward passes found. statistics: per-pair or per-row detached values, by name."""

    loss: float = 0.0
    tokens: int = 0
    statistics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        self.statistics.setdefault(name, []).extend(values.detach().flatten().tolist())

    def means(self) -> dict[str, float]:
        return {name: sum(v) / len(v) for name, v in self.statistics.items() if v}


def accumulate(
    policy: Policy,
    items: list[Item],
    objectives: Sequence[WeightedObjective],
    *,
    token_budget: int,
    gradient: bool = True,
) -> StepResult:
    """Add the gradient of the whole step's loss to the parameters' `.grad` and return the loss and statistics.

    gradient=False only evaluates. Raises TruelineError where no item is given.
    """
    if not items:
        raise TruelineError("This step has no usable group: every group was a tie or had no judged response.")
    reference = any(o.method.declared["reference"] for o in objectives)
    cuts = micro_batches([item.group for item in items], token_budget)
    parts = [[items[i] for i in cut] for cut in cuts]
    run = partial(score, policy, reference=reference)
    result = StepResult()
    if any(o.method.declared["couples_rows"] for o in objectives):
        _two_passes(parts, objectives, run, result, gradient)
        return result
    counts = global_counts(objectives, items)
    for part in parts:
        scored = run(part, gradient=gradient)
        whole = total_loss(objectives, part, scored)
        loss = whole.reduce(counts)
        if gradient and loss.requires_grad:
            loss.backward()
        _note(result, part, scored, float(loss.detach()))
        if len(whole.terms) == 1 and whole.terms[0].unit == "pair":
            result.add("loss/pair", whole.terms[0].weight * whole.terms[0].values)
    return result


def _two_passes(
    parts: list[list[Item]], objectives: Sequence[WeightedObjective], run: Any, result: StepResult, gradient: bool
) -> None:
    """Exact gradient of a row-coupled loss: score all, differentiate by the scores, re-forward with those weights.

    Both passes over a micro-batch draw the same dropout, or the weights would belong to other scores.
    """
    seed = torch.initial_seed()

    def scored_part(number: int, *, gradient: bool) -> Scored:
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "micro-batch", number))
            return run(parts[number], gradient=gradient)

    scored = [scored_part(i, gradient=False) for i in range(len(parts))]
    items = [item for part in parts for item in part]
    whole, leaves = _join(scored)
    loss = total_loss(objectives, items, whole)
    value = loss.reduce(loss.counts())
    for part, s in zip(parts, scored, strict=True):
        _note(result, part, s, 0.0)
    result.loss = float(value.detach())
    if not gradient:
        return
    weights = torch.autograd.grad(value, leaves, allow_unused=True)
    starts = [0] * len(leaves)
    for number in range(len(parts)):
        again = scored_part(number, gradient=True)
        outputs = [x for x in (again.logp_N, again.value_R) if x is not None]
        surrogate = torch.zeros((), dtype=outputs[0].dtype, device=outputs[0].device)
        for i, (output, weight) in enumerate(zip(outputs, weights, strict=True)):
            end = starts[i] + len(output)
            if weight is not None:
                surrogate = surrogate + (output * weight[starts[i] : end]).sum()
            starts[i] = end
        surrogate.backward()


def _join(scored: list[Scored]) -> tuple[Scored, list[Tensor]]:
    """Micro-batches laid end to end with detached scores as leaves."""

    def joined(name: str) -> Tensor | None:
        parts = [getattr(s, name) for s in scored]
        return None if parts[0] is None else torch.cat(parts)

    rows, owners = 0, []
    for s in scored:
        owners.append(s.owner_N + rows)
        rows += len(s.length_R)
    logp_N, value_R = joined("logp_N"), joined("value_R")
    leaves = [x.requires_grad_(True) for x in (logp_N, value_R) if x is not None]
    groups = [g for s in scored for g in s.groups]
    length_R = torch.cat([s.length_R for s in scored])
    whole = Scored(groups, torch.cat(owners), length_R, logp_N, joined("reference_N"), value_R)
    return whole, leaves


def _note(result: StepResult, part: list[Item], scored: Scored, loss: float) -> None:
    """Collect the statistics every run logs, per pair or per demonstration."""
    result.loss += loss
    result.tokens += sum(item.group.tokens() for item in part)
    views = _views(part, scored)
    pairs, shown = views[PAIRS], views[DEMONSTRATIONS]
    with torch.no_grad():
        for side, rows in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            if len(rows.index) == 0:
                continue
            result.add(f"length/{side}", rows.length)
            if scored.logp_N is not None:
                result.add(f"logps/{side}", rows.logp)
                result.add(f"mean_logps/{side}", rows.mean_logp)
            if scored.reference_N is not None:
                result.add(f"log_ratio/{side}", rows.log_ratio)
            if scored.value_R is not None:
                result.add(f"value/{side}", rows.value)
        if len(shown.responses.index) and scored.logp_N is not None:
            result.add("logps/demonstrations", shown.responses.logp)
            result.add("length/demonstrations", shown.responses.length)
