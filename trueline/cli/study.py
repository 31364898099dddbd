"""`trueline study`: many runs under one protocol, with tables, figures and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueline.workers import Crew

study = typer.Typer(no_args_is_help=True, help="Studies: many runs under one protocol, with intervals and verdicts.")

Output = Annotated[Path | None, typer.Option(help="Folder; what an earlier, unfinished run left there is continued.")]
Seeds = Annotated[int | None, typer.Option(min=2, help="Seeds; default: those of the committed settings.")]
Quick = Annotated[bool, typer.Option("--quick", help="A tiny setting: shows that it works, proves nothing.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes, one thread each: 2 here, or all that a Ray cluster has room for.")
]
Ray = Annotated[str | None, typer.Option(help="Work on Ray: the address of a cluster, or local for one of its own.")]


@study.command("methods")
def methods(
    output: Output = None,
    seeds: Seeds = None,
    quick: Quick = False,
    workers: Workers = None,
    ray: Ray = None,
    only: Annotated[list[str] | None, typer.Option(help="These objectives alone (and dpo); repeat it.")] = None,
    sweep: Annotated[bool, typer.Option(help="Also move the learning rate and each method's strength.")] = True,
) -> None:
    """Every objective under one budget in the lab, offline and online side by side."""
    from trueline.studies.methods import study as run

    folder = str(output or "study-methods")
    run(folder, seeds=seeds, quick=quick, workers=Crew(workers, ray), only=tuple(only or ()), sweep=sweep)


@study.command("online-offline")
def online_offline(
    output: Output = None,
    seeds: Seeds = None,
    quick: Quick = False,
    workers: Workers = None,
    ray: Ray = None,
    model: Annotated[str | None, typer.Option(help="A model to study in place of the lab's.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Its pairs, which gold relabels. May be repeated.")] = None,
    golden: Annotated[
        str | None, typer.Option(help="Feedback that plays the truth: reward:RM, preference:PM, ...")
    ] = None,
    scale: Annotated[list[str] | None, typer.Option(help="Models of other sizes with its tokenizer.")] = None,
    steps: Annotated[int | None, typer.Option(min=4, help="Steps of an online run (own models).")] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="Prompt plus response, tokens (own models).")] = None,
    max_response_length: Annotated[int | None, typer.Option(min=1, help="Of a response, tokens (own models).")] = None,
) -> None:
    """Why fresh samples beat fixed pairs: item by item, in the lab or on your model (arXiv 2405.08448)."""
    from trueline.errors import TruelineError
    from trueline.studies.online_offline import study as run
    from trueline.studies.online_offline_subject import Own

    own = None
    if model or data or golden or scale:
        if not (model and data and golden):
            raise TruelineError("A study of your own model needs --model, --data and --golden, all three.")
        own = Own(model, tuple(data), golden, tuple(scale or ()))
    given = {"steps": steps, "max_length": max_length, "max_response_length": max_response_length}
    changes = {name: value for name, value in given.items() if value is not None}
    folder = str(output or "study-online-offline")
    run(folder, seeds=seeds, quick=quick, workers=Crew(workers, ray), own=own, changes=changes)


@study.command("ranking")
def ranking(
    output: Output = None, seeds: Seeds = None, quick: Quick = False, workers: Workers = None, ray: Ray = None
) -> None:
    """Observed against idealised ranking accuracy around DPO, IPO and PPO; flips by difficulty (arXiv 2405.19534)."""
    from trueline.studies.ranking import study as run

    run(str(output or "study-ranking"), seeds=seeds, quick=quick, workers=Crew(workers, ray))


@study.command("inference-aware")
def inference_aware(
    output: Output = None, seeds: Seeds = None, quick: Quick = False, workers: Workers = None, ray: Ray = None
) -> None:
    """Which reward transform wins which inference-time metric: closed forms, then the lab (arXiv 2412.19792)."""
    from trueline.studies.inference_aware import study as run

    run(str(output or "study-inference-aware"), seeds=seeds, quick=quick, workers=Crew(workers, ray))
