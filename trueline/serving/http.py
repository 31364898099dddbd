"""Pieces of HTTP that every endpoint shares: who may come in, bodies with limits, slow and departed clients.

All of it is plain ASGI. What leaves here is either an answer or OpenAI's error object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from trueline.serving.errors import ApiError, busy, failed, too_large
from trueline.serving.host import Limits
from trueline.serving.keys import Keys
from trueline.serving.metrics import Metrics

LOG = logging.getLogger("trueline.serving")
DISCARD = 32 << 20  # bytes of an unwanted body that are read and dropped, so that the client gets to read why
DISCARD_SECONDS = 5.0
OPEN_PATHS = ("/", "/health")  # what a browser or a supervisor asks for without a key
Found = TypeVar("Found")
MessageOut = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MessageOut]]
Send = Callable[[MessageOut], Awaitable[None]]


class Gone(Exception):
    """The client is not there any more, or reads too slowly to be waited for."""


def encoded(value: Any) -> bytes:
    """JSON in ASCII (a line separator inside a text must not end a server-sent event); what is not finite is null."""
    return json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def error_response(error: ApiError) -> Json:
    return Json(error.body(), status_code=error.status, headers=error.headers)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a JSON request. Raises ApiError for another type, one too large, or one that does not arrive."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type is '{kind[:80]}'; expected application/json.", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not read here.", code="unsupported_media_type")
    if int(request.headers.get("content-length", "0")) > limits.body:
        raise _over(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.patience):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limits.body:
                    raise _over(limits)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {limits.patience:g} s.", code="timeout") from None


def _over(limits: Limits) -> ApiError:
    return too_large(f"The body is longer than this server's limit of {limits.body} bytes.")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Found]) -> Found:
    """What the work returns; it is cancelled, and Gone raised, as soon as the client disconnects."""

    async def departed() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(departed())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Server-sent events. `closing` is left, and the iterator closed, however the stream ends: read, failed or deserted."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], closing: AbstractContextManager[Any]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.closing = events, closing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def write() -> None:
            async for event in self.events:
                await send({"type": "http.response.body", "body": event, "more_body": True})

        with self.closing:
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await unless_gone(receive, write())
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                await self.events.aclose()


class Guard:
    """The outermost application: keys, the number of connections, early answers, slow readers, counts, and what escapes."""

    def __init__(self, app: Any, *, keys: Keys, limits: Limits, metrics: Metrics, endpoints: frozenset[str]):
        self.app, self.keys, self.limits, self.metrics, self.endpoints = app, keys, limits, metrics, endpoints
        self.under_way = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self.limits.patience)
        self.under_way += 1
        try:
            self._admit(scope)
            await self.app(scope, exchange.receive, exchange.send)
        except Gone:
            self.metrics.disconnected.inc()
        except ApiError as error:
            await self._refuse(scope, exchange, error)
        except Exception as error:
            LOG.exception("An endpoint failed")
            await self._refuse(scope, exchange, failed(f"The server failed: {type(error).__name__}."))
        finally:
            self.under_way -= 1
            path = scope["path"] if scope["path"] in self.endpoints else "other"
            self.metrics.requests.labels(path, str(exchange.status or "gone")).inc()

    def _admit(self, scope: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] not in OPEN_PATHS or not self.keys:
            self.keys.check(headers.get(b"authorization"), headers.get(b"host"))
        if self.under_way > self.limits.connections and scope["path"] not in OPEN_PATHS:
            self.metrics.refused.inc()
            raise busy(f"The server has {self.limits.connections} requests under way. Try again later.", 1.0)

    async def _refuse(self, scope: Any, exchange: _Exchange, error: ApiError) -> None:
        if exchange.status is None:
            with suppress(Gone):
                await error_response(error)(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its response: what has been received and sent of it."""

    def __init__(self, receive: Receive, send: Send, patience: float):
        self._receive, self._send, self.patience = receive, send, patience
        self.status: int | None = None
        self.received = False  # the whole body

    async def receive(self) -> MessageOut:
        message = await self._receive()
        self.received = self.received or not message.get("more_body", False)
        return message

    async def send(self, message: MessageOut) -> None:
        """Pass the message on. Raises Gone where the client does not read for `patience` seconds."""
        if message["type"] == "http.response.start":
            await self._discard()
            self.status = message["status"]
            own = [(b"x-request-id", secrets.token_hex(8).encode())]
            if not self.received:  # nobody reads the rest of it
                own.append((b"connection", b"close"))
            message["headers"] = [*message["headers"], *own]
        try:
            await asyncio.wait_for(self._send(message), self.patience)
        except TimeoutError:
            raise Gone from None

    async def _discard(self) -> None:
        """Read what is left of the body: a client that is still writing would never see an early answer."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(min(DISCARD_SECONDS, self.patience)):
                while not self.received and size < DISCARD:
                    size += len((await self.receive()).get("body", b""))
