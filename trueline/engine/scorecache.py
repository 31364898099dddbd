"""Reference log-probs kept on disk, keyed by what was scored and by whom.

A row's key is the content of its tokens and mask (`fingerprint_ids`); the folder's name is the scorer's key: a hash of
every weight, the configuration, adapter, devices, precision, layout and library versions. A reference that changes in
any of these gets an empty folder of its own, so a stale score cannot be read.

    folder/<scorer key>/<sha256 of the file>.safetensors      one shard per scored batch, each row a run of `values`

A shard is written, synced and renamed before its batch counts, so a killed process loses one batch at most; batches
are cut the same way when it goes on, and the scores come out with the same bits. Shards whose content no longer
matches their name are thrown away and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as deserialise
from safetensors.numpy import save as serialise

from trueline.engine import failpoints
from trueline.engine.journal import sync
from trueline.errors import TruelineError
from trueline.groups import Group, Response, fingerprint_ids

# Groups -> for each group, for each response, the log-prob of each counted token.
Score = Callable[[list[Group]], Sequence[Sequence[Sequence[float]]]]

# Largest difference, in nats a token, that a re-scored row may show, by precision of the products: bf16 products are off
# by 2e-3 of logits of order 10.
TOLERANCE = {"exact": 1e-4, "fast": 5e-2}
FORMAT = 1  # raise when scoring itself changes, so that older scores are not found
_NOT_NUMBERS = ("_name_or_path", "use_cache")  # configuration entries that cannot change a score
_KEY_BYTES = 24  # length of `fingerprint_ids`


def scorer_key(
    model: torch.nn.Module,
    *,
    precision: str,
    layout_mode: str,
    adapter_off: bool = False,
    **settings: str | int | float | bool | None,
) -> str:
    """Key of a scorer: equal only if weights, adapter, configuration, numerics and library versions are equal.

    model: the model that scores, peft wrapper included. Every byte of its weights and buffers is hashed
    (about 1.5 GB/s). precision, layout_mode: `Policy`'s. adapter_off: scored with its adapters disabled, so their
    weights do not enter. settings: whatever else changes the numbers, such as a temperature.
    """
    config = getattr(model, "config", None)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "versions": {library: version(library) for library in ("torch", "transformers")},
        "precision": precision,
        "layout_mode": layout_mode,
        "settings": settings,
        "config": {k: v for k, v in config.to_dict().items() if k not in _NOT_NUMBERS} if config is not None else None,
        "attention": getattr(config, "_attn_implementation", None),
    }
    skipped: tuple[str, ...] = ()
    peft: Any = model if hasattr(model, "peft_config") else None
    if peft is not None and adapter_off:
        skipped = tuple(_adapter_prefixes(model))
    elif peft is not None:
        facts["adapters"] = {name: c.to_dict() for name, c in peft.peft_config.items()}
        facts["active"] = list(peft.active_adapters)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=_stable).encode())
    for name, tensor in _content(model):
        if not name.startswith(skipped):
            digest.update(f"\0{name}:{tensor.dtype}:{list(tensor.shape)}:{tensor.device.type}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _adapter_prefixes(model: torch.nn.Module) -> Iterator[str]:
    """Where a peft model keeps what `disable_adapter` switches off (LoRA matrices, retrained modules)."""
    for name, module in model.named_modules():
        for attribute in getattr(module, "adapter_layer_names", ()):
            yield f"{name}.{attribute}."


def _content(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that takes part in a score: weights, buffers (rotary frequencies too), quantisation state."""
    state = model.state_dict()
    buffers = {name: b for name, b in model.named_buffers() if name not in state}
    for name, value in sorted({**state, **buffers}.items()):
        if not isinstance(value, torch.Tensor):
            raise TruelineError(
                f"The model keeps '{name}' as {type(value).__name__}, which cannot be fingerprinted, so its scores "
                "cannot be cached. Run without --reference-cache."
            )
        yield name, value


def _stable(value: Any) -> Any:
    """JSON for what configurations hold besides plain values; sets have no order of their own."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


@dataclass(frozen=True)
class Filled:
    """What one `fill` did, in responses. A response that occurs twice is computed once."""

    hits: int
    computed: int
    rechecked: int


class ScoreCache:
    """Scores of one scorer. tolerance: largest difference a re-scored row may show, in nats a token.

    The default suits exact fp32 (a matrix product changes by up to 4e-5 with its batch); with bf16 products pass the
    error of those.
    """

    def __init__(self, folder: str | Path, key: str, *, tolerance: float = TOLERANCE["exact"]):
        self.folder = Path(folder) / key
        self.tolerance = tolerance
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        self._rows: dict[str, np.ndarray] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._read(shard)
        self._unchecked = bool(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, groups: list[Group], score: Score, *, batch: int = 64, recheck: int = 3) -> Filled:
        """Set `reference_logp` of every response, one float per counted token, computing only what is missing.

        batch: groups per call of `score` and per shard. recheck: rows read from disk that are scored again, once
        per opened cache. Raises TruelineError where a recheck disagrees, or where `score` returns a wrong number
        of values or one that is not finite, and names the row.
        """
        keys = [[_row_key(group, i) for i in range(len(group.responses))] for group in groups]
        hits = [(g, i) for g, row in enumerate(keys) for i, key in enumerate(row) if key in self._rows]
        rechecked = self._recheck(groups, keys, hits, score, recheck)
        missing = self._missing(groups, keys)
        for start in range(0, len(missing), batch):
            self._compute(missing[start : start + batch], score)
        for group, row in zip(groups, keys, strict=True):
            for response, key in zip(group.responses, row, strict=True):
                response.reference_logp = self._rows[key].tolist()
        return Filled(len(hits), sum(len(names) for _, names in missing), rechecked)

    def _missing(self, groups: list[Group], keys: list[list[str]]) -> list[tuple[Group, list[str]]]:
        """Groups cut down to the responses that have no score yet, each content once, with their keys."""
        seen = set(self._rows)
        missing = []
        for group, row in zip(groups, keys, strict=True):
            fresh: dict[str, Response] = {}
            for response, key in zip(group.responses, row, strict=True):
                if key not in seen:
                    seen.add(key)
                    fresh[key] = response
            if fresh:
                missing.append((replace(group, responses=list(fresh.values())), list(fresh)))
        return missing

    def _compute(self, part: list[tuple[Group, list[str]]], score: Score) -> None:
        scores = _checked([group for group, _ in part], score)
        keys = [key for _, names in part for key in names]
        rows = dict(zip(keys, (values for group in scores for values in group), strict=True))
        self._write(rows)
        self._rows.update(rows)

    def _recheck(
        self, groups: list[Group], keys: list[list[str]], hits: list[tuple[int, int]], score: Score, count: int
    ) -> int:
        if not (self._unchecked and hits and count):
            return 0
        chosen = sorted({round(n * (len(hits) - 1) / max(count - 1, 1)) for n in range(count)})
        for g, i in (hits[n] for n in chosen):
            alone = replace(groups[g], responses=[groups[g].responses[i]])
            fresh, stored = _checked([alone], score)[0][0], self._rows[keys[g][i]]
            worst = float(np.abs(fresh - stored).max(initial=0.0)) if len(fresh) == len(stored) else float("inf")
            if not worst <= self.tolerance:
                raise TruelineError(
                    f"The cached reference log-probs of {_where(groups[g])}, response {i}, are not the reference's: "
                    f"scored again they differ by {worst:.2g} nats on a token (allowed {self.tolerance:.2g}). "
                    f"Delete {self.folder} and run again."
                )
        self._unchecked = False
        return len(chosen)

    # --- shards ------------------------------------------------------------------------------------------------------

    def _write(self, rows: dict[str, np.ndarray]) -> None:
        data = serialise(
            {
                "keys": np.frombuffer("".join(rows).encode(), dtype=np.uint8),
                "lengths": np.array([len(v) for v in rows.values()], dtype=np.int64),
                "values": np.concatenate(list(rows.values())),  # float64 as soon as one row needs it: exact
            }
        )
        temporary = self.folder / f"{os.getpid()}.tmp"
        final = self.folder / f"{_name(data)}.safetensors"
        try:
            with temporary.open("wb") as file:
                for piece in failpoints.pieces("scorecache.build.middle", data):
                    file.write(piece)
                    file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
            sync(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TruelineError(
                f"Could not write {len(data)} bytes of reference scores to {self.folder}: {error.strerror}. "
                "Free some space, or run without --reference-cache. What was scored before is kept."
            ) from error

    def _read(self, shard: Path) -> None:
        data = shard.read_bytes()
        if _name(data) != shard.stem:
            warnings.warn(
                f"{shard} is damaged: its content does not match its name. It is deleted, its rows are scored again.",
                stacklevel=3,
            )
            shard.unlink()
            return
        held = deserialise(data)
        names = held["keys"].tobytes().decode()
        ends = np.cumsum(held["lengths"])
        for n, end in enumerate(ends):
            key = names[n * _KEY_BYTES : (n + 1) * _KEY_BYTES]
            self._rows.setdefault(key, held["values"][end - held["lengths"][n] : end])

    def _remove_leftovers(self) -> None:
        """Half-written shards of processes that are gone; one that still runs keeps its own."""
        for path in self.folder.glob("*.tmp"):
            try:
                os.kill(int(path.stem), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except PermissionError:
                continue  # alive, another user's


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _where(group: Group) -> str:
    return f"row {group.origin}" if group.origin else f"the group with prompt {str(group.prompt)[:60]!r}"


def _row_key(group: Group, index: int) -> str:
    response = group.responses[index]
    if group.prompt_ids is None or response.ids is None or response.mask is None:
        raise TruelineError(f"{_where(group)}, response {index}, has no tokens yet: encode groups before scoring them.")
    mask = [False] * len(group.prompt_ids) + response.mask
    return fingerprint_ids(group.prompt_ids + response.ids, mask)


def _checked(groups: list[Group], score: Score) -> list[list[np.ndarray]]:
    """Call `score` and hold it to its promise: a finite float for every counted token of every response."""
    scores = score(groups)
    if len(scores) != len(groups):
        raise TruelineError(f"The scorer returned scores for {len(scores)} groups, expected {len(groups)}.")
    checked = []
    for group, found in zip(groups, scores, strict=True):
        if len(found) != len(group.responses):
            raise TruelineError(
                f"The scorer returned {len(found)} scores for {_where(group)}, expected {len(group.responses)}."
            )
        checked.append([_compact(values) for values in found])
        for index, (response, values) in enumerate(zip(group.responses, checked[-1], strict=True)):
            counted = sum(response.mask or ())
            if len(values) != counted:
                raise TruelineError(
                    f"The scorer returned {len(values)} log-probs for {_where(group)}, response {index}, "
                    f"expected one for each of its {counted} counted tokens."
                )
            if not np.isfinite(values).all():
                raise TruelineError(
                    f"The reference gives {_where(group)}, response {index}, a log-prob that is not finite "
                    f"({values[~np.isfinite(values)][0]}). Check the reference's weights and precision."
                )
    return checked


def _compact(values: Sequence[float]) -> np.ndarray:
    """float32 where that keeps every bit of the values, else float64."""
    wide = np.asarray(values, dtype=np.float64)
    narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide
