"""One optimiser step's arithmetic: score in micro-batches, reduce by global counts, accumulate the gradient.

Any cut of the same items into micro-batches gives the same gradient: each loss term is divided by the count of its
unit over the whole step, which is known before scoring because an objective's term sizes depend on the groups and
not on the scores. Objectives that couple rows take the exact two-pass route instead. Over several processes the cut is
one more: every rank has all items, scores its share of them, and the gradients are summed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trueline.engine.distribution import Divergence
from trueline.engine.layout import Layout
from trueline.engine.parallel import world
from trueline.engine.policy import Policy
from trueline.engine.views import scored_groups, view
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.objectives.contract import (
    DEMONSTRATIONS,
    DISTILLATION,
    EXPLORATION,
    GROUPS,
    JUDGMENTS,
    PAIRS,
    PREFERENCES,
    THUMBS,
    Loss,
    Scored,
)
from trueline.pairing import Item
from trueline.randomness import derive, permutation
from trueline.registry import Method


@dataclass(frozen=True)
class WeightedObjective:
    """An objective with its options bound and its weight in the sum. state: what it keeps from step to step."""

    method: Method
    options: dict[str, Any]
    weight: float = 1.0
    state: dict[str, Any] = field(default_factory=dict, compare=False)

    def declares(self, name: str) -> Any:
        return self.method.declared.get(name)

    @property
    def needs(self) -> str:
        return str(self.method.declared["needs"])

    def reads(self, what: str) -> bool:
        """Whether it reads this; a declaration that names an option means: where that option is not 0."""
        declared = self.method.declared[what]
        return bool(self.options[declared]) if isinstance(declared, str) else bool(declared)

    @property
    def reads_reference(self) -> bool:
        return self.reads("reference")

    @property
    def divergence(self) -> Divergence | None:
        name = self.declares("divergence")
        if name is None:
            return None
        gradient = bool(self.declares("divergence_gradient"))
        return Divergence.bound(name, self.declares("against"), self.options, gradient=gradient)

    @property
    def masks(self) -> str | None:
        """How its tokens are masked, where it masks them."""
        declared = self.declares("masks")
        return None if declared is None else str(self.options[declared])

    def loss(self, items: list[Item], scored: Scored, *, keep_state: bool = False) -> Loss:
        """Its weighted loss on these items. keep_state: let it change its state (once a training step)."""
        if self.method.name in scored.divergences:
            scored = replace(scored, divergence_N=scored.divergences[self.method.name])
        state = self.state if keep_state else copy.deepcopy(self.state)
        seen = view(self.needs, items, scored, state, training=keep_state)
        return self.weight * self.method.call(seen, **self.options)


def total_loss(
    objectives: Sequence[WeightedObjective], items: list[Item], scored: Scored, *, keep_state: bool = False
) -> Loss:
    """The weighted sum of all objectives on these scored items; the empty sum is 0."""
    losses = [o.loss(items, scored, keep_state=keep_state) for o in objectives]
    return sum(losses, Loss(terms=[]))


def score(
    policy: Policy,
    items: list[Item],
    objectives: Sequence[WeightedObjective] = (),
    *,
    gradient: bool,
    reference: bool | None = None,
) -> Scored:
    """Score one micro-batch with all that the objectives declare (reference: also where none of them reads it).

    The reference comes from the cache where every response has it, else from the policy.
    """
    groups = scored_groups(items)
    layout = Layout.of(groups).to(policy.device)
    responses = [r for g in groups for r in g.responses]
    critic = any(o.declares("critic") for o in objectives)
    with torch.set_grad_enabled(gradient):
        named = {o.method.name: o.divergence for o in objectives}
        divergences = {name: d for name, d in named.items() if d is not None}
        masks = next((o.masks for o in objectives if o.masks), None)
        own = policy(layout, divergences=divergences, critic=critic, masks=masks)
    if reference is None:
        reference = any(o.reads_reference for o in objectives)
    reference_N = None
    if reference and all(r.reference_logp is not None for r in responses):
        reference_N = _flat([r.reference_logp for r in responses], own.logp_N, policy)
    elif reference:
        reference_N = policy.reference_logp(layout, own)
    scored = Scored(groups, layout.owner_N, layout.length_R, own.logp_N, reference_N, own.value_R)
    scored.divergences, scored.value_N, scored.masks_N = own.divergences, own.value_N, own.masks_N
    scored.value_K = own.value_K
    drawn = {o.needs for o in objectives if o.declares("behaviour")}
    if drawn:
        _read_behaviour(scored, items, policy, drawn)
    if critic and all(r.values is not None for r in responses):
        scored.fresh_value_N = _flat([r.values for r in responses], own.logp_N, policy)
    return scored


def _flat(rows: list[list[float] | None], like: Tensor | None, policy: Policy) -> Tensor:
    dtype = torch.get_default_dtype() if like is None else like.dtype
    return torch.tensor([x for row in rows for x in row or ()], dtype=dtype, device=policy.device)


def _read_behaviour(scored: Scored, items: list[Item], policy: Policy, needs: set[str]) -> None:
    """Log-probs under the law of the draw, for views of these names: members of groups, the first of two compared.

    Rows that no such view holds get zeros; one of them without log-probs is an error.
    """
    compared = PREFERENCES in needs
    members = {id(item.group.responses[i]) for item in items for i in item.members}
    members |= {id(item.group.responses[a]) for item in items if compared for a, _, _ in item.preferences}
    old: list[list[float] | None] = []
    drawn: list[list[float] | None] = []
    for response, origin in zip(scored.responses, scored.origins, strict=True):
        mask = response.mask or []
        if response.full_logp is None or response.behaviour_logp is None:
            if id(response) in members:
                raise TruelineError(
                    f"A response of {origin!r} has no behaviour log-probs: it was not sampled, or not recorded with them. "
                    "Use --source policy, or --source replay on a recorded stream."
                )
            old.append([0.0] * sum(mask))
            drawn.append([0.0] * sum(mask))
            continue
        if response.temperature is not None and abs(response.temperature - policy.temperature) > 1e-9:
            raise TruelineError(
                f"A response of {origin!r} was sampled at temperature {response.temperature:g} and is scored at "
                f"{policy.temperature:g}: their ratio would mean nothing. Give --scoring-temperature {response.temperature:g}."
            )
        old.append([x for x, counts in zip(response.full_logp, mask, strict=True) if counts])
        drawn.append([x for x, counts in zip(response.behaviour_logp, mask, strict=True) if counts])
    scored.old_N, scored.behaviour_N = _flat(old, scored.logp_N, policy), _flat(drawn, scored.logp_N, policy)


def global_counts(objectives: Sequence[WeightedObjective], items: list[Item], *, heads: int = 1) -> list[float]:
    """The divisor of every loss term over the whole step, from a pass of the objectives over zeros.

    heads: numbers a response that a scalar head gives.
    """
    groups = scored_groups(items)
    length_R = torch.tensor([sum(r.mask or ()) for g in groups for r in g.responses])
    owner_N = torch.repeat_interleave(torch.arange(len(length_R)), length_R)
    zeros_N = torch.zeros(len(owner_N))
    zeros_R = torch.zeros(len(length_R)) if heads == 1 else torch.zeros(len(length_R), heads)
    blank = Scored(groups, owner_N, length_R, zeros_N, zeros_N, zeros_R, zeros_N, zeros_N)
    blank.divergences = {o.method.name: zeros_N for o in objectives if o.divergence is not None}
    blank.value_N = blank.fresh_value_N = zeros_N
    blank.masks_N = torch.zeros(len(owner_N), 2)
    blank.value_K = torch.zeros(sum(len(r.marks or ()) for g in groups for r in g.responses))
    return total_loss(objectives, items, blank).counts()


def loss_at_reference(objectives: Sequence[WeightedObjective]) -> float | None:
    """The loss of a policy that equals its reference, or None where it depends on the responses (length, score, NLL)."""
    more = any(o.divergence or o.declares("update") for o in objectives)
    if more or not all(o.reads_reference and o.needs == PAIRS for o in objectives):
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

    def take(self, loss: Loss) -> None:
        """The objectives' own metrics, and the loss of every pair or group where it is nothing but that."""
        for name, values in loss.metrics.items():
            self.add(name, values)
        if len(loss.terms) == 1 and loss.terms[0].unit in ("pair", "group"):
            self.add(f"loss/{loss.terms[0].unit}", loss.terms[0].weight * loss.terms[0].values)

    @classmethod
    def mean(cls, results: Sequence[StepResult]) -> StepResult:
        """Several updates of one step as one: mean loss, all statistics, all tokens."""
        whole = cls(sum(r.loss for r in results) / len(results), sum(r.tokens for r in results))
        for result in results:
            for name, values in result.statistics.items():
                whole.statistics.setdefault(name, []).extend(values)
        return whole

    @classmethod
    def joined(cls, results: Sequence[StepResult]) -> StepResult:
        """The shares of several ranks as one: losses and tokens are sums, statistics in the order of the ranks."""
        whole = cls(sum(r.loss for r in results), sum(r.tokens for r in results))
        for result in results:
            for name, values in result.statistics.items():
                whole.statistics.setdefault(name, []).extend(values)
        return whole

    def means(self) -> dict[str, float]:
        return {name: sum(v) / len(v) for name, v in self.statistics.items() if v}


def minibatches(items: list[Item], count: int, seed: int, step: int, update: int) -> list[list[Item]]:
    """The items of a step in `count` shares of nearly equal size, in an order drawn anew for every pass."""
    if count == 1:
        return [items]
    order = permutation(len(items), seed, "minibatch", step, update)
    shares = [[items[i] for i in order[first::count]] for first in range(count)]
    return [share for share in shares if share]


@torch.no_grad()
def note_values(
    policy: Policy, items: list[Item], objectives: Sequence[WeightedObjective], *, token_budget: int
) -> None:
    """Keep the critic's estimates of a fresh batch on its responses: advantages stand on them during all its updates."""

    def estimates(cut: list[int]) -> list[list[list[float]]]:
        part = [items[i] for i in cut]
        scored = score(policy, part, objectives, gradient=False, reference=False)
        assert scored.value_N is not None
        rows = iter(scored.value_N.split(scored.length_R.tolist()))
        return [[next(rows).tolist() for g in item.groups for _ in g.responses] for item in part]

    for item, found in zip(items, world().spread(items, token_budget, estimates), strict=True):
        for response, values in zip((r for g in item.groups for r in g.responses), found, strict=True):
            response.values = values


def accumulate(
    policy: Policy,
    items: list[Item],
    objectives: Sequence[WeightedObjective],
    *,
    token_budget: int,
    gradient: bool = True,
    reference: bool | None = None,
) -> StepResult:
    """Add the gradient of the whole step's loss to the parameters' `.grad` and return the loss and statistics.

    gradient=False only evaluates, and changes no objective's state. reference: score it also where no objective reads
    it. Raises TruelineError where no item is given.
    """
    if not items:
        raise TruelineError("This step has no usable group: every group was a tie or had no judged response.")
    run = partial(score, policy, objectives=objectives, reference=reference)
    cuts = world().cuts(items, token_budget)
    parts = [[[items[i] for i in cut] for cut in of_rank] for of_rank in cuts]
    idle = [items[:1]] * world().idle(cuts)
    result = StepResult()
    if any(o.declares("couples_rows") for o in objectives):
        _two_passes(parts, idle, objectives, run, result, gradient, policy.device)
    else:
        counts = global_counts(objectives, items, heads=policy.heads)
        _one_pass(parts[world().rank], idle, counts, objectives, run, result, gradient)
        result = StepResult.joined(world().gather(result))
    if gradient:
        world().sum_gradients(policy.trained_parameters().values())
    return result


def _one_pass(
    parts: list[list[Item]],
    idle: list[list[Item]],
    counts: list[float],
    objectives: Sequence[WeightedObjective],
    run: Any,
    result: StepResult,
    gradient: bool,
) -> None:
    """This rank's micro-batches, each with its share of the loss. counts: the divisors over all ranks."""
    for part in parts:
        scored = run(part, gradient=gradient)
        whole = total_loss(objectives, part, scored, keep_state=gradient)
        loss = whole.reduce(counts)
        if gradient:
            _backward(loss, scored)
        _note(result, part, scored, float(loss.detach()))
        result.take(whole)
    for part in idle:
        scored = run(part, gradient=gradient)
        if gradient:
            _backward(None, scored)


def _backward(loss: Tensor | None, scored: Scored) -> None:
    """The loss's backward pass; under sharded weights also one that nothing depends on, for the ranks that wait for it."""
    if world().sharded:
        nothing = torch.stack([output.sum() for output in _outputs(scored).values()]).sum() * 0.0
        loss = nothing if loss is None else loss + nothing
    if loss is not None and loss.requires_grad:
        loss.backward()


def _two_passes(
    parts: list[list[list[Item]]],
    idle: list[list[Item]],
    objectives: Sequence[WeightedObjective],
    run: Any,
    result: StepResult,
    gradient: bool,
    device: torch.device,
) -> None:
    """Exact gradient of a row-coupled loss: score all, differentiate by the scores, re-forward with those weights.

    parts: the micro-batches of every rank, idle: passes for company. The scores of all ranks are gathered, so that each
    computes the loss of the whole batch and keeps the weights of its own rows. Both passes over a micro-batch draw the same
    dropout, or the weights would belong to other scores. A micro-batch that the loss does not depend on (mismatched rows,
    say) is not scored again.
    """
    seed = torch.initial_seed()
    mine = parts[world().rank]

    def scored_part(part: list[Item], number: int, *, gradient: bool) -> Scored:
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "micro-batch", number))
            return run(part, gradient=gradient)

    own = [scored_part(part, i, gradient=False) for i, part in enumerate(mine)]
    for part in idle:
        scored_part(part, 0, gradient=False)
    scored, flat = _gathered(own, parts, device), [part for of_rank in parts for part in of_rank]
    whole, leaves = _join(scored)
    loss = total_loss(objectives, [item for part in flat for item in part], whole, keep_state=gradient)
    value = loss.reduce(loss.counts())
    for part, s in zip(flat, scored, strict=True):
        _note(result, part, s, 0.0)
    result.take(loss)
    result.loss = float(value.detach())
    if not (gradient and value.requires_grad):
        return
    weights = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True))
    starts = dict.fromkeys(leaves, 0)
    first = sum(map(len, parts[: world().rank]))
    for number, first_pass in enumerate(scored):
        used = {}
        for name, output in _outputs(first_pass).items():
            weight, start = weights[name], starts[name]
            starts[name] = start + len(output)
            if weight is not None and bool(weight[start : starts[name]].any()):
                used[name] = weight[start : starts[name]]
        if first <= number < first + len(mine) and (used or world().sharded):
            again = scored_part(flat[number], number - first, gradient=True)
            outputs = _outputs(again)
            terms = [(outputs[name] * weight).sum() for name, weight in used.items()]
            _backward(torch.stack(terms).sum() if terms else None, again)
    for part in idle:
        _backward(None, scored_part(part, 0, gradient=True))


def _gathered(own: list[Scored], parts: list[list[list[Item]]], device: torch.device) -> list[Scored]:
    """The scores of every rank's micro-batches in order. Groups do not travel: every rank has them all."""
    if world().size == 1:
        return own
    all_ranks = world().gather([_moved(s, torch.device("cpu"), []) for s in own])
    return [
        _moved(s, device, scored_groups(part))
        for theirs, of_rank in zip(all_ranks, parts, strict=True)
        for s, part in zip(theirs, of_rank, strict=True)
    ]


def _moved(scored: Scored, device: torch.device, groups: list[Group]) -> Scored:
    held = {f.name: getattr(scored, f.name) for f in fields(scored)}
    tensors = {name: x.to(device) for name, x in held.items() if isinstance(x, Tensor)}
    divergences = {name: x.to(device) for name, x in scored.divergences.items()}
    return replace(scored, groups=groups, divergences=divergences, **tensors)


def _outputs(scored: Scored) -> dict[str, Tensor]:
    """The scores that carry a gradient, by name."""
    single = {name: getattr(scored, name) for name in ("logp_N", "value_R", "value_K", "value_N", "masks_N")}
    return {**{n: x for n, x in single.items() if x is not None}, **scored.divergences}


def _join(scored: list[Scored]) -> tuple[Scored, dict[str, Tensor]]:
    """Micro-batches laid end to end with detached scores as leaves."""

    def joined(name: str) -> Tensor | None:
        parts = [getattr(s, name) for s in scored]
        return None if any(p is None for p in parts) else torch.cat(parts)

    rows, owners = 0, []
    for s in scored:
        owners.append(s.owner_N + rows)
        rows += len(s.length_R)
    groups = [g for s in scored for g in s.groups]
    whole = Scored(groups, torch.cat(owners), torch.cat([s.length_R for s in scored]))
    for name in (
        "logp_N",
        "value_R",
        "value_K",
        "value_N",
        "masks_N",
        "reference_N",
        "old_N",
        "behaviour_N",
        "fresh_value_N",
    ):
        setattr(whole, name, joined(name))
    whole.divergences = {name: torch.cat([s.divergences[name] for s in scored]) for name in scored[0].divergences}
    leaves = {name: x.requires_grad_(True) for name, x in _outputs(whole).items()}
    return whole, leaves


def _note(result: StepResult, part: list[Item], scored: Scored, loss: float) -> None:
    """Collect the statistics every run logs, per row of each view that the items hold."""
    result.loss += loss
    result.tokens += sum(item.tokens() for item in part)
    pairs, thumbs = view(PAIRS, part, scored), view(THUMBS, part, scored)
    explored = view(EXPLORATION, part, scored)
    if not len(pairs.chosen):  # other comparisons have a better and a worse side as well
        pairs = explored if len(explored.chosen) else view(PREFERENCES, part, scored).decided()
    shown, members = view(DEMONSTRATIONS, part, scored).responses, view(GROUPS, part, scored).rows
    sides = {"chosen": pairs.chosen, "rejected": pairs.rejected, "up": thumbs.up, "down": thumbs.down}
    taught, words = view(DISTILLATION, part, scored), view(JUDGMENTS, part, scored)
    sides |= {
        "earlier": explored.earlier,
        "written": taught.written,
        "student": taught.sampled,
        "judged": words.judged,
        "praised": words.praised,
    }
    with torch.no_grad():
        for side, rows in {**sides, "demonstrations": shown, "group": members}.items():
            if len(rows) == 0:
                continue
            result.add(f"length/{side}", rows.length)
            if scored.logp_N is not None:
                result.add(f"logps/{side}", rows.logp)
                if side in ("chosen", "rejected"):
                    result.add(f"mean_logps/{side}", rows.mean_logp)
            if scored.reference_N is not None and side != "demonstrations":
                result.add(f"log_ratio/{side}", rows.log_ratio)
            if scored.value_R is not None:
                result.add(f"value/{side}", rows.member_values.mean(1))
