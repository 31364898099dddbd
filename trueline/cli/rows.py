"""`trueline sample` and `trueline score`: a file through a model or judge, over processes or a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trueline.cli.study import Ray, Workers
from trueline.workers import Crew

Data = Annotated[list[str], typer.Option(help="Files, folders or hub ids. May be repeated.")]
Output = Annotated[Path, typer.Option(help="JSON-lines file; a command that was stopped goes on beside it.")]
MaxLength = Annotated[int, typer.Option(min=2, help="Prompt plus response, tokens.")]
Block = Annotated[int, typer.Option(min=1, help="Rows a piece of work; what one worker loses when it dies.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask a hub.")]


def sample(
    model: Annotated[str, typer.Option(help="A folder, a run or a hub id.")],
    data: Data,
    output: Output,
    samples: Annotated[int, typer.Option(min=1, help="Responses a prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the smallest set of tokens with this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many tokens; 0: from all.")] = 0,
    max_length: MaxLength = 1024,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response; default: half of that.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="At most so many prompts of the data.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Names every random stream.")] = 0,
    block: Block = 64,
    workers: Workers = None,
    ray: Ray = None,
    offline: Offline = False,
) -> None:
    """Sample responses to every prompt of a file, with their log-probs; --data reads what it writes."""
    from trueline import rows

    asked = rows.Sampling(
        model=model,
        data=tuple(data),
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        prompts=prompts,
        seed=seed,
        block=block,
        offline=offline,
    )
    _say(rows.sample(asked, output, Crew(workers, ray)))


def score(
    data: Data,
    output: Output,
    model: Annotated[str | None, typer.Option(help="Whose log-probs of the responses are written.")] = None,
    reference: Annotated[str | None, typer.Option(help="A model whose log-probs stand beside.")] = None,
    feedback: Annotated[
        list[str] | None, typer.Option(help="Judges (reward:RUN, lab, rule:MODULE:FUNCTION, ...). May be repeated.")
    ] = None,
    max_length: MaxLength = 1024,
    block: Block = 64,
    workers: Workers = None,
    ray: Ray = None,
    offline: Offline = False,
) -> None:
    """Score every response of a file: log-probs under a model, rewards of judges."""
    from trueline import rows

    asked = rows.Scoring(
        data=tuple(data),
        model=model,
        reference=reference,
        feedback=tuple(feedback or ()),
        max_length=max_length,
        block=block,
        offline=offline,
    )
    _say(rows.score(asked, output, Crew(workers, ray)))


def _say(written: Path) -> None:
    Console(stderr=True).print(f"Rows: {written}", soft_wrap=True, highlight=False, markup=False)
