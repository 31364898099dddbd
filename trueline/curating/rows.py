"""Files walked row by row, as often as needed, and written back in their own format: never all texts in memory.

JSON lines, CSV, TSV, Parquet and plain text are streamed, gzipped or not. What cannot be (a JSON array, Arrow, a saved
data set, a hub id) is opened whole as everywhere else; `whole` says so.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trueline.errors import TruelineError
from trueline.readers import sniff
from trueline.readers.contract import Format
from trueline.readers.files import BOM, GZIP_MAGIC, WIDE_BOMS, Table, open_tables

Numbered = tuple[int, dict[str, Any]]  # line (or row), and its values
STREAMED = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON lines", ".csv": "CSV", ".tsv": "CSV"}
STREAMED |= {".parquet": "Parquet", ".txt": "plain text"}
SCORE, REASON = "curate_score", "curate_reason"
PARQUET_ROWS = 4096


@dataclass
class RowFile:
    """One table. columns: of the first 100 rows. whole: its rows are held in memory, because the format has no rows to stream."""

    path: str
    kind: str
    ending: str
    zipped: bool
    form: Format
    columns: list[str]
    whole: Table | None = None

    @property
    def name(self) -> str:
        return Path(self.path).name

    def rows(self) -> Iterator[Numbered]:
        if self.whole is not None:
            yield from zip(self.whole.numbers, self.whole.rows, strict=True)
        else:
            yield from _STREAMS[self.kind](Path(self.path))

    def fingerprint(self) -> str:
        """sha256 of the file's bytes; of its rows as JSON where it is no file."""
        digest = hashlib.sha256()
        if Path(self.path).is_file():
            with open(self.path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            for _, row in self.rows():
                digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def open_rows(path: str, *, offline: bool = False) -> list[RowFile]:
    """Every table that a path stands for, ready to be walked; its format is recognised by its first 100 rows."""
    place = Path(path).expanduser()
    if place.is_file() and (found := _streamed(place)) is not None:
        return [found]
    if place.is_dir() and not any((place / n).is_file() for n in ("dataset_dict.json", "dataset_info.json")):
        files = sorted(
            f for f in place.iterdir() if f.is_file() and _ending(f) in STREAMED and not f.name.startswith(".")
        )
        if files and not (place / "trueline").is_dir():
            return [row_file for f in files for row_file in open_rows(str(f), offline=offline)]
    return [_whole(table) for table in open_tables(path, offline=offline)]


def _streamed(file: Path) -> RowFile | None:
    """The file as a stream; None where its content is no stream of rows (one JSON array)."""
    ending = _ending(file)
    if ending not in STREAMED:
        return None
    kind = STREAMED[ending]
    with file.open("rb") as raw:
        start = raw.read(4)
    if not start:
        raise TruelineError(f"'{file}' is empty (0 bytes). Expected rows; was the download or the export cut off?")
    zipped = start.startswith(GZIP_MAGIC)
    if ending == ".json" and not _holds_lines(file):
        return None
    head: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, row in _STREAMS[kind](file):
        head.append(row)
        numbers.append(number)
        if len(head) == 100:
            break
    if not head:
        raise TruelineError(f"'{file}' holds no row. Expected at least one; was the export cut off?")
    columns = list(dict.fromkeys(column for row in head for column in row))
    form, _ = sniff(Table(str(file), kind, columns, head, numbers))
    return RowFile(str(file), kind, ending, zipped, form, columns)


def _whole(table: Table) -> RowFile:
    form, _ = sniff(table)
    ending = _ending(Path(table.path))
    return RowFile(table.path, table.kind, ending if ending == ".json" else ".jsonl", False, form, table.columns, table)


def _ending(file: Path) -> str:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _holds_lines(file: Path) -> bool:
    """Whether the first line of a .json file is a whole object, as in many published sets."""
    with _open(file) as lines:
        for line in lines:
            if line.strip():
                try:
                    return isinstance(json.loads(line), dict)
                except (json.JSONDecodeError, UnicodeDecodeError):
                    return False
    return False


def _open(file: Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is gzipped (by content, not by name)."""
    raw = file.open("rb")
    start = raw.read(3)
    raw.seek(0)
    if start.startswith(WIDE_BOMS):
        raw.close()
        raise TruelineError(f"'{file}' is UTF-16 text, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8.")
    return gzip.open(raw) if start.startswith(GZIP_MAGIC) else raw  # type: ignore[return-value]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank; only line feeds end a line. Errors name the line."""
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                text = (line.removeprefix(BOM) if number == 1 else line).decode("utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise TruelineError(
            f"{file}:{number}: byte 0x{error.object[error.start]:02x} at offset {error.start} of the line is not UTF-8. "
            "Convert the file, for instance: iconv -f WINDOWS-1252 -t UTF-8."
        ) from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise TruelineError(
            f"'{file}' cannot be unpacked ({error}). The gzip file is damaged; fetch it again."
        ) from error


def _json_lines(file: Path) -> Iterator[Numbered]:
    for number, text in _lines(file):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise TruelineError(
                f"{file}:{number}: broken JSON at column {error.colno}: {error.msg}. Correct or remove the line."
            ) from error
        if not isinstance(row, dict):
            raise TruelineError(
                f"{file}:{number} holds {type(row).__name__}, expected a JSON object with named columns."
            )
        yield number, row


def _text_lines(file: Path) -> Iterator[Numbered]:
    return ((number, {"text": text}) for number, text in _lines(file))


def _csv_rows(file: Path) -> Iterator[Numbered]:
    from trueline.readers.files import _cell

    csv.field_size_limit(1 << 30)  # the default refuses cells over 128 KiB
    with _open(file) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter="\t" if _ending(file) == ".tsv" else ",", strict=True)
        header: list[str] = []
        last = 0
        try:
            for cells in reader:
                line, last = last + 1, reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if not header:
                    header = [cell.strip() for cell in cells]
                elif len(cells) != len(header):
                    raise TruelineError(
                        f"{file}:{line}: {len(cells)} cells where the header has {len(header)} ({', '.join(header)}). "
                        "Quote cells that contain the delimiter or a line break."
                    )
                else:
                    yield line, dict(zip(header, map(_cell, cells), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise TruelineError(f"{file}:{reader.line_num}: broken CSV: {error}. Correct this line.") from error


def _parquet_rows(file: Path) -> Iterator[Numbered]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise TruelineError(f"'{file}' cannot be read as Parquet ({error}). Fetch or export it again.") from error


_STREAMS = {"JSON lines": _json_lines, "CSV": _csv_rows, "Parquet": _parquet_rows, "plain text": _text_lines}


# -- writing -----------------------------------------------------------------------------------------------------------


class Writer:
    """The chosen rows in the format of the file they came from, with two columns more: the score, and why it was taken.

    Plain text has no columns: its chosen lines are written as they are, and their scores stand in the table of decisions.
    The file appears whole, once `close` is called. Gzip headers carry no time, so equal choices give equal bytes.
    """

    def __init__(self, source: RowFile, folder: Path):
        ending = source.ending + (".gz" if source.zipped else "")
        base = source.name.removesuffix(".gz")
        base = base.removesuffix(source.ending) or "data"
        self.source, self.target = source, folder / f"{base}{ending}"
        self.beside = self.target.with_name(f".{self.target.name}.tmp")
        self.count = 0
        self._arrow: Any = None
        self._pending: list[dict[str, Any]] = []
        raw = self.beside.open("wb")
        zipped = source.zipped and source.kind != "Parquet"
        self._raw: IO[bytes] = raw
        self._out: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if zipped else raw
        self._header: list[str] = []

    def add(self, row: dict[str, Any], score: float | None, reason: str) -> None:
        full = {**row, SCORE: score, REASON: reason}
        if self.source.kind == "Parquet":
            self._pending.append(full)
            if len(self._pending) == PARQUET_ROWS:
                self._flush()
        elif self.source.kind == "CSV":
            self._csv(full)
        elif self.source.kind == "plain text":
            self._out.write(f"{row['text']}\n".encode())
        elif self.source.ending == ".json" and self.source.whole is not None:
            self._out.write((b"[\n" if not self.count else b",\n") + _json(full))
        else:
            self._out.write(_json(full) + b"\n")
        self.count += 1

    def _csv(self, full: dict[str, Any]) -> None:
        delimiter = "\t" if self.source.ending == ".tsv" else ","
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        if not self._header:
            self._header = list(full)
            writer.writerow(self._header)
        cells = (full.get(c) for c in self._header)
        writer.writerow(
            [
                json.dumps(c, ensure_ascii=False) if isinstance(c, (list, dict)) else "" if c is None else c
                for c in cells
            ]
        )
        self._out.write(text.getvalue().encode())

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._arrow is None:
            known = pyarrow.parquet.read_schema(self.source.path)
            for column in (SCORE, REASON):
                if column in known.names:
                    known = known.remove(known.get_field_index(column))
            kinds = ((SCORE, pyarrow.float64()), (REASON, pyarrow.string()))
            for column, kind in kinds:
                known = known.append(pyarrow.field(column, kind))
            self._arrow = pyarrow.parquet.ParquetWriter(self._raw, known)
        self._arrow.write_table(pyarrow.Table.from_pylist(self._pending, self._arrow.schema))
        self._pending = []

    def close(self) -> Path:
        if self.source.kind == "Parquet":
            self._flush()
            self._arrow.close()
        elif self.source.ending == ".json" and self.source.whole is not None:
            self._out.write(b"\n]\n" if self.count else b"[]\n")
        if self._out is not self._raw:
            self._out.close()
        if not self._raw.closed:
            self._raw.close()
        self.beside.replace(self.target)
        return self.target


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
