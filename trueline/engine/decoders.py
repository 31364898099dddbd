"""Three ways to decode a model, and the trial that decides which one may be used.

    group cache   prompts once for all their rows, in our attention (`decode_cache.py`): `prefill` and `step`
    OwnCache      the cache the model brings, whatever it holds: recurrent, hybrid and padded-mode models
    Recompute     no cache at all: the whole row again for every token

No model is trusted by name. Before its first use a cache decodes a few tokens of a trial, and the log-probs are
compared with calls on whole rows; where they disagree the next way is taken, and the number is printed.
"""

from __future__ import annotations

import math
import sys
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.engine.decode_cache import GroupCache
from trueline.engine.precision import products
from trueline.errors import TruelineError

AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3}  # log-prob, decoding against whole rows; rounding is 1e-5
AGREEMENT_HALF = 0.25  # bf16 and fp16
TRIAL = 12  # tokens of a trial row

# -- the group cache ---------------------------------------------------------------------------------------------------


def prefill(model: nn.Module, cache: GroupCache, prompts: dict[int, list[int]]) -> dict[int, Tensor]:
    """Run these prompts end to end and store their keys and values; returns each one's next-token logits [V]."""
    if not prompts:
        return {}
    ids, positions, last = cache.begin_prefill(prompts)
    out = model(input_ids=ids, position_ids=positions, use_cache=False, decode=cache, logits_to_keep=last)
    layers = config_of(model).num_hidden_layers
    if cache.layers() != layers:  # a layer that attends elsewhere would decode without its past
        raise TruelineError(
            f"The attention of {cache.layers()} layers reached the decode cache; the model has {layers}. "
            "Build the policy with layout='padded'."
        )
    return {number: row.clone() for number, row in zip(prompts, out.logits[0], strict=True)}


def step(model: nn.Module, cache: GroupCache, prompts: list[int], own: list[list[int]]) -> Tensor:
    """Feed every slot the last of its own tokens; returns the next-token logits [N, V]."""
    positions = cache.begin_step(prompts, [len(ids) for ids in own])
    last = torch.tensor([ids[-1:] for ids in own], device=positions.device)
    return model(input_ids=last, position_ids=positions, use_cache=False, decode=cache).logits[:, -1]


# -- without it --------------------------------------------------------------------------------------------------------


class OwnCache:
    """Decoding on the cache that the model brings, whatever it holds (keys, convolution or recurrent states)."""

    NAMES = ("past_key_values", "cache_params")

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rows = 0
        self.kept: dict[str, Any] = {}

    def start(self, ids: Tensor) -> Tensor:
        """Prefill [N, P] -> next-token logits [N, V]."""
        self.rows, self.kept = len(ids), {}
        return self._call(ids)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows."""
        self.rows = len(rows)
        for cache in self.kept.values():
            cache.reorder_cache(rows)

    def step(self, ids: Tensor) -> Tensor:
        """Feed one token a row, [N, 1] -> [N, V]."""
        return self._call(ids)

    def _call(self, ids: Tensor) -> Tensor:
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **self.kept)
        self.kept = {name: out[name] for name in self.NAMES if hasattr(out.get(name), "reorder_cache")}
        return out.logits[:, -1]


class Recompute:
    """The same three calls without any cache: the whole row again for every token."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ids = torch.empty(0)

    @property
    def rows(self) -> int:
        return len(self.ids)

    def start(self, ids: Tensor) -> Tensor:
        self.ids = ids
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]

    def select(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]

    def step(self, ids: Tensor) -> Tensor:
        return self.start(torch.cat([self.ids, ids], 1))


# -- the trial ---------------------------------------------------------------------------------------------------------

_verdicts: dict[str, weakref.WeakKeyDictionary[nn.Module, bool]] = {
    "shared": weakref.WeakKeyDictionary(),
    "own": weakref.WeakKeyDictionary(),
}


def group_cache_agrees(model: nn.Module) -> bool:
    """Whether the group cache gives what whole rows give; found out once per model, and announced where it does not."""
    if model not in _verdicts["shared"]:
        _judge(
            "shared",
            model,
            _shared_gap(model),
            "sampling on shared prompt caches is off by {gap:.2g} in log-prob from whole rows (limit {limit:.0e}): the "
            "model's own cache is used instead, which is slower.",
        )
    return _verdicts["shared"][model]


def own_cache_agrees(model: nn.Module) -> bool:
    """The same for the model's own cache."""
    if model not in _verdicts["own"]:
        _judge(
            "own",
            model,
            _own_cache_gap(model),
            "its own cache is off by {gap:.2g} in log-prob from plain calls (limit {limit:.0e}): every token is "
            "sampled by recomputing the whole row, which is slow.",
        )
    return _verdicts["own"][model]


def _judge(route: str, model: nn.Module, gap: float, message: str) -> None:
    limit = AGREEMENT.get(next(model.parameters()).dtype, AGREEMENT_HALF)
    _verdicts[route][model] = gap <= limit
    if gap > limit:
        print(f"trueline: {type(model).__name__}: {message.format(gap=gap, limit=limit)}", file=sys.stderr)


def _trial(model: nn.Module) -> Tensor:
    """Three rows of twelve tokens, [3, 12]: the first two share eight, the third stands alone."""
    length = min(TRIAL, positions_of(model) or TRIAL)
    ids = np.random.Generator(np.random.PCG64(0)).integers(vocabulary_of(model), size=(3, length))
    ids[1, : length - 4] = ids[0, : length - 4]
    return torch.tensor(ids, device=device_of(model))


@products("exact")
def _shared_gap(model: nn.Module) -> float:
    """Largest log-prob difference between decoding the trial's last tokens and laying its rows out whole.

    The third row joins late and stands between the others in prompt order, as after a refill.
    """
    ids = _trial(model).tolist()
    cut = len(ids[0]) - 4
    if cut < 1:
        return 0.0  # too few positions for a trial
    whole = prefill(model, GroupCache(1, device_of(model)), dict(enumerate(ids)))
    cache = GroupCache(4, device_of(model))
    prefill(model, cache, {1: ids[0][:cut], 0: ids[2][: cut + 2]})
    cache.allocate(3)
    targets = [ids[0][cut:], ids[1][cut:], ids[2][cut + 2 :]]
    gaps = []
    for lengths in ([1, 1], [2, 2, 1], [3, 3, 2], [4, 4]):
        own = [target[:length] for target, length in zip(targets, lengths, strict=False)]
        logits_NV = step(model, cache, [1, 1, 0][: len(own)], own)
        gaps += [_gap(logits_NV[n], whole[n]) for n in range(len(own)) if own[n] == targets[n]]
    return max(gaps)


@products("exact")
def _own_cache_gap(model: nn.Module) -> float:
    """The same for the model's own cache: rows repeated after the prefill, then dropped and reordered."""
    ids = _trial(model)
    cut = ids.shape[1] - 4
    if cut < 1:
        return math.inf
    state = OwnCache(model)
    state.start(ids[[0, 2], :cut])
    state.select(torch.tensor([0, 0, 1], device=ids.device))
    state.step(ids[:, cut : cut + 1])
    state.select(torch.tensor([2, 1], device=ids.device))
    for t in range(cut + 1, ids.shape[1]):
        logits_NV = state.step(ids[[2, 1], t : t + 1])
    return _gap(logits_NV, Recompute(model).start(ids[[2, 1]]))


def _gap(left: Tensor, right: Tensor) -> float:
    gap = (left.double().log_softmax(-1) - right.double().log_softmax(-1)).abs().max().item()
    return gap if math.isfinite(gap) else math.inf


# -- the model as it is ------------------------------------------------------------------------------------------------


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def config_of(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[union-attr,operator]


def vocabulary_of(model: nn.Module) -> int:
    return model.get_input_embeddings().num_embeddings  # type: ignore[operator]


def positions_of(model: nn.Module) -> int | None:
    return getattr(config_of(model), "max_position_embeddings", None)


def turning_point(model: nn.Module) -> int | None:
    """The length from which LongRoPE turns *all* positions of a row by other angles; None for every other model."""
    ropes = getattr(config_of(model), "rope_parameters", None) or {}
    kinds = [ropes] if "rope_type" in ropes else [rope for rope in ropes.values() if isinstance(rope, dict)]
    points = [rope["original_max_position_embeddings"] for rope in kinds if rope.get("rope_type") == "longrope"]
    return min(points, default=None)
