"""Checkpoints that are whole or not there: `folder/step-N/` with named groups of tensors and a JSON state.

    step-N/
        model-00001.safetensors      a group's tensors, cut into shards (tied tensors are stored once)
        optimizer-00001.safetensors
        state.json                   whatever else a resume needs; numbers keep their bits
        manifest.json                size and sha256 of every file, which file and tie a group has, its own sha256

A checkpoint is written beside its place, synced to the disk and renamed. A process killed at any moment, a full disk
or a file-size limit therefore leave the earlier checkpoints as they were; what a killed writer leaves behind ends in
`.tmp` and is tidied up by the next `save` or `newest`. Loading checks every byte against the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

from trueline.engine import failpoints
from trueline.engine.journal import sync
from trueline.errors import TruelineError

Tensors = dict[str, dict[str, Tensor]]  # group -> name -> tensor

SHARD_BYTES = 1 << 28  # safetensors needs a shard twice in memory while writing; 256 MiB keeps that small
FORMAT = 1
_PREFIX = "step-"
_REPLACED = ".replaced.tmp"


def save(folder: str | Path, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write `folder/step-N/` atomically and return its path; an older checkpoint of the same step is replaced.

    tensors: by group ("model", "optimizer", ...) and name. Tensors that share their memory stay tied on loading.
    state: JSON values with string keys; floats keep their bits, NaN and infinities included.
    Raises TruelineError where the state is not JSON or the disk refuses; no other checkpoint is touched then.
    """
    folder = Path(folder)
    _check_json(state, "state")
    final = folder / f"{_PREFIX}{step}"
    temporary = folder / f"{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        temporary.mkdir()
        _write_files(temporary, step, tensors, state)
        sync(temporary)
        if final.exists():
            final.rename(folder / f"{final.name}{_REPLACED}")
        failpoints.hit("checkpoint.rename.before")
        temporary.rename(final)
        sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _tidy(folder)
        raise TruelineError(
            f"Could not save the checkpoint {final}: {error.strerror or error}. It needs about "
            f"{_megabytes(tensors):.0f} MB in files of up to {SHARD_BYTES >> 20} MB (or one tensor). Earlier "
            "checkpoints are untouched: free some space or raise the file-size limit (ulimit -f), then --resume."
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    failpoints.hit("checkpoint.rename.after")
    _tidy(folder)
    return final


def load(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors (on the CPU, tied where they were) and state of one checkpoint, every byte checked.

    Raises TruelineError that names the file which is missing, cut or changed.
    """
    path = Path(path)
    manifest = _manifest(path)
    tensors: Tensors = {}
    for group, entry in manifest["groups"].items():
        held: dict[str, Tensor] = {}
        for file in entry["files"]:
            held.update(deserialise(_checked_bytes(path / file, manifest["files"][file])))
        for name, source in entry["ties"].items():
            held[name] = held[source]
        tensors[group] = {name: held[name] for name in entry["names"]}
    return tensors, json.loads(_checked_bytes(path / "state.json", manifest["files"]["state.json"]))


def verify(path: str | Path) -> None:
    """Check every file of a checkpoint against its manifest; TruelineError names the first that differs."""
    path = Path(path)
    for file, expected in _manifest(path)["files"].items():
        _checked_bytes(path / file, expected)


def newest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint; None where there is none at all.

    Damaged ones are passed over with a warning that names the damage. Raises TruelineError where all are damaged:
    starting again from nothing is not what a resume means.
    """
    _tidy(Path(folder))
    damage = []
    for step in reversed(steps(folder)):
        path = Path(folder) / f"{_PREFIX}{step}"
        try:
            verify(path)
        except TruelineError as error:
            damage.append(str(error))
            warnings.warn(f"Passing over a damaged checkpoint. {error}", stacklevel=2)
        else:
            return path
    if damage:
        raise TruelineError(
            f"No checkpoint in {folder} can be used: {' '.join(damage)} "
            "Restore one from a copy, or start again with --overwrite."
        )
    return None


def steps(folder: str | Path) -> list[int]:
    """Steps that have a checkpoint folder, whole or damaged, in ascending order."""
    names = [p.name.removeprefix(_PREFIX) for p in Path(folder).glob(f"{_PREFIX}*") if p.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def prune(folder: str | Path, keep: int, protect: Collection[int] = ()) -> list[int]:
    """Delete all checkpoints but the `keep` newest and the protected steps; returns the steps deleted."""
    if keep < 1:
        raise TruelineError(f"prune must keep at least one checkpoint, was asked to keep {keep}.")
    doomed = [step for step in steps(folder)[:-keep] if step not in protect]
    for step in doomed:  # renamed first: a kill halfway through must not leave a damaged checkpoint in place
        path = Path(folder) / f"{_PREFIX}{step}"
        path.rename(path.with_name(f"{path.name}.pruned.tmp"))
    _tidy(Path(folder))
    return doomed


# --- optimiser state by parameter name -------------------------------------------------------------------------------


def flatten_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors, "parameter name/entry" (for AdamW: exp_avg, exp_avg_sq, step).

    Parameters that never had a gradient have no state and no entry. Learning rate, betas and the like are not state:
    they follow from the configuration and the step. named: name -> parameter, the optimised ones among them.
    """
    flat = {}
    for name, parameter in _by_name(optimizer, named).items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TruelineError(
                    f"{type(optimizer).__name__} keeps {entry} of '{name}' as {type(value).__name__}; checkpoints "
                    "hold tensors only. Use an optimiser with tensor state, such as torch.optim.AdamW."
                )
            flat[f"{name}/{entry}"] = value
    return flat


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], flat: Mapping[str, Tensor]
) -> None:
    """Put state from `flatten_optimizer` back, by parameter name and bit for bit; the order may differ.

    Raises TruelineError where a name has no parameter or a shape or dtype does not fit.
    """
    parameters = _by_name(optimizer, named)
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise TruelineError(f"The checkpoint holds optimiser state for '{name}', which is not trained here.")
        expected = parameters[name]
        if value.dim() and (value.shape != expected.shape or value.dtype != expected.dtype):
            raise TruelineError(
                f"Optimiser state {entry} of '{name}' is {tuple(value.shape)} {value.dtype}, "
                f"the parameter {tuple(expected.shape)} {expected.dtype}."
            )
        by_name.setdefault(name, {})[entry] = value.clone()
    position = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state = {position[parameters[name]]: entries for name, entries in by_name.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _by_name(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> dict[str, torch.nn.Parameter]:
    """The optimiser's own parameters by name; one without a name is an error."""
    names = {parameter: name for name, parameter in named.items()}
    own = [p for group in optimizer.param_groups for p in group["params"]]
    nameless = [tuple(p.shape) for p in own if p not in names]
    if nameless:
        raise TruelineError(f"{len(nameless)} optimised parameters have no name, the first of shape {nameless[0]}.")
    return {names[p]: p for p in own}


# --- files -----------------------------------------------------------------------------------------------------------


def _write_files(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes, point: str | None = None) -> None:
        with (folder / name).open("wb") as file:
            for piece in failpoints.pieces(point, data) if point else (data,):
                file.write(piece)
                file.flush()
            os.fsync(file.fileno())
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    groups = {}
    for group, named in tensors.items():
        ties = _ties(named)
        written = []
        for number, shard in enumerate(_shards({k: t for k, t in named.items() if k not in ties}), 1):
            written.append(f"{group}-{number:05d}.safetensors")
            write(written[-1], serialise(shard), "checkpoint.weights.middle")
        groups[group] = {"files": written, "ties": ties, "names": list(named)}
    write("state.json", json.dumps(state).encode())
    body = {"format": FORMAT, "step": step, "groups": groups, "files": dict(files)}
    write("manifest.json", json.dumps({**body, "sha256": _digest(body)}, indent=1).encode())


def _ties(named: Mapping[str, Tensor]) -> dict[str, str]:
    """name -> the earlier name of the very same tensor (same memory, shape and strides)."""
    first: dict[tuple[Any, ...], str] = {}
    ties = {}
    for name, tensor in named.items():
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if first.setdefault(key, name) != name:
                ties[name] = first[key]
    return ties


def _shards(named: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Cut into shards of at most SHARD_BYTES (or one tensor), on the CPU, none sharing memory with another."""
    shard: dict[str, Tensor] = {}
    memories: set[int] = set()
    size = 0
    for name, tensor in named.items():
        length = tensor.numel() * tensor.element_size()
        if shard and size + length > SHARD_BYTES:
            yield shard
            shard, memories, size = {}, set(), 0
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in memories:
            own = own.clone()  # a view into a tensor that is stored too: safetensors refuses shared memory
        memories.add(own.untyped_storage().data_ptr())
        shard[name] = own
        size += length
    if shard:
        yield shard


def _manifest(path: Path) -> dict[str, Any]:
    try:
        body = json.loads((path / "manifest.json").read_bytes())
        stated = body.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TruelineError(f"{path} has no readable manifest.json ({error}).") from error
    if stated != _digest(body):
        raise TruelineError(f"{path / 'manifest.json'} was changed after it was written.")
    if body["format"] != FORMAT:
        raise TruelineError(
            f"{path} has checkpoint format {body['format']}; this version of Trueline reads {FORMAT}. "
            "Resume with the version that wrote it (see environment.json of the run)."
        )
    return body


def _checked_bytes(file: Path, expected: dict[str, Any]) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TruelineError(f"{file} cannot be read ({error.strerror}).") from error
    if len(data) != expected["bytes"]:
        raise TruelineError(f"{file} has {len(data)} bytes, {expected['bytes']} were written.")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise TruelineError(f"{file} does not have the content that was written (sha256 differs).")
    return data


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _tidy(folder: Path) -> None:
    """After a killed or failed save: put back a checkpoint whose replacement never came, remove what is half made."""
    for replaced in folder.glob(f"{_PREFIX}*{_REPLACED}"):
        final = folder / replaced.name.removesuffix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
    for path in folder.glob(f"{_PREFIX}*.tmp"):
        shutil.rmtree(path)


def _megabytes(tensors: Mapping[str, Mapping[str, Tensor]]) -> float:
    return sum(t.numel() * t.element_size() for named in tensors.values() for t in named.values()) / 1e6


def _check_json(value: Any, where: str) -> None:
    """Refuse what JSON would change without a word: tuples become lists, number keys strings."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TruelineError(f"{where} has the key {key!r}; a checkpoint's state needs string keys.")
            _check_json(item, f"{where}[{key!r}]")
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif not isinstance(value, str | int | float | bool | None):
        raise TruelineError(f"{where} is a {type(value).__name__}, which JSON would not give back; convert it first.")
