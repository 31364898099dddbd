"""`trueline serve`: a model behind the OpenAI API, answering by any decoding method."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from trueline.errors import TruelineError


def serve(
    model: Annotated[str, typer.Option(help="The policy: a folder, a run or a hub id.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(help="A reward (reward:RUN, length:20-60, ...; ::0.5 is its weight). May be repeated."),
    ] = None,
    second_model: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a model to mix or look ahead with. May be repeated.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="The method that answers where a request names none; a+b composes.")
    ] = "plain",
    options: Annotated[str, typer.Option(help="The method's options as JSON, such as '{\"n\": 8}'.")] = "{}",
    allow: Annotated[
        list[str] | None, typer.Option(help="A method clients may ask for; default: all that can run. May be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Model id of the API; default: the folder's name.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; without a key only this machine's own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="TRUELINE_API_KEY", help="A key that opens the server. May be repeated.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Prompt plus answer, tokens.")] = 2048,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 1024,
    max_rows: Annotated[int, typer.Option(min=1, help="Choices and candidates computed at once.")] = 64,
    max_prompts: Annotated[int, typer.Option(min=1, help="Prompts open at once; beyond, clients get 429.")] = 64,
    max_body: Annotated[float, typer.Option(min=0.001, help="Longest body of a request, megabytes.")] = 4.0,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longest work on one prompt.")] = 600.0,
    drain: Annotated[float, typer.Option(min=0.0, help="Seconds that open answers get after SIGTERM.")] = 30.0,
    prefix_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of earlier prompts kept for those that begin alike.")
    ] = 16384,
    prefix_rewards: Annotated[
        bool, typer.Option("--prefix-rewards", help="Rewards of text may be asked about unfinished answers.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub.")] = False,
) -> None:
    """Serve a model to any OpenAI client, with alignment at decoding time; a page for trying it is at /."""
    try:
        import fastapi  # noqa: F401
        import llguidance  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise TruelineError(f"trueline serve needs {error.name}: pip install 'trueline[serve]'.") from None
    from trueline.serving.host import Limits
    from trueline.serving.keys import Keys, check_exposure
    from trueline.serving.loading import Settings, open_host
    from trueline.serving.server import bind, run

    keys = Keys(api_key or [])
    check_exposure(host, keys)
    console = Console(stderr=True, highlight=False)
    try:
        listener = bind(host, port)
    except OSError as error:
        raise TruelineError(f"Cannot listen on {host}:{port}: {error.strerror}. Give another --port.") from None
    limits = Limits(
        body=int(max_body * 1e6),
        new_tokens=max_new_tokens,
        prompts=max_prompts,
        rows=max_rows,
        seconds=max_seconds,
        drain=drain,
    )
    settings = Settings(
        model=model,
        name=name,
        rewards=reward or [],
        second_models=second_model or [],
        methods=allow or [],
        method=method,
        options=_options(options),
        max_length=max_length,
        prefix_tokens=prefix_tokens,
        prefix_rewards=prefix_rewards,
        offline=offline,
        limits=limits,
    )
    with listener:
        opened = open_host(settings)
        bound = listener.getsockname()
        place = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        runs = [known for known, facts in opened.capabilities.items() if facts["runs"]]
        console.print(
            f"Serving '{opened.name}' at http://{place}:{bound[1]}/v1 (page: http://{place}:{bound[1]}/)",
            markup=False,
            soft_wrap=True,
        )
        console.print(f"Answers by {opened.method}; also: {', '.join(runs)}", markup=False, soft_wrap=True)
        if not keys:
            console.print("No API key: only this machine is served.", markup=False)
        run(opened, keys, listener)
    console.print("Drained.", markup=False)


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise TruelineError(f"--options is not JSON: {error}. Expected an object such as '{{\"n\": 8}}'.") from None
    if not isinstance(found, dict):
        raise TruelineError(f"--options is {text[:60]}; expected an object such as '{{\"n\": 8}}'.")
    return found
