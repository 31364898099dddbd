"""A server in this process for tests: on a free port of 127.0.0.1, with its event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai

from trueline.serving.grammar import Grammars
from trueline.serving.host import Host, Limits
from trueline.serving.keys import Keys
from trueline.serving.server import bind, make_server

PATIENCE = 20.0


@dataclass
class Served:
    """A running server. url: of its root."""

    url: str
    service: Any

    def client(self, **settings: Any) -> openai.OpenAI:
        """The official client, which must not retry what a test wants to see."""
        return openai.OpenAI(**{**self._settings(), **settings})

    def async_client(self, **settings: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{**self._settings(), **settings})

    def _settings(self) -> dict[str, Any]:
        return {"base_url": f"{self.url}/v1", "api_key": "none-needed", "max_retries": 0, "timeout": PATIENCE}


def host_of(
    engine: Any, tokenizer: Any, *, context: int | None = 256, limits: Limits | None = None, **more: Any
) -> Host:
    """A host over an engine that exists already."""
    eos = [tokenizer.eos_token_id]
    capabilities: Mapping[str, Any] = more.pop("capabilities", None) or engine.capabilities()
    return Host(
        name="tiny",
        tokenizer=tokenizer,
        eos_ids=eos,
        vocabulary=len(tokenizer),
        context=context,
        make_engine=more.pop("make_engine", lambda: engine),
        grammars=Grammars(tokenizer, eos, len(tokenizer)),
        capabilities=capabilities,
        limits=limits or Limits(),
        **more,
    )


@contextmanager
def serving(host: Host, keys: Keys | None = None, *, send_buffer: int | None = None) -> Iterator[Served]:
    """Start, hand out, drain and stop. send_buffer: bytes that the kernel keeps for a client that does not read."""
    listener = bind("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = make_server(host, keys or Keys([]))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started, "the server did not start"
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server.service)  # type: ignore[attr-defined]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"


def until(condition: Any, patience: float = PATIENCE) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "this never came"
        time.sleep(0.005)
