"""Data of any usual format, read without a flag.

`read` opens files, folders and hub ids (`files.py`), recognises what the rows are by their columns and content (the
`FORMAT` of every file in this folder) and returns groups with the audit of what was dropped or noted. docs/data.md
describes the formats and what happens to bad input.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from trueline.errors import TruelineError
from trueline.groupfile import DIGEST_BYTES, Digests, GroupFile
from trueline.groups import Audit, Group
from trueline.readers.contract import RENDERING, Format, Row, Unusable, Values
from trueline.readers.files import Table, json_lines, open_tables, parse_weight

__all__ = ["Loaded", "formats", "load", "merge_audits", "read", "read_on_disk", "streams"]

SNIFFED_ROWS = 100
SIMILAR = 0.7  # two column names this alike (difflib ratio) are probably one name and its misspelling


@dataclass
class Loaded:
    """One table after reading.

    also_fits: formats that would have fitted as well as the chosen one. unread: columns the format does not use; they
    are kept in `extras`, where rules and chat templates find them.
    """

    path: str
    kind: str
    format: str
    columns: list[str]
    rows: int
    groups: list[Group]
    audit: Audit = field(default_factory=Audit)
    also_fits: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read(paths: Sequence[str], *, offline: bool = False, split: str | None = None) -> tuple[list[Group], Audit]:
    """Groups of all paths in order, and one audit over all of them.

    A path is a file, a folder or a hub id. 'PATH::w' takes the share w of its groups: floor(w) times all of them and,
    for the fraction, those whose content hashes come first, in file order. The choice depends on nothing else, so a
    smaller share is part of a larger one. Raises TruelineError where nothing usable is left.
    """
    groups: list[Group] = []
    audits = []
    for path in paths:
        weighted = parse_weight(path)
        tables = load(weighted.path, offline=offline, split=split)
        everything = [group for table in tables for group in table.groups]
        chosen = _share(everything, weighted.weight)
        audits += [table.audit for table in tables]
        if len(chosen) < len(everything):
            left_out = len(everything) - len(chosen)
            audits.append(Audit(dropped={f"left out by the weight {weighted.weight:g}": left_out}))
        groups += chosen
    audit = merge_audits(audits)
    audit.kept = len(groups)
    return groups, audit


def read_on_disk(paths: Sequence[str]) -> tuple[GroupFile, Audit]:
    """The same for large files of JSON lines, the groups kept on disk: memory grows by some 60 bytes a row.

    Raises TruelineError as `read` does, and for paths that `streams` refuses.
    """
    groups = GroupFile()
    audits = []
    for path in paths:
        if (lines := json_lines(path)) is None:
            raise TruelineError(f"'{path}' is not a file of JSON lines; only those are read a row at a time.")
        first = list(itertools.islice(lines, SNIFFED_ROWS))
        columns = list(dict.fromkeys(column for _, row in first for column in row))
        table = Table(path, "JSON lines", columns, [row for _, row in first], [number for number, _ in first])
        form, also = sniff(table)
        audit = _opening(table, form, also)
        before = len(groups)
        seen = _DigestsSeen(Path(path).name)
        for group in _usable(table, form, itertools.chain(first, lines), audit, seen):
            seen.contradicts(group, audit)
            groups.append(group)
        audit.kept = len(groups) - before
        _refuse_none(table, form, audit)
        audits.append(audit)
    audit = merge_audits(audits)
    audit.kept = len(groups)
    return groups, audit


def streams(paths: Sequence[str]) -> bool:
    """Whether `read_on_disk` takes these paths: local files of JSON lines, each used as a whole."""
    return bool(paths) and all(parse_weight(p).path == p and json_lines(p) is not None for p in paths)


def load(path: str, *, offline: bool = False, split: str | None = None) -> list[Loaded]:
    """Every table of one path, read and audited; what is behind `read` and `trueline check`."""
    return [_read_table(table) for table in open_tables(path, offline=offline, split=split)]


@functools.cache
def formats() -> tuple[Format, ...]:
    """The formats of this folder's files, in alphabetical order of the files."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules([str(Path(__file__).parent)])
    )
    return tuple(m.FORMAT for m in modules if hasattr(m, "FORMAT"))


def sniff(table: Table) -> tuple[Format, list[str]]:
    """The format of a table, and the names of others that fit no worse.

    A format fits if its columns are there and its content test passes; one that needs a subset of another's columns
    gives way to it. Among what is left more columns win, then priority.
    """
    rows: list[Values] = list(table.rows[:SNIFFED_ROWS])
    columns = set(table.columns)
    fitting = [f for f in formats() if columns >= set(f.columns) and f.fits(rows)]
    best = [f for f in fitting if not any(set(f.columns) < set(other.columns) for other in fitting)]
    if not best:
        raise TruelineError(_no_format(table))
    best.sort(key=lambda f: (-len(f.columns), -f.priority, f.name))
    _refuse_misspelling(best[0], table)
    return best[0], [f.name for f in best[1:]]


def _refuse_misspelling(form: Format, table: Table) -> None:
    """{prompt, choosen, rejected} is not a file of bare prompts: a richer type that fails by spelling alone was meant."""
    for richer in formats():
        missing = [c for c in richer.columns if c not in table.columns]
        meant = {c: _misspelt(c, table) for c in missing}
        if missing and set(form.columns) < set(richer.columns) and all(meant.values()):
            renamed = ", ".join(f"'{seen}' to '{c}'" for c, seen in meant.items())
            raise TruelineError(
                f"'{table.path}' has the columns of {form.name}, but also {', '.join(map(repr, meant.values()))}: that looks "
                f"like a misspelt {richer.name} file. Rename {renamed}; if {form.name} was meant, give the column another name."
            )


def _misspelt(column: str, table: Table) -> str:
    """The column of the table that is probably `column` misspelt, or ''."""
    free = [seen for seen in table.columns if all(seen not in form.columns for form in formats())]
    free = [seen for seen in free if column not in re.split(r"[_\W]", seen)]  # prompt_id is no misspelt prompt
    seen = max(free, key=lambda seen: _alike(column, seen), default="")
    return seen if _alike(column, seen) >= SIMILAR else ""


def _no_format(table: Table) -> str:
    """Which columns were seen, which known format comes nearest and what it misses."""

    def closeness(form: Format) -> tuple[float, float]:
        best = [max((_alike(c, seen) for seen in table.columns), default=0.0) for c in form.columns]
        return sum(b for b in best if b >= SIMILAR), sum(best) / len(best)

    form = max(formats(), key=closeness)
    missing = [c for c in form.columns if c not in table.columns]
    hints = [f"'{seen}' looks like '{c}'" for c in missing if (seen := _misspelt(c, table))]
    hint = f" ({'; '.join(hints)}: rename it)" if hints else ""
    return (
        f"'{table.path}' fits no known data format. Columns seen: {', '.join(map(repr, table.columns)) or 'none'}. The "
        f"nearest known type is {form.name}, which needs {', '.join(map(repr, form.columns))}; missing: "
        f"{', '.join(map(repr, missing)) or 'nothing, but the content does not match'}{hint}. All types: docs/data.md."
    )


def _alike(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _read_table(table: Table) -> Loaded:
    form, also = sniff(table)
    audit = _opening(table, form, also)
    groups = list(_usable(table, form, zip(table.numbers, table.rows, strict=True), audit, _Seen()))
    audit.kept = len(groups)
    _note_contradictions(groups, audit)
    _refuse_none(table, form, audit)
    unread = [c for c in table.columns if c not in form.columns and c not in form.uses and not form.sampled]
    return Loaded(table.path, table.kind, form.name, table.columns, len(table.rows), groups, audit, also, unread)


def _opening(table: Table, form: Format, also: list[str]) -> Audit:
    audit = Audit()
    if also:
        audit.note(f"read as {form.name}; the columns also fit {', '.join(also)}", table.name)
    return audit


def _usable(
    table: Table, form: Format, rows: Iterable[tuple[int, dict[str, Any]]], audit: Audit, seen: _Seen
) -> Iterator[Group]:
    """The group of every (number, row) that can be used, in order; the rest is counted."""
    name = table.name
    for number, values in rows:
        audit.read += 1
        row = Row(values, f"{table.path}:{number}", f"{name}:{number}", form, audit)
        try:
            group = form.read(row)
        except Unusable as trouble:
            audit.drop(trouble.reason, row.origin, trouble.detail)
            continue
        if not form.sampled and (again := seen.first(_content(group), row.origin, number)) != row.origin:
            audit.drop("duplicate row", row.origin, f"same as {again}")
            continue
        _check_rendering(row, group)
        yield group


def _refuse_none(table: Table, form: Format, audit: Audit) -> None:
    if not audit.kept:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in audit.dropped.items())
        raise TruelineError(
            f"'{table.path}' was read as {form.name}, and none of its {audit.read} rows can be used: {reasons}."
        )


class _Seen:
    """Which contents a file has held, and where first."""

    def __init__(self) -> None:
        self._origins: dict[str, str] = {}

    def first(self, content: str, origin: str, number: int) -> str:
        """Where this content stood first: `origin` where it is new."""
        return self._origins.setdefault(content, origin)


class _DigestsSeen(_Seen):
    """The same in few bytes a row, and which pairs were seen in which order."""

    def __init__(self, name: str) -> None:
        self._name, self._rows, self._pairs = name, Digests(), Digests()

    def first(self, content: str, origin: str, number: int) -> str:
        digest = bytes.fromhex(content)[:DIGEST_BYTES]
        if (before := self._rows.get(digest)) is not None:
            return f"{self._name}:{before}"
        self._rows.set(digest, number)
        return origin

    def contradicts(self, group: Group, audit: Audit) -> None:
        """What `_note_contradictions` does, a group at a time."""
        if [r.rank for r in group.responses] == [0, 1]:
            best, worst = (r.text for r in group.responses)
            key = group.prompt_key()
            own, opposite = _pair_digest(key, best, worst), _pair_digest(key, worst, best)
            if (number := self._pairs.get(opposite)) is not None:
                audit.note("same pair with the opposite order", group.origin, f"against {self._name}:{number}")
            self._pairs.set(own, int(group.origin.rpartition(":")[2]))


def _pair_digest(prompt_key: str, best: str, worst: str) -> bytes:
    body = f"{prompt_key}{len(best)}:{best}{worst}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]


def _check_rendering(row: Row, group: Group) -> None:
    """Columns named `tools` and `chat_template_kwargs` reach the chat template; text in them must be JSON."""
    for column, kind in zip(RENDERING, (list, dict), strict=True):
        value = group.extras.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise row.wrong_type(column, value, f"JSON ({error})") from error
        if value in (None, "", [], {}):
            group.extras.pop(column, None)
        elif isinstance(value, kind):
            group.extras[column] = value
        else:
            raise row.wrong_type(column, value, f"a {kind.__name__}")


def _content(group: Group) -> str:
    """Hash of what a row teaches: prompt, responses, their order, labels and scores."""
    body: list[Any] = [group.prompt]
    body += [[r.text, r.messages, r.label, r.rank, r.reward, r.judgment] for r in group.responses]
    text = json.dumps(body, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _note_contradictions(groups: list[Group], audit: Audit) -> None:
    """Count pairs that stand in the same file with the opposite order: at most one of them is right."""
    seen: dict[tuple[str, str, str], str] = {}
    for group in groups:
        if [r.rank for r in group.responses] == [0, 1]:
            key, (best, worst) = group.prompt_key(), (r.text for r in group.responses)
            if other := seen.get((key, worst, best)):
                audit.note("same pair with the opposite order", group.origin, f"against {other}")
            seen[key, best, worst] = group.origin


def _share(groups: list[Group], weight: float) -> list[Group]:
    whole, fraction = int(weight), weight - int(weight)
    count = round(fraction * len(groups))
    if weight < 1:
        count = max(count, 1)
    order = sorted(range(len(groups)), key=lambda i: (_content(groups[i]), i))[:count]
    return groups * whole + [groups[i] for i in sorted(order)]


def merge_audits(audits: Sequence[Audit]) -> Audit:
    """One audit over the files of a run: counts added."""
    total = Audit()
    for audit in audits:
        total.absorb(audit)
    total.read = sum(audit.read for audit in audits)
    total.kept = sum(audit.kept for audit in audits)
    return total
