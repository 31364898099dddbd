"""Running the application: sockets, signals and the drain.

SIGTERM (or the first Ctrl-C) closes the listening socket and lets open answers finish for `Limits.drain` seconds; what is still
open then gets an error object and the process ends with exit code 0. A second Ctrl-C does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from trueline.serving.app import Service, create_app
from trueline.serving.errors import failed
from trueline.serving.host import Host
from trueline.serving.keys import Keys, check_exposure

LAST_WORDS = 5  # seconds for error objects to reach their clients after the drain


class _Server(uvicorn.Server):
    """uvicorn, with an end to the drain that clients can read, and an exit code of 0 after it."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.create_task(self._end_drain(self.service.host.limits.drain))
        try:
            await super().shutdown(sockets)
        finally:
            drain.cancel()

    async def _end_drain(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.force_exit:
                    await asyncio.sleep(0.05)
        self.service.scheduler.refuse(failed("The server is shutting down.", status=503, code="shutting_down"))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def make_server(host: Host, keys: Keys) -> uvicorn.Server:
    """The server of a host, to be run with `serve(sockets=[...])` on any event loop."""
    app, service = create_app(host, keys)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(host.limits.drain) + LAST_WORDS,
        lifespan="on",
        ws="none",
    )
    return _Server(config, service)


def run(host: Host, keys: Keys, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, drain, return."""
    check_exposure(listener.getsockname()[0], keys)
    logging.getLogger("trueline.serving").setLevel(logging.INFO)
    server = make_server(host, keys)
    with _quiet_signals():
        server.run(sockets=[listener])


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn raises the signal again after its drain, which would end the process by it: a drained server exits with 0."""
    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
