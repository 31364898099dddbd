"""Who may ask: API keys compared in constant time, and without keys nobody but this machine.

A web page that a person on this machine visits can send requests to 127.0.0.1 too. Without keys a request must therefore name
this machine as its host, which a page behind a rebound DNS name cannot, and bodies must be JSON by content type, which a
page of another origin cannot send unasked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from trueline.errors import TruelineError
from trueline.serving.errors import ApiError

SHORTEST = 8


class Keys:
    """The keys that open the server; only digests are kept, so that comparing takes no longer for a nearer guess."""

    def __init__(self, keys: Sequence[str]):
        for key in keys:
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise TruelineError(
                    f"An API key has {len(key)} characters; expected at least {SHORTEST}, printable ASCII without spaces."
                )
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None, host: str | None) -> None:
        """Raises ApiError for a request that may not pass."""
        if not self._digests:
            if not is_loopback(_name(host or "")):
                raise ApiError(
                    403,
                    "This server has no API key and answers only requests to this machine by its loopback name.",
                    kind="permission_error",
                    code="forbidden_host",
                )
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip().encode("utf-8", "surrogateescape"))
        known = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, whichever fits
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(
                401,
                "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def check_exposure(host: str, keys: Keys) -> None:
    """Refuse to listen beyond this machine without a key."""
    if not keys and not is_loopback(host):
        raise TruelineError(
            f"Host {host} is open to others and there is no API key. Give --api-key (or TRUELINE_API_KEY), or listen on "
            "127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The host of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
