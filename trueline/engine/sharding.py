"""Weights, gradients and optimiser state spread over the ranks: torch's `fully_shard` (FSDP2) on a Policy.

Each decoder layer is a unit that gathers its weights for its own forward and backward pass; what is left (embeddings, norm,
head, critic) belongs to the policy, whose `forward` is the one way to a weight. Gradients are *summed* when they are
scattered: FSDP2 divides by the number of ranks unless told otherwise. Sampling gathers the model once and gives it back at
the end, since ranks decode different numbers of tokens and a collective a token would leave them waiting for each other.

A request that had no effect would be the worst of both: `shard` counts that every parameter is spread, and compares the
log-probs of a small batch before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from trueline.engine.layout import Layout
from trueline.engine.parallel import whole, world
from trueline.engine.policy import Policy
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.launch import Launch

TOLERANCE = 1e-5  # a matrix product on gathered weights is the same product: only their alignment may round differently
FORWARDS = ("kl", "head_states", "prompt_states")  # other methods of the policy that read weights


def shard(policy: Policy, launch: Launch) -> None:
    """Spread the policy (and a reference that is a model of its own) over the ranks, in place and before an optimiser
    is made. Raises TruelineError where a layer class was named that the model does not have, where a parameter would
    stay whole, or where scores change.
    """
    backbones = [b for b in (policy._backbone, policy._reference_backbone, *policy._teachers) if b is not None]
    _check_layers(backbones[0].decoder_layers(), launch.layers)
    _refuse_low_bits(policy)
    layout = _small_batch(policy)
    before = _scores(policy, layout)
    mesh = init_device_mesh(policy.device.type, (world().size,))
    for backbone in backbones:
        for layer in backbone.decoder_layers():
            fully_shard(layer, mesh=mesh, reshard_after_forward=launch.reshard)
    fully_shard(policy, mesh=mesh, reshard_after_forward=False)  # its backward begins where its forward ends
    for unit in _units(policy):
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)  # sums: a term is divided by its global count already
    for name in FORWARDS:
        register_fsdp_forward_method(policy, name)
    world().sharded, world().reshard = True, launch.reshard
    left = [name for name, p in policy.named_parameters() if not isinstance(p, DTensor)]
    if left:
        raise TruelineError(f"{len(left)} parameters were not spread over the ranks, the first is {left[0]}.")
    difference = float((_scores(policy, layout).double() - before.double()).abs().max())
    for unit in _units(policy):
        unit.reshard()
    if not difference <= TOLERANCE:
        raise TruelineError(f"Scores change by {difference:.2g} when weights are spread over the ranks (FSDP2).")


def _check_layers(layers: list[nn.Module], named: str | None) -> None:
    own = {type(layer).__name__ for layer in layers}
    if named and not own & set(named.split(",")):
        raise TruelineError(
            f"FSDP is to wrap {named}, and this model's layers are {', '.join(sorted(own))}. Give "
            f"--fsdp_transformer_layer_cls_to_wrap {min(own)}, or leave it out."
        )


def _refuse_low_bits(policy: Policy) -> None:
    packed = [n for n, p in policy.named_parameters() if not p.is_floating_point()]
    if packed:
        raise TruelineError(
            f"{len(packed)} parameters are quantised (first: {packed[0]}) and cannot be spread over processes. Use adapter "
            "lora, or leave shard out: 4-bit weights are small."
        )


def _small_batch(policy: Policy) -> Layout:
    rows = [Response(ids=[5, 6, 7], mask=[True] * 3), Response(ids=[7, 5], mask=[True] * 2)]
    return Layout.of([Group("", rows, prompt_ids=[4, 5, 6])]).to(policy.device)


@torch.no_grad()
def _scores(policy: Policy, layout: Layout) -> Tensor:
    """Of the policy and of its reference. The first pass also tells FSDP2 which unit is the outermost."""
    passes = [policy(layout)] + ([policy(layout, reference=True)] if policy.reference_kind != "none" else [])
    return torch.cat([found for s in passes for found in (s.logp_N, s.value_R) if found is not None])


def _units(policy: nn.Module) -> list[FSDPModule]:
    return [m for m in policy.modules() if isinstance(m, FSDPModule)]


@contextmanager
def gathered(policy: Policy) -> Iterator[None]:
    """Whole weights on every rank for a block without collectives; on unsharded policies nothing happens."""
    units = _units(policy)
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(world().reshard and unit is not policy, recurse=False)
            unit.reshard()


def whole_on_first(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of every tensor on the first rank, tied ones still tied; empty on the other ranks. What is spread is gathered
    tensor by tensor, to the first rank's CPU."""
    if not world().sharded:
        return dict(named) if world().first else {}
    found: dict[int, Tensor] = {}
    first = world().first
    for tensor in named.values():
        if id(tensor) not in found:
            full = whole(tensor.detach())
            found[id(tensor)] = full.cpu() if first else full.new_empty(0)
    return {name: found[id(tensor)] for name, tensor in named.items()} if first else {}


def like(parameter: Tensor | None, value: Tensor) -> Tensor:
    """A whole tensor cut as the parameter is: what each rank keeps of it."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


@contextmanager
def assembled(policy: Policy) -> Iterator[None]:
    """The policy with whole weights on the first rank's CPU, to be saved there; other ranks take part in the gathering."""
    for unit in _units(policy):
        unit.reshard()  # the outermost one keeps whole weights after a pass without gradient
    places: list[tuple[nn.Module, str, Any]] = [
        (m, n, p) for m in policy.modules() for n, p in m._parameters.items() if isinstance(p, DTensor)
    ]
    held = whole_on_first({str(i): p for i, (_, _, p) in enumerate(places)})
    made: dict[int, nn.Parameter] = {}
    for i, (module, name, parameter) in enumerate(places if held else ()):
        full = made.setdefault(id(parameter), nn.Parameter(held[str(i)], parameter.requires_grad))
        module._parameters[name] = full
    try:
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def bytes_on_this_rank(named: Mapping[str, Any]) -> int:
    """Memory of these parameters on this rank."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in named.values())
