"""`trueline align`: options from a recipe and flags, then the run; and the help, which reads the catalogue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trueline.cli import flags
from trueline.errors import TruelineError
from trueline.launch import is_first

USAGE = "trueline align [RECIPE] [--OPTION VALUE]... [FAMILY.METHOD.OPTION=VALUE]..."


def align(context: typer.Context) -> None:
    """Align a model: train it on preferences, rewards or demonstrations, offline or online."""
    if not context.args or "--help" in context.args or "-h" in context.args:
        print_help(Console())
        return
    from trueline.options import Layer, resolve_layers
    from trueline.recipe import read_recipe

    recipe, given = _recipe(*flags.parse(context.args))
    values = read_recipe(recipe) if recipe else {}
    if recipe and "stages" in values:
        _in_stages(values, recipe, given)
        return
    layers = [Layer(values, recipe)] if recipe else []
    resolved = resolve_layers(*layers, Layer(given, "command line"))
    for note in resolved.notes if is_first(os.environ) else ():
        Console(stderr=True).print(note, soft_wrap=True, highlight=False)
    from trueline.align import align as run

    result = run(**resolved.config.model_dump())
    _say_where(result.status, result.folder)
    if result.status == "interrupted":
        raise typer.Exit(130)


def _in_stages(values: dict[str, Any], recipe: str, given: dict[str, Any]) -> None:
    """A recipe with stages: one run after another, each on the model of the one before."""
    from trueline.stages import align_stages

    runs = align_stages(values, recipe, **given)
    for run in runs:
        _say_where(run.status, run.folder)
    if not runs:
        Console(stderr=True).print("Every stage was finished before; nothing was run.")
    if runs and runs[-1].status == "interrupted":
        raise typer.Exit(130)


def _recipe(first: str | None, given: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The recipe, whether it stands first or behind --recipe, and the other options."""
    flagged = given.pop("recipe", None)
    if flagged is None:
        return first, given
    if first is not None or not isinstance(flagged, str):
        raise TruelineError("--recipe takes one file or name, and a recipe that stands first is one already. Keep one.")
    return flagged, given


def _say_where(status: str, folder: Path) -> None:
    """The last lines of a run: where its model and its report are, or how to go on with it."""
    if not is_first(os.environ):
        return
    last = {
        "finished": [f"Model: {folder}", f"Report: {folder / 'trueline' / 'report.html'}"],
        "interrupted": [f"Interrupted and saved; --resume goes on: {folder}"],
    }
    for line in last.get(status, []):
        Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


def print_help(console: Console) -> None:
    """Every option of the run and of every method, from their one description."""
    from trueline import catalogue
    from trueline.config import SECTIONS, AlignConfig
    from trueline.options import FAMILIES, type_text

    console.print(f"[bold]Usage:[/bold] {USAGE.replace('[', chr(92) + '[')}")
    console.print(
        "\nThe recipe is a YAML file with the same names, or the name of one that comes along (trueline methods lists them); "
        "flags override it. --recipe NAME is the same. Hyphens and underscores are the same. "
        "Names of Hugging Face Trainer and TRL options are understood where they mean the same thing.\n"
    )
    for title, names in SECTIONS.items():
        table = _table(title, "Meaning")
        for name in names:
            if name == "method_options":  # a block for recipes and Python; flags name the options themselves
                continue
            field = AlignConfig.model_fields[name]
            default = "required" if field.is_required() else field.get_default(call_default_factory=True)
            _row(table, name, type_text(field.annotation), default, field.description or "")
        console.print(table)
    for family in FAMILIES:
        table = _table(f"Options of {family}", "Method")
        for entry in catalogue.entries(family):
            for i, option in enumerate(entry.options):
                default = "required" if option.required else option.default
                _row(table, option.name, option.type, default, entry.name if i else f"{entry.name}: {entry.summary}")
        if table.row_count:
            console.print(table)
    console.print(
        "A method's option has its bare name (--beta 0.2), or its dotted one where two chosen methods share it "
        "(--objectives.dpo.beta 0.2). `trueline methods` lists the methods."
    )


def _table(title: str, last: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, expand=True, padding=(0, 1))
    table.add_column("Option", no_wrap=True, header_style="dim")
    table.add_column("Type = default", ratio=4, overflow="fold", header_style="dim")
    table.add_column(last, ratio=7, overflow="fold", header_style="dim")
    return table


def _row(table: Table, name: str, kind: str, default: object, meaning: str) -> None:
    value = " ".join(default) if isinstance(default, list) else default
    shown = kind if value in (None, "", {}) else f"{kind} = {value}"
    table.add_row(Text(f"--{name.replace('_', '-')}", style="cyan"), Text(shown), Text(meaning))
