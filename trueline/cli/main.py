"""The command `trueline`: its commands, and what happens to errors.

Commands are thin: they parse, call one function of the package, and print. Heavy imports happen inside them, so that
`trueline --help` needs neither torch nor transformers. Exit codes: 0 done, 2 something the user can mend (one message,
no traceback), 130 interrupted; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from trueline import __version__
from trueline.cli import align, curate, data, lab, measure, methods, models, rows, runs, serve, study
from trueline.errors import TruelineError

app = typer.Typer(
    name="trueline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Get a model true, and measure how far off the line it still is.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"trueline {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Get a model true, and measure how far off the line it still is."""


# align reads its own flags: they are the options of the run and of every method, which typer need not know.
app.command(
    "align",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(align.align)
app.command("check")(data.check)
app.command("compare")(runs.compare)
app.command("measure", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(measure.measure)
app.command("curate", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(curate.curate)
app.command("sample")(rows.sample)
app.command("score")(rows.score)
app.command("report")(runs.report)
app.command("methods")(methods.methods)
app.command("new-model")(models.new_model)
app.command("merge")(models.merge)
app.command("chat")(models.chat)
app.command("env")(models.env)
app.command("serve")(serve.serve)
app.command("demo")(lab.demo)
app.add_typer(study.study, name="study")


def main() -> None:
    """Run the command line; the console script and `python -m trueline` come here."""
    try:
        app()
    except TruelineError as error:
        message = Text("error: ", style="bold red").append(str(error), style="default not bold")
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        sys.exit(130)
