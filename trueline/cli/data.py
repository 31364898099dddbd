"""`trueline check`: what is in a data file, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from trueline.errors import TruelineError


def check(
    data: Annotated[list[str], typer.Argument(help="Files, folders or hub ids; several are also checked for overlap.")],
    model: Annotated[str | None, typer.Option(help="Encode as this model would: lengths in tokens, masks.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Prompt plus response, tokens.")] = None,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Prompt alone, tokens.")] = None,
    max_response_length: Annotated[int | None, typer.Option(min=1, help="Response alone, tokens.")] = None,
    truncation: Annotated[
        Literal["keep_end", "keep_start", "drop"] | None, typer.Option(help="What stays of an over-long prompt.")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put before conversations that have none.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="A Jinja file that replaces the model's template.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a hub data set.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what is in a data file, what is wrong with it, and show its first sample with its masks."""
    from trueline import check as checking
    from trueline.encode import Limits

    wanted: dict[str, Any] = {
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
        "max_response_length": max_response_length,
        "truncation": truncation,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    result = checking.check(
        data,
        model,
        Limits(**given) if given else None,
        offline=offline,
        split=split,
        system_prompt=system_prompt,
        chat_template=_text(chat_template) if chat_template else None,
    )
    if as_json:
        print(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    else:
        checking.render(result, Console())


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TruelineError(f"The chat template '{file}' cannot be read: {error}.") from None
