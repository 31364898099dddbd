"""Append-only JSON lines that a resumed run can cut back to its checkpoint.

A line is written by one system call and counts once its newline is there, so a killed process leaves at most one torn
last line, which opening the journal removes. Equal records give equal bytes: keys stay in the order given and floats
are written by `repr`, which round-trips exactly. The files are strict JSON: a number that is not finite is written as
the string "NaN", "Infinity" or "-Infinity", which `float()` and JavaScript's `Number()` read back; a chart cannot
mistake it for a missing value. Anything JSON has no word for (a tensor, a set) is a TypeError.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trueline.engine import failpoints
from trueline.errors import TruelineError

_POINT_OF = {"metrics.jsonl": "metrics.line.middle", "stream.jsonl": "stream.line.middle"}


class Journal:
    """One growing JSON-lines file. Opening it creates it, or repairs a torn last line and goes on after it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open()

    def append(self, record: dict[str, Any]) -> None:
        """Write one line. It survives the death of the process at once, and that of the machine after `sync`.

        Raises TruelineError where the disk refuses it; what was written of the line is taken back.
        """
        line = encode(record)
        start = os.fstat(self._file).st_size
        try:
            point = _POINT_OF.get(self.path.name)
            for piece in failpoints.pieces(point, line) if point else (line,):
                _write_all(self._file, piece)
        except OSError as error:
            os.ftruncate(self._file, start)
            raise TruelineError(
                f"Could not write a line of {len(line)} bytes to {self.path}: {error.strerror}. "
                "Free some space (or raise the file-size limit) and go on with --resume."
            ) from error

    def truncate_after(self, step: int) -> int:
        """Remove every line whose `step` is larger, by an atomic rewrite; kept lines keep their bytes.

        Returns how many were removed. A line without `step` stays.
        """
        temporary = self.path.with_name(self.path.name + ".tmp")
        removed = 0
        with temporary.open("wb") as kept:
            for line, record in _lines(self.path):
                if record.get("step", step) > step:
                    removed += 1
                else:
                    kept.write(line)
            kept.flush()
            os.fsync(kept.fileno())
        if not removed:
            temporary.unlink()
            return 0
        self.close()
        os.replace(temporary, self.path)
        sync(self.path.parent)
        self._file = self._open()
        return removed

    def sync(self) -> None:
        """Force the lines to the disk: call it before a checkpoint that counts on them."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        end = _end_of_last_line(file)
        if end < os.fstat(file).st_size:
            os.ftruncate(file, end)
        return file


def encode(record: dict[str, Any]) -> bytes:
    """A record as one line of strict JSON, newline included. Lone surrogates make the line ASCII with escapes."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_named_nonfinite(record), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(json.loads(text)).encode() + b"\n"


def read(path: str | Path) -> list[dict[str, Any]]:
    """All records of a journal. A torn last line is left out; any other damage is an error that names the line."""
    return list(records(path))


def records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Like `read`, one record at a time: a recorded stream need not fit into memory."""
    for _, record in _lines(Path(path)):
        yield record


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk: what was created or renamed survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    if not path.is_file():
        raise TruelineError(f"There is no file {path}. A run folder keeps its journals in 'trueline/'.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn: the writer died here
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TruelineError(
                    f"{path}:{number} is not JSON ({error}). Only the last line of a journal may be incomplete: "
                    "the file was damaged after it was written; restore it or start the run again with --overwrite."
                ) from error
            if not isinstance(record, dict):
                raise TruelineError(f"{path}:{number} holds {type(record).__name__}, expected a JSON object.")
            yield line, record


def _end_of_last_line(file: int, block: int = 1 << 16) -> int:
    """Offset after the last newline, found from the end: a long journal is not read through."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - block)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write_all(file: int, data: bytes) -> None:
    """os.write until nothing is left: a nearly full disk takes a part and refuses the rest with the next call."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _named_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _named_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named_nonfinite(item) for item in value]
    return value
