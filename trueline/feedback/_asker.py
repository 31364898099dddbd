"""Opening a model that answers questions in text: `MODEL@URL` (any OpenAI-compatible endpoint) or a model folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trueline.errors import TruelineError
from trueline.feedback._judging import Asker, Remote
from trueline.feedback.contract import FeedbackContext

ENDPOINT: dict[str, Any] = {"concurrency": 8, "timeout": 120.0, "retries": 6, "cache": None}


def open_asker(
    who: str,
    argument: str,
    context: FeedbackContext,
    *,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    endpoint: Mapping[str, Any] = ENDPOINT,
) -> Asker:
    """endpoint: concurrency, timeout, retries and cache; a model folder refuses what differs from the defaults."""
    if remote := re.fullmatch(r"(.+)@(https?://.+)", argument):
        from trueline.feedback._endpoint import Endpoint

        for name, least in (("concurrency", 1), ("retries", 0)):
            if endpoint[name] < least:
                raise TruelineError(f"{who}: {name} is {endpoint[name]}; expected {least} or more.")
        if endpoint["timeout"] <= 0:
            raise TruelineError(f"{who}: timeout is {endpoint['timeout']:g}; expected seconds above 0.")
        settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, **endpoint}
        return Remote(Endpoint(remote[1], remote[2], prices=(0.0, 0.0), **settings))
    if changed := [name for name, default in ENDPOINT.items() if endpoint[name] != default]:
        raise TruelineError(
            f"{who} on '{argument}': {', '.join(changed)} has no effect, a model folder is asked directly. Leave it out."
        )
    from trueline.feedback._local_judge import LocalJudge

    return LocalJudge.open(argument, context, temperature=temperature, max_tokens=max_tokens)
