"""What sources of trajectories and of new prompts need of a run, beside whole samples of its model.

A trajectory is a prompt, turns of the policy and what an environment puts between them; `room`, `speak` and `observe` grow
one in token ids, so that what was sampled is never tokenised again. New prompts come from a creator: a person's function,
a model folder or an OpenAI-compatible endpoint, and are encoded as the run's data are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.chat import Chat
from trueline.config import AlignConfig
from trueline.encode import Limits, continuation_ids, encode, limits_of
from trueline.engine.policy import Policy
from trueline.engine.sampler import Sample, sample
from trueline.errors import TruelineError
from trueline.feedback._calls import resolve
from trueline.feedback.contract import FeedbackContext
from trueline.groups import Group, Message
from trueline.models import Loaded
from trueline.randomness import derive
from trueline.vocabulary import embedding_rows

Creator = Callable[[Sequence[str], int], list[str | None]]  # (prompts, seed) -> one rewritten prompt each, or None

REWRITES = (
    "Rewrite the prompt below into one that is somewhat harder: add a constraint, ask for more depth or for more steps. "
    "Write the new prompt and nothing else.\n\n{prompt}",
    "Write a new prompt of the same domain and difficulty as the one below, on a rarer subject. Write the new prompt and "
    "nothing else.\n\n{prompt}",
)


@dataclass
class Toolkit:
    """config, policy and loaded are the run's; feedback is the context that its judges are opened in."""

    config: AlignConfig
    policy: Policy
    loaded: Loaded
    feedback: FeedbackContext

    @property
    def limits(self) -> Limits:
        return limits_of(self.config)

    # -- trajectories --------------------------------------------------------------------------------------------------

    def room(self, group: Group) -> int:
        """Tokens that a response to this prompt may have, everything between its turns included."""
        return self.limits.room(len(group.prompt_ids or ()))

    def speak(self, rows: list[list[int]], rooms: list[int], seed: int, streams: list[int], **law: Any) -> list[Sample]:
        """The policy's next turn after each of these rows of ids; streams name their random numbers."""
        eos = self.loaded.eos_ids
        drawn = sample(self.policy, rows, 1, max_new_tokens=rooms, eos_ids=eos, seed=seed, streams=streams, **law)
        return [turns[0] for turns in drawn]

    def text(self, ids: list[int]) -> str:
        return str(self.loaded.tokenizer.decode(ids, skip_special_tokens=True))

    def observe(self, group: Group, messages: list[Message]) -> list[int]:
        """Ids between the last assistant turn of `messages` and the next: what came after it, as the model reads it.

        In a conversation the chat template renders it; after a text prompt it is the text as it is.
        """
        if isinstance(group.prompt, str):
            text = str(messages[-1]["content"])
        else:
            config, tokenizer = self.config, self.loaded.tokenizer
            chat = Chat(tokenizer, self.loaded.eos_ids, config.system_prompt, config.chat_template_kwargs)
            text = chat.between(group, messages)
        return continuation_ids(self.loaded.tokenizer, text, self.limits, self.loaded.eos_ids)

    def function(self, target: str, what: str) -> Callable[..., Any]:
        """The function behind 'package.module:function'."""
        return resolve(target, what)

    # -- prompts -------------------------------------------------------------------------------------------------------

    def encode(self, groups: list[Group]) -> list[Group]:
        """New prompts in the model's tokens; those that do not fit are left out."""
        if not groups:
            return []
        config = self.config
        kept, _ = encode(
            groups,
            self.loaded.tokenizer,
            self.limits,
            eos_ids=self.loaded.eos_ids,
            system_prompt=config.system_prompt,
            chat_template_kwargs=config.chat_template_kwargs,
            vocabulary=embedding_rows(self.loaded.model),
        )
        return kept

    def creator(self, spec: str) -> Creator:
        """Who rewrites prompts: 'MODULE:FUNCTION', 'MODEL@URL' (any OpenAI-compatible server) or a model folder.

        A function is called as f(prompt, seed) and returns a prompt, or None. A model is asked in words, at temperature 0.7,
        for no more tokens than a prompt of the run may have.
        """
        longest = self.config.max_prompt_length or self.config.max_length // 2
        if remote := re.fullmatch(r"(.+)@(https?://.+)", spec):
            from trueline.feedback._endpoint import Endpoint

            settings: dict[str, Any] = {"temperature": 0.7, "max_tokens": longest, "timeout": 120.0, "retries": 6}
            endpoint = Endpoint(remote[1], remote[2], concurrency=8, prices=(0.0, 0.0), cache=None, **settings)
            return _asking(lambda questions: endpoint.ask([[{"role": "user", "content": q}] for q in questions]))
        if re.fullmatch(r"[\w.]+:\w+", spec):
            function = resolve(spec, "creator")
            return lambda prompts, seed: [_called(function, spec, p, derive(seed, i)) for i, p in enumerate(prompts)]
        from trueline.feedback._local_judge import LocalJudge

        return _asking(LocalJudge.open(spec, self.feedback, temperature=0.7, max_tokens=longest).ask)


def _asking(ask: Callable[[Sequence[str]], list[str | None]]) -> Creator:
    """A creator that asks a model, for more depth or for another subject as the seed says."""

    def create(prompts: Sequence[str], seed: int) -> list[str | None]:
        wordings = [REWRITES[derive(seed, i) % len(REWRITES)] for i in range(len(prompts))]
        answers = ask([w.replace("{prompt}", p) for w, p in zip(wordings, prompts, strict=True)])
        return [answer.strip() or None if answer else None for answer in answers]

    return create


def _called(function: Callable[..., Any], spec: str, prompt: str, seed: int) -> str | None:
    made = function(prompt, seed)
    if made is not None and not isinstance(made, str):
        raise TruelineError(
            f"The creator {spec} returned {type(made).__name__} for {prompt[:80]!r}. Return the new prompt, or None."
        )
    return made
