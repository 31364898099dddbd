"""`trueline new-model`, `merge`, `chat` and `env`: models in and out, and the machine they run on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new_model(
    data: Annotated[list[str], typer.Option(help="Any readable data file; its texts are used. May be repeated.")],
    output: Annotated[Path, typer.Option(help="The model folder to write.")],
    size: Annotated[str, typer.Option(help="All parameters: 500k, 5m, 40m, 1.2b.")] = "5m",
    vocab_size: Annotated[int | None, typer.Option(min=1, help="Tokens; default: from the size.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Names every random stream.")] = 0,
    steps: Annotated[int | None, typer.Option(min=0, help="Pre-training steps; default: about a minute.")] = None,
) -> None:
    """Make a small Hugging Face model and its tokenizer from text, for machines without a hub."""
    from trueline.newmodel import new_model as make

    make(data, size=size, output=output, vocab_size=vocab_size, seed=seed, steps=steps)


def merge(
    adapter: Annotated[str, typer.Argument(help="An adapter folder, such as a LoRA run.")],
    output: Annotated[Path, typer.Option(help="The model folder to write.")],
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
) -> None:
    """Fold an adapter into its base model, so that plain Hugging Face code loads it."""
    from trueline.models import merge as fold

    print(f"Model: {fold(adapter, output, offline=offline)}")


def chat(
    run: Annotated[str, typer.Argument(help="A run folder, a model folder or a hub id.")],
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Names the random stream.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
) -> None:
    """Talk to a model in the terminal."""
    from trueline.repl import chat as talk

    talk(run, system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, offline=offline)


def env() -> None:
    """Print versions and hardware, for bug reports."""
    from trueline.environment import environment_text

    print(environment_text())
