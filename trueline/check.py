"""`trueline check`: what is in a file, what is wrong with it, and what a model would be shown.

`check` reads the files as a run would, and with a model's tokenizer encodes them as a run would, so that every count
here is the count of the run. `render` prints the result. A file that no run could use raises TruelineError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from trueline.encode import Limits, check_vocabulary, describe_first, encode, length_summary, overlap, percentiles
from trueline.errors import TruelineError
from trueline.groups import Audit, Group, prompt_text
from trueline.readers import Loaded, load
from trueline.readers.files import parse_weight


@dataclass
class FileReport:
    """One table. lengths are tokens with a model, else characters; responses: how many groups have how many.

    steps: of stepwise data: labelled steps, good ones, and responses with a bad step; empty for other data.
    described: agreement, label noise, length and position bias, dimensions, near-duplicates, languages, as far as the
    data tell (`trueline/curating/describing.py`).
    """

    path: str
    kind: str
    format: str
    columns: list[str]
    rows: int
    groups: int
    audit: Audit
    duplicates: int
    lengths: dict[str, dict[str, float]]
    responses: dict[int, int]
    also_fits: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckResult:
    """What `trueline check` found. unit: of all lengths. sample: the first group as a run would see it.

    overlaps: (file, file, number of prompts in both), only where there are any.
    """

    files: list[FileReport]
    unit: str
    overlaps: list[tuple[str, str, int]]
    sample: Group
    tokenizer: Any = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokenizer, JSON-ready."""
        return {
            "files": [asdict(file) for file in self.files],
            "unit": self.unit,
            "overlaps": [list(found) for found in self.overlaps],
            "sample": self.sample.to_json(),
        }


def check(
    paths: Sequence[str],
    model: str | None = None,
    limits: Limits | None = None,
    *,
    offline: bool = False,
    split: str | None = None,
    system_prompt: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> CheckResult:
    """Audit of files, folders or hub ids; with a model's tokenizer also lengths in tokens and the rendered sample.

    chat_template is template text that replaces the tokenizer's. Raises TruelineError if a file cannot be used at all.
    """
    if not paths:
        raise TruelineError("No data were given. Name at least one file, folder or hub id.")
    rendering: dict[str, Any] = {
        "limits": limits,
        "system_prompt": system_prompt,
        "chat_template": chat_template,
        "chat_template_kwargs": chat_template_kwargs,
    }
    if model is None and (inert := [name for name, value in rendering.items() if value]):
        raise TruelineError(f"{inert[0]} has no effect without a model. Give --model, or leave it out.")
    tokenizer, eos_ids = _tokenizer(model, chat_template, offline) if model else (None, [])
    reports: list[FileReport] = []
    everything: list[tuple[str, list[Group]]] = []
    for path in paths:
        for table in load(parse_weight(path).path, offline=offline, split=split):
            groups, audit = table.groups, table.audit
            if tokenizer is not None:
                groups, later = encode(
                    groups,
                    tokenizer,
                    limits or Limits(),
                    eos_ids=eos_ids,
                    system_prompt=system_prompt,
                    chat_template_kwargs=chat_template_kwargs,
                )
                audit.absorb(later)
                if not groups:
                    raise TruelineError(f"'{table.path}': no row is left after encoding: {_counts(audit.dropped)}.")
            lengths = length_summary(groups) if tokenizer is not None else _characters(groups)
            reports.append(_report(table, groups, audit, lengths))
            everything.append((table.path, groups))
    overlaps = [(a, b, n) for (a, left), (b, right) in combinations(everything, 2) if (n := overlap(left, right))]
    return CheckResult(
        reports, "tokens" if tokenizer is not None else "characters", overlaps, everything[0][1][0], tokenizer
    )


def _report(table: Loaded, groups: list[Group], audit: Audit, lengths: dict[str, dict[str, float]]) -> FileReport:
    from trueline.curating.describing import describe

    responses: dict[int, int] = {}
    for group in groups:
        responses[len(group.responses)] = responses.get(len(group.responses), 0) + 1
    return FileReport(
        path=table.path,
        kind=table.kind,
        format=table.format,
        columns=table.columns,
        rows=table.rows,
        groups=len(groups),
        audit=audit,
        duplicates=audit.dropped.get("duplicate row", 0),
        lengths=lengths,
        responses=dict(sorted(responses.items())),
        also_fits=table.also_fits,
        unread=table.unread,
        steps=_steps(groups),
        described=describe(table.groups, audit.dropped.get("duplicate row", 0)),
    )


def _steps(groups: list[Group]) -> dict[str, int]:
    labelled = [g.extras["step_labels"] for g in groups if g.extras.get("step_labels")]
    if not labelled:
        return {}
    return {
        "labelled": sum(map(len, labelled)),
        "good": sum(map(sum, labelled)),
        "responses": len(labelled),
        "with_a_bad_step": sum(not all(labels) for labels in labelled),
    }


def _characters(groups: list[Group]) -> dict[str, dict[str, float]]:
    """Lengths of prompts and responses in characters, for a check without a tokenizer."""
    lengths = {
        "prompt": [len(prompt_text(g.prompt)) for g in groups],
        "response": [len(r.text) for g in groups for r in g.responses],
    }
    return {part: percentiles(values) for part, values in lengths.items() if values}


def _tokenizer(model: str, chat_template: str | None, offline: bool) -> tuple[Any, list[int]]:
    """The tokenizer of a model and the ids that end its responses, without loading any weight."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from trueline.vocabulary import find_eos_ids

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=offline)
        config = AutoConfig.from_pretrained(model, local_files_only=offline).get_text_config()
    except (OSError, ValueError) as error:
        raise TruelineError(f"The tokenizer of '{model}' cannot be loaded: {error}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    check_vocabulary(tokenizer, config.vocab_size)
    try:
        listed = GenerationConfig.from_pretrained(model, local_files_only=offline).eos_token_id
    except OSError:
        listed = config.eos_token_id
    listed = listed if isinstance(listed, list) else [listed]
    return tokenizer, find_eos_ids(tokenizer, listed, (), config.vocab_size, model)


def render(result: CheckResult, console: Any) -> None:
    """Print a result with rich."""
    for file in result.files:
        _render_file(file, result.unit, console)
    for first, second, count in result.overlaps:
        console.print(
            f"[yellow]{count} prompts stand in both {first} and {second}[/yellow]: do not train on one and judge on the other"
        )
    if result.tokenizer is not None:
        console.print(describe_first(result.sample, result.tokenizer))
        return
    from rich.markup import escape

    console.print(f"[bold]first sample · {escape(result.sample.origin)}[/bold] (--model shows it with its loss mask)")
    console.print(escape(_brief(prompt_text(result.sample.prompt))), style="dim")
    for response in result.sample.responses:
        told = {name: getattr(response, name) for name in ("rank", "label", "reward", "judgment")}
        facts = [*told.items(), ("steps", result.sample.extras.get("step_labels"))]
        head = " · ".join(f"{name} {value}" for name, value in facts if value is not None)
        console.print(f"[bold cyan]response · {escape(_brief(head))}[/bold cyan]")
        console.print(escape(_brief(response.text)), style="green")


def _render_file(file: FileReport, unit: str, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(file.path)}[/bold] · {file.kind} · read as [bold]{file.format}[/bold]")
    if file.also_fits:
        console.print(f"  its columns also fit {', '.join(file.also_fits)}")
    sizes = ", ".join(f"{count} with {k} response{'s' if k != 1 else ''}" for k, count in file.responses.items())
    console.print(f"  {file.rows} rows, {file.groups} groups ({sizes}); columns: {escape(', '.join(file.columns))}")
    if file.steps:
        console.print(
            f"  {file.steps['labelled']} labelled steps, {file.steps['good']} good; {file.steps['with_a_bad_step']} of "
            f"{file.steps['responses']} responses have a bad one. --objective process_rm learns from the steps; others read "
            "one thumb a response, up where every step is good"
        )
    if file.unread:
        console.print(f"  kept for rules and templates, not read by this format: {escape(', '.join(file.unread))}")
    from trueline.curating.describing import lines

    for line in lines(file.described):
        console.print(f"  {escape(line)}", highlight=False)
    for word, style, counts in (("dropped", "red", file.audit.dropped), ("noted", "yellow", file.audit.noted)):
        for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
            console.print(f"  [{style}]{word} {count}[/{style}]: {escape(reason)}")
            for example in file.audit.examples.get(reason, []):
                console.print(escape(f"      {example['origin']} {_brief(example['detail'], 100)}"), style="dim")
    table = Table("length", "5 %", "median", "95 %", "longest", title=f"lengths in {unit}", title_justify="left")
    for part, numbers in file.lengths.items():
        table.add_row(part, *(f"{numbers[key]:,.0f}" for key in ("p5", "p50", "p95", "max")))
    console.print(table)


def _brief(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in counts.items())
