"""Failures as OpenAI's error object: {"error": {"message", "type", "param", "code"}}, and nothing else ever."""

from __future__ import annotations

import math
from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """A failure that the client is told about. param: where in the body, as a JSON path such as `messages[0].role`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The object that is sent, as a body or as a server-sent event."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def refused(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def too_large(message: str) -> ApiError:
    return ApiError(413, message, code="request_too_large")


def busy(message: str, seconds: float) -> ApiError:
    """429 with Retry-After in whole seconds, at least one."""
    wait = str(max(1, math.ceil(seconds)))
    return ApiError(429, message, kind="rate_limit_error", code="server_busy", headers={"Retry-After": wait})


def failed(message: str, *, status: int = 500, code: str = "engine_error") -> ApiError:
    """The server's own failure; the request may be sent again."""
    return ApiError(status, message, kind=SERVER, code=code)
