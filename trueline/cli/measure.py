"""`trueline measure NAME`: one measure on files, run folders or models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from trueline.errors import TruelineError


def measure(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="The measure; --list shows all. 'all' takes a --suite, 'framework' compares runs."),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Files or run folders. May be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to measure: a folder, a run or a hub id.")] = None,
    model_b: Annotated[str | None, typer.Option(help="The opponent, reference or base.")] = None,
    feedback: Annotated[
        list[str] | None, typer.Option(help="A judge (reward:RUN, lab, ...); a second one is gold to the first.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for JSON, items and page.")] = Path("measured"),
    samples: Annotated[int, typer.Option(min=1, help="Responses a prompt, where the model is sampled.")] = 1,
    prompts: Annotated[int | None, typer.Option(min=1, help="At most so many rows of the data.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Prompt plus response, tokens.")] = 1024,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest sampled response, tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of sampling; ifeval, honesty and token_shift are greedy by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Names every random stream.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
    suite: Annotated[str | None, typer.Option(help="With 'all': safety, preference or style.")] = None,
    show_all: Annotated[bool, typer.Option("--list", help="List the measures and what each reads.")] = False,
) -> None:
    """Measure one thing, with its interval. A measure's own options follow as --OPTION VALUE."""
    if show_all:
        _list()
        return
    if name is None:
        raise TruelineError("Which measure? `trueline measure --list` shows all.")
    if name == "framework":
        _framework(data or [], output, bool(context.args or model or model_b or feedback or suite))
        return
    if (name == "all") != (suite is not None):
        raise TruelineError("'all' and --suite belong together: trueline measure all --suite safety|preference|style.")
    options = {} if name == "all" else _options(name, context.args)
    if name == "all" and context.args:
        raise TruelineError(f"'all' takes no options of single measures; found {' '.join(context.args)}.")
    from trueline.measuring import Request, page
    from trueline.measuring import measure as run
    from trueline.measuring.suite import GREEDY

    request = Request(
        name,
        data=data or [],
        model=model,
        model_b=model_b,
        feedback=feedback or [],
        options=options,
        samples=samples,
        prompts=prompts,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        temperature=temperature if temperature is not None else 0.0 if name in GREEDY else 1.0,
        seed=seed,
        offline=offline,
    )
    if suite is not None:
        _suite(suite, request, temperature, output)
        return
    readings = run(request)
    from trueline.catalogue import entry

    console = Console()
    table = Table(box=None)
    for heading in page.HEADINGS:
        table.add_column(heading, no_wrap=heading in ("Reading", "Value", "95 % interval"))
    for reading in readings:
        table.add_row(*page.cells(reading))
    console.print(table)
    written = page.save(output, entry("measure", name), readings, options)
    console.print(f"Page: {written}", soft_wrap=True, highlight=False, markup=False)


def _suite(suite: str, request: Any, temperature: float | None, output: Path) -> None:
    """Every measure of a suite that the inputs allow, and what was skipped."""
    from trueline.measuring import page
    from trueline.measuring.suite import run, save

    console = Console()
    found = run(suite, request, temperature=temperature, note=lambda name: console.print(f"[dim]{name}[/]"))
    table = Table(box=None)
    for heading in ("Measure", *page.HEADINGS):
        table.add_column(heading, no_wrap=heading in ("Reading", "Value"))
    for name, readings in found.readings.items():
        for reading in readings:
            table.add_row(name, *page.cells(reading))
    console.print(table)
    for name, why in found.skipped.items():
        console.print(f"skipped {name}: {why}", highlight=False, markup=False)
    console.print(f"Page: {save(found, output)}", soft_wrap=True, highlight=False, markup=False)


def _framework(runs: list[str], output: Path, more: bool) -> None:
    """One table of runs: detection, quality, efficiency, robustness."""
    if not runs or more:
        raise TruelineError("framework reads run folders and nothing else: --data RUN [RUN...].")
    from trueline.measuring.framework import BLOCKS, framework, save, shown

    names, found = framework(runs)
    table = Table("", *names, box=None)
    for block in BLOCKS:
        for metric, row in found[block].items():
            table.add_row(f"{block}: {metric}", *(shown(row.get(n)) for n in names))
    console = Console()
    console.print(table)
    console.print(f"Page: {save(runs, output)}", soft_wrap=True, highlight=False, markup=False)


def _options(name: str, tokens: list[str]) -> dict[str, Any]:
    """The measure's own options, checked against its signature."""
    from trueline.catalogue import entry, names
    from trueline.cli.flags import parse
    from trueline.errors import nearest

    if name not in names("measure"):
        raise TruelineError(f"There is no measure '{name}'. {nearest(name, names('measure'))}")
    known = {o.name: o for o in entry("measure", name).options}
    word, given = parse(tokens)
    if word is not None:
        raise TruelineError(f"'{word}' stands alone. One measure at a time; data go after --data.")
    found = {}
    for written, value in given.items():
        option = written.replace("-", "_")
        if option not in known:
            raise TruelineError(
                f"{name} has no option '{written}'. {nearest(option, known) if known else 'It has none.'}"
            )
        found[option] = _typed(value, known[option].type, f"{name}.{option}")
    return found


def _typed(value: Any, type_text: str, what: str) -> Any:
    """The value as the type that the measure's signature names; one value is also a list of one."""
    from pydantic import TypeAdapter, ValidationError

    annotation = eval(type_text, {"Literal": Literal})  # the text comes from this package's own files
    several = type_text.startswith(("tuple", "list"))
    if several and not isinstance(value, list):
        value = [value]
    try:
        if isinstance(value, bool) and type_text != "bool":
            raise TruelineError(f"{what} stands without a value; expected {type_text}.")
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise TruelineError(f"{what} = {value!r}: expected {type_text}; {error.errors()[0]['msg']}.") from None


def _list() -> None:
    from trueline.catalogue import entries

    table = Table("Measure", "What it is", "Reads", "Options", box=None)
    for e in entries("measure"):
        options = ", ".join(f"{o.name}={o.default!r}" for o in e.options)
        table.add_row(e.name, e.summary, str(e.declared["takes"]).replace("_", " "), options)
    Console().print(table)
