"""Opening data: a path or hub id becomes tables of rows, whatever the container.

JSON, JSON lines, CSV, TSV, Parquet, Arrow, plain text (one text a line), each also gzipped; folders of such files;
folders written by `datasets.save_to_disk`; run folders (their recorded stream); hub ids. What the rows mean is not
decided here. Errors name the line and, where there is one, the column or the byte.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError, nearest

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Table:
    """Rows of one file. numbers[i] is the 1-based line (JSON lines, CSV, text) or row (otherwise) of rows[i]."""

    path: str
    kind: str
    columns: list[str]
    rows: list[dict[str, Any]]
    numbers: list[int]

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True)
class Weighted:
    """A path and the share of its groups that is used: 0.3 is three groups in ten, 2 is every group twice."""

    path: str
    weight: float


def parse_weight(text: str) -> Weighted:
    """'FILE::0.3' -> FILE with weight 0.3; without a suffix the weight is 1."""
    path, mark, suffix = text.rpartition("::")
    if not mark:
        return Weighted(text, 1.0)
    try:
        weight = float(suffix)
    except ValueError as error:
        raise TruelineError(f"'{text}': the weight after '::' is {suffix!r}, expected a number such as 0.3.") from error
    if not 0 < weight < float("inf") or not path:
        raise TruelineError(
            f"'{text}': the weight is {suffix}, expected a path before '::' and a number above 0 after it."
        )
    return Weighted(path, weight)


def open_tables(path: str, *, offline: bool = False, split: str | None = None) -> list[Table]:
    """Every table that a path or hub id stands for. `split` picks one of several (hub, saved sets, folders)."""
    place = Path(path).expanduser()
    if place.is_file():
        return [_open_file(place)]
    if place.is_dir():
        return _open_folder(place, split)
    if _looks_local(path):
        raise TruelineError(f"There is no file or folder '{path}'. {_neighbours(place)}")
    return _open_hub(path, offline, split)


def _looks_local(path: str) -> bool:
    """Whether a path that does not exist was surely meant as a file and not as a hub id."""
    suffixes = {suffix.lower() for suffix in Path(path).suffixes}
    return not HUB_ID.fullmatch(path) or path.startswith(".") or bool(suffixes & {*_OPENERS, ".gz"})


def _neighbours(place: Path) -> str:
    folder = place.parent
    if not folder.is_dir():
        return f"The folder '{folder}' does not exist either."
    names = [entry.name for entry in folder.iterdir()][:1000]
    return nearest(place.name, names) if names else f"The folder '{folder}' is empty."


def _open_folder(folder: Path, split: str | None) -> list[Table]:
    for stream in (folder / "trueline" / "stream.jsonl", folder / "stream.jsonl"):
        if stream.is_file():
            return [_open_file(stream)]
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        from datasets import load_from_disk

        return [_from_dataset(str(folder), load_from_disk(str(folder)), split)]
    files = sorted(f for f in folder.iterdir() if f.is_file() and _kind(f) in _OPENERS and not f.name.startswith("."))
    if split is not None:
        files = [f for f in files if split in re.split(r"[^a-z0-9]+", f.name.lower())]
    if not files:
        wanted = f" of split '{split}'" if split else ""
        raise TruelineError(
            f"The folder '{folder}' holds no data file{wanted}. Expected one of {', '.join(sorted(_OPENERS))} "
            "(also .gz), or a folder written by datasets' save_to_disk."
        )
    return [_open_file(f) for f in files]


def _kind(file: Path) -> str:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open_file(file: Path) -> Table:
    kind = _kind(file)
    if kind not in _OPENERS:
        raise TruelineError(
            f"'{file}' has the ending '{kind}', which is no data file we know. Expected one of "
            f"{', '.join(sorted(_OPENERS))}, also with .gz."
        )
    with file.open("rb") as raw:
        start = raw.read(4)
    if not start:
        raise TruelineError(f"'{file}' is empty (0 bytes). Expected rows; was the download or the export cut off?")
    table = _OPENERS[kind](file)
    if not table.rows:
        raise TruelineError(f"'{file}' holds no row. Expected at least one; was the export cut off?")
    return table


def _bytes(file: Path) -> bytes:
    """The whole file, unpacked where it is gzipped (by content, not by name), its byte-order mark removed."""
    data = file.read_bytes()
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise TruelineError(
                f"'{file}' cannot be unpacked ({error}). The gzip file is damaged; fetch it again."
            ) from error
    if data.startswith(WIDE_BOMS):
        raise TruelineError(f"'{file}' is UTF-16 text, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8.")
    return data[len(BOM) :] if data.startswith(BOM) else data


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Only line feeds end a line: U+2028 is legal inside a JSON string."""
    for number, line in enumerate(io.BytesIO(_bytes(file)), 1):
        text = _decode(line, file, number).rstrip("\r\n")
        if text.strip():
            yield number, text


def _decode(data: bytes, file: Path, first_line: int = 1) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = first_line + before.count(b"\n")
        column = error.start - (before.rfind(b"\n") + 1)
        raise TruelineError(
            f"{file}:{line}: byte 0x{data[error.start]:02x} at offset {column} of the line is not UTF-8. "
            "Convert the file, for instance: iconv -f WINDOWS-1252 -t UTF-8."
        ) from error


def json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]] | None:
    """Numbered rows of a local file of JSON lines, read as they are asked for; None where it is something else.

    An object over several lines and a list of rows are something else. Broken lines raise TruelineError when they come.
    """
    file = Path(path).expanduser()
    if not file.is_file() or _kind(file) not in (".jsonl", ".ndjson"):
        return None
    try:
        _, first = next(_streamed_lines(file))
        is_row = isinstance(json.loads(first), dict)
    except (StopIteration, json.JSONDecodeError):
        return None
    return _rows_of_lines(file) if is_row else None


def _rows_of_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _streamed_lines(file):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise _json_error(file, number, error) from error
        yield number, _object(value, f"{file}:{number}")


def _streamed_lines(file: Path) -> Iterator[tuple[int, str]]:
    """What `_lines` gives, without the whole file in memory."""
    with file.open("rb") as raw:
        start = raw.read(len(GZIP_MAGIC))
        if start.startswith(WIDE_BOMS):
            raise TruelineError(f"'{file}' is UTF-16 text, expected UTF-8. Convert it: iconv -f UTF-16 -t UTF-8.")
        raw.seek(0)
        lines = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if start == GZIP_MAGIC else raw
        try:
            for number, line in enumerate(lines, 1):
                if number == 1 and line.startswith(BOM):
                    line = line[len(BOM) :]
                text = _decode(line, file, number).rstrip("\r\n")
                if text.strip():
                    yield number, text
        except (OSError, EOFError, zlib.error) as error:
            raise TruelineError(
                f"'{file}' cannot be unpacked ({error}). The gzip file is damaged; fetch it again."
            ) from error


def _json_error(file: Path, line: int, error: json.JSONDecodeError) -> TruelineError:
    shown = error.doc[max(0, error.pos - 20) : error.pos + 20]
    return TruelineError(
        f"{file}:{line}: broken JSON at column {error.colno}: {error.msg} (near {shown!r}). Correct or remove the line."
    )


def _open_jsonl(file: Path) -> Table:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, text in _lines(file):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if not rows and text.lstrip().startswith(("[", "{")):
                return _whole_json(file, _json_error(file, number, error))
            raise _json_error(file, number, error) from error
        if isinstance(value, list) and not rows:
            return _whole_json(file, None)
        rows.append(_object(value, f"{file}:{number}"))
        numbers.append(number)
    return _table(file, "JSON lines", rows, numbers)


def _whole_json(file: Path, line_error: TruelineError | None) -> Table:
    """One JSON array of rows (or {"data": [...]}). `line_error`: what was wrong when it was read by lines."""
    text = _decode(_bytes(file), file)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if line_error is not None and not text.lstrip().startswith("["):
            several_rows = error.msg == "Extra data"  # the first row is sound JSON over several lines
            if not several_rows:
                raise line_error from error
        raise _json_error(file, error.lineno, error) from error
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        value = lists[0] if len(value) == 1 and lists else [value]
    rows = [_object(row, f"{file}: row {i}") for i, row in enumerate(value, 1)]
    return _table(file, "JSON", rows, list(range(1, len(rows) + 1)))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TruelineError(f"{place} holds {type(value).__name__}, expected a JSON object with named columns.")
    return value


def _open_csv(file: Path, delimiter: str = ",") -> Table:
    text = _decode(_bytes(file), file)
    before = csv.field_size_limit(len(text) + 1)  # the default refuses cells over 128 KiB
    try:
        return _csv_rows(file, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(before)


def _csv_rows(file: Path, reader: Any) -> Table:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    header: list[str] = []
    try:
        last = 0
        for cells in reader:
            line, last = last + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise TruelineError(f"{file}:{line}: a column name occurs twice in {header}. Rename one of them.")
                continue
            if len(cells) != len(header):
                raise TruelineError(
                    f"{file}:{line}: {len(cells)} cells where the header has {len(header)} ({', '.join(header)}). "
                    "Quote cells that contain the delimiter or a line break."
                )
            rows.append(dict(zip(header, map(_cell, cells), strict=True)))
            numbers.append(line)
    except csv.Error as error:
        raise TruelineError(
            f"{file}:{reader.line_num}: broken CSV: {error}. Correct the quoting of this line."
        ) from error
    return _table(file, "CSV", rows, numbers)


def _cell(text: str) -> Any:
    """A cell is text, except a list of messages, which CSV can only hold as JSON."""
    if text.startswith("[{") and text.endswith("}]"):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return text
        if all(
            isinstance(item, dict) and ({"role", "content"} <= set(item) or {"from", "value"} <= set(item))
            for item in value
        ):
            return value
    return text


def _open_text(file: Path) -> Table:
    lines = list(_lines(file))
    return _table(file, "plain text", [{"text": text} for _, text in lines], [number for number, _ in lines])


def _open_parquet(file: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise TruelineError(f"'{file}' cannot be read as Parquet ({error}). Fetch or export it again.") from error
    return _arrow_rows(file, "Parquet", table)


def _open_arrow(file: Path) -> Table:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(file)) as source:
            try:
                table = pyarrow.ipc.open_stream(source).read_all()
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(source).read_all()
            return _arrow_rows(file, "Arrow", table)
    except (pyarrow.ArrowException, OSError) as error:
        raise TruelineError(f"'{file}' cannot be read as Arrow ({error}). Fetch or export it again.") from error


def _arrow_rows(file: Path, kind: str, table: Any) -> Table:
    rows = table.to_pylist()
    return _table(file, kind, rows, list(range(1, len(rows) + 1)))


def _table(file: Path | str, kind: str, rows: list[dict[str, Any]], numbers: list[int]) -> Table:
    columns = list(dict.fromkeys(column for row in rows[:100] for column in row))
    return Table(str(file), kind, columns, rows, numbers)


_OPENERS: dict[str, Callable[[Path], Table]] = {
    ".json": _open_jsonl,  # read by lines first: many .json files hold JSON lines
    ".jsonl": _open_jsonl,
    ".ndjson": _open_jsonl,
    ".csv": _open_csv,
    ".tsv": lambda file: _open_csv(file, "\t"),
    ".parquet": _open_parquet,
    ".arrow": _open_arrow,
    ".txt": _open_text,
}


def _from_dataset(path: str, data: Any, split: str | None) -> Table:
    """One table of a `Dataset`, or of the split of a `DatasetDict` that was asked for (or is the only or 'train' one)."""
    if hasattr(data, "keys"):
        splits = list(data.keys())
        wanted = split or (splits[0] if len(splits) == 1 else "train")
        if wanted not in splits:
            raise TruelineError(f"'{path}' has no split '{wanted}'. {nearest(wanted, splits)}")
        data = data[wanted]
    elif split is not None and str(data.split) != split:
        raise TruelineError(f"'{path}' holds one split ('{data.split}'), and '{split}' was asked for.")
    rows = data.to_list()
    if not rows:
        raise TruelineError(f"'{path}' holds no row.")
    return _table(path, "Arrow", rows, list(range(1, len(rows) + 1)))


def _open_hub(name: str, offline: bool, split: str | None) -> list[Table]:
    """A data set of the hub, through `datasets` and its cache; offline, only what the cache holds."""
    from datasets import DownloadConfig, load_dataset

    try:
        with _hub_switched_off() if offline else nullcontext():
            data = load_dataset(name, download_config=DownloadConfig(local_files_only=True) if offline else None)
    except Exception as error:  # every one of them becomes a sentence for the user
        raise TruelineError(_hub_trouble(name, offline, error)) from error
    return [_from_dataset(name, data, split)]


@contextmanager
def _hub_switched_off() -> Iterator[None]:
    """No request leaves: `datasets` asks the hub for a card and a revision even where only local files are allowed."""
    import datasets.config
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _hub_trouble(name: str, offline: bool, error: Exception) -> str:
    """What to do about a failed download. Decided by the error's class names: they move between libraries' modules."""
    kinds = {cls.__name__ for e in (error, error.__cause__, error.__context__) if e for cls in type(e).__mro__}
    start = f"There is no file '{name}', and the hub's data set of that name could not be opened: "
    words = f"{error}".lower()
    if "GatedRepoError" in kinds or "gated" in words:
        return (
            start
            + f"it is gated. Accept its terms at https://huggingface.co/datasets/{name}, then log in: hf auth login."
        )
    if offline or kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"} or "offline" in words:
        return (
            start
            + "the hub may not be asked (offline) and the cache does not hold it. Fetch it once without --offline."
        )
    if kinds & {"ConnectionError", "ConnectError", "Timeout", "ConnectTimeout", "TimeoutException"}:
        return start + f"the hub cannot be reached ({error}). Check the network, or give a local file."
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return start + "it does not exist or is private. Check the spelling; for a private set log in: hf auth login."
    return start + f"{type(error).__name__}: {error}"
