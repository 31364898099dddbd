"""`trueline curate NAME`: rows chosen from data or made by models, with the reason for every one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trueline.errors import TruelineError


def curate(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The curator; --list shows all.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Files, folders or hub ids. May be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows, decisions, manifest and page.")] = Path("curated"),
    model: Annotated[str | None, typer.Option(help="The model that scores or writes: a folder, or MODEL@URL.")] = None,
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Evaluation files: rows whose prompt stands in them are dropped.")
    ] = None,
    keep_overlap: Annotated[bool, typer.Option("--keep-overlap", help="Count such rows, but keep them.")] = False,
    budget: Annotated[str | None, typer.Option(help="Rows to take: 500, or a share such as 0.5 or 50%.")] = None,
    threshold: Annotated[float | None, typer.Option(help="The worst score that may be taken.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Prompt plus response for --model, tokens.")] = 1024,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of --model, tokens.")] = 512,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of sampling, instead of the method's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Names every random stream.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a finished curation.")] = False,
    show_all: Annotated[bool, typer.Option("--list", help="List the curators and what each reads.")] = False,
) -> None:
    """Choose rows, or make them, and say why. A curator's own options follow as --OPTION VALUE."""
    if show_all:
        _list()
        return
    if name is None:
        raise TruelineError("Which curator? `trueline curate --list` shows all.")
    options = _options(name, context.args)
    from trueline.curating import Request
    from trueline.curating import curate as run

    done = run(
        Request(
            name,
            data or [],
            output,
            model=model,
            eval_data=eval_data or [],
            keep_overlap=keep_overlap,
            options=options,
            budget=budget,
            threshold=threshold,
            seed=seed,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            offline=offline,
            overwrite=overwrite,
        )
    )
    console = Console(highlight=False)
    table = Table(box=None)
    table.add_column("Rows", justify="right")
    table.add_column("")
    for what, count in done.counts.items():
        table.add_row(f"{count:,}", what)
    console.print(table)
    for note in done.notes:
        console.print(note, markup=False)
    for label, path in [*(("Rows", f) for f in done.files), ("Manifest", done.manifest), ("Page", done.page)]:
        console.print(f"{label}: {path}", soft_wrap=True, markup=False)


def _options(name: str, tokens: list[str]) -> dict[str, Any]:
    """The curator's own options, checked against its signature."""
    from trueline.catalogue import entry, names
    from trueline.cli.flags import parse
    from trueline.cli.measure import _typed
    from trueline.errors import nearest

    if name not in names("curate"):
        raise TruelineError(f"There is no curator '{name}'. {nearest(name, names('curate'))}")
    known = {o.name: o for o in entry("curate", name).options}
    word, given = parse(tokens)
    if word is not None:
        raise TruelineError(f"'{word}' stands alone. One curator at a time; data go after --data.")
    found = {}
    for written, value in given.items():
        option = written.replace("-", "_")
        if option not in known:
            hint = nearest(option, known) if known else "It has none."
            raise TruelineError(f"{name} has no option '{written}'. {hint}")
        found[option] = _typed(value, known[option].type, f"{name}.{option}")
    return found


def _list() -> None:
    from trueline.catalogue import entries

    table = Table("Curator", "What it is", "Reads", "Model", "Options", box=None)
    for e in entries("curate"):
        options = ", ".join(f"{o.name}={o.default!r}" for o in e.options)
        table.add_row(e.name, e.summary, str(e.declared["reads"]), str(e.declared.get("model", "none")), options)
    Console().print(table)
