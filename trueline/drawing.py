"""Fresh responses to encoded prompts as groups: text, ids, and the log-probs they were drawn at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trueline.encode import Limits
from trueline.engine.policy import Policy
from trueline.engine.sampler import Sample, sample
from trueline.groups import Group, Response
from trueline.models import Loaded


def drawer(policy: Policy, loaded: Loaded, limits: Limits) -> Callable[..., list[Group]]:
    """`draw(groups, samples, seed, **law)`: new groups with the same prompts and fresh responses, no longer than the
    limits leave room for."""

    def draw(groups: list[Group], samples: int, seed: int, **law: Any) -> list[Group]:
        if not groups:
            return []
        share = float(law.get("reference_share", 0.0))
        author = {0.0: "policy", 1.0: "reference"}.get(share, "mixture")
        prompts = [list(g.prompt_ids or ()) for g in groups]
        rooms = [limits.room(len(p)) for p in prompts]
        drawn = sample(policy, prompts, samples, max_new_tokens=rooms, eos_ids=loaded.eos_ids, seed=seed, **law)
        fresh = []
        for group, rows in zip(groups, drawn, strict=True):
            texts = loaded.tokenizer.batch_decode([s.ids for s in rows], skip_special_tokens=True)
            responses = [_response(group, text, s, author, law) for text, s in zip(texts, rows, strict=True)]
            fresh.append(replace(group, responses=responses, extras=dict(group.extras)))
        return fresh

    return draw


def _response(group: Group, text: str, drawn: Sample, author: str, law: dict[str, Any]) -> Response:
    return Response(
        text=text,
        messages=None if isinstance(group.prompt, str) else [{"role": "assistant", "content": text}],
        ids=drawn.ids,
        mask=[True] * len(drawn.ids),
        source=author,
        finish=drawn.finish,
        behaviour_logp=drawn.behaviour_logp,
        full_logp=drawn.full_logp,
        temperature=float(law.get("temperature", 1.0)),
    )
