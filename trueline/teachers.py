"""Other models' opinion of a response, through text: the mean log-prob a token under each teacher.

A teacher has its own tokenizer, prompt format and chat template, so a response reaches it as text and its
log-prob is averaged over its own tokens. Only where tokenizer and template are the policy's are the ids taken as they
are, which keeps a response that was cut off from looking finished. Teachers whose token *distributions* are compared with
the policy's are another matter: they stand in `Policy(teachers=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trueline.encode import UNLIMITED, encode
from trueline.engine.layout import Layout
from trueline.engine.policy import Policy
from trueline.engine.precision import products
from trueline.engine.scorecache import TOLERANCE, ScoreCache, scorer_key
from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.models import Loaded, load_frozen, vocabulary_hash


@dataclass
class Teacher:
    """A frozen language model that scores text. tokenizer: the policy's. cache: where scores are kept, if they are."""

    path: str
    policy: Policy
    loaded: Loaded
    tokenizer: Any
    precision: str
    cache: ScoreCache | None = None

    @classmethod
    def open(
        cls, path: str, tokenizer: Any, *, device: str, precision: str, offline: bool, cache: Path | None = None
    ) -> Teacher:
        """Load it. cache: a folder for its scores, one sub-folder for each teacher and each way of scoring."""
        loaded = load_frozen(path, device, offline=offline)
        policy = Policy(loaded.model).requires_grad_(False).eval()
        kept = None
        if cache is not None:
            key = scorer_key(loaded.model, precision=precision, layout_mode=policy.mode)
            kept = ScoreCache(cache, key, tolerance=TOLERANCE[precision])
        return cls(path, policy, loaded, tokenizer, precision, kept)

    def means(self, groups: Sequence[Group]) -> list[list[float]]:
        """For each group, for each response: its mean log-prob a token."""
        own = self._own_tokens(groups)
        if self.cache is not None:
            self.cache.fill(own, self._score)
            values = [[r.reference_logp or [] for r in g.responses] for g in own]
        else:
            values = self._score(own)
        return [[sum(row) / len(row) for row in group] for group in values]

    def _own_tokens(self, groups: Sequence[Group]) -> list[Group]:
        """Copies of the groups in the teacher's tokens, in the same order; nothing is cut and nothing may be dropped."""
        theirs = self.loaded.tokenizer
        same = vocabulary_hash(theirs) == vocabulary_hash(self.tokenizer)
        if same and theirs.chat_template == self.tokenizer.chat_template:
            return [replace(g, responses=[replace(r, reference_logp=None) for r in g.responses]) for g in groups]
        # One response a group: two that differ for the policy may be the same text, and none is dropped for it.
        rows = [
            replace(g, prompt_ids=None, preferences=None, responses=[replace(r, ids=None, mask=None)])
            for g in groups
            for r in g.responses
        ]
        encoded, audit = encode(rows, theirs, UNLIMITED, eos_ids=self.loaded.eos_ids)
        if len(encoded) != len(rows):
            raise TruelineError(
                f"The teacher '{self.path}' makes {len(encoded)} rows of {len(rows)} responses in its own tokens: "
                f"{audit.dropped or audit.noted}. Leave those rows out, or use another teacher."
            )
        each = iter(encoded)
        whole = []
        for group in groups:
            parts = [next(each) for _ in group.responses]
            prompts = parts[0].prompt_ids if parts else None
            whole.append(
                replace(group, prompt_ids=prompts, responses=[p.responses[0] for p in parts], preferences=None)
            )
        return whole

    @torch.no_grad()
    def _score(self, groups: list[Group]) -> list[list[list[float]]]:
        """Log-probs of every counted token. A call a group, so that a score does not depend on its neighbours: what a
        recorded stream is scored with again has the same bits."""
        found: list[list[list[float]]] = []
        for group in groups:
            if not group.responses:
                found.append([])
                continue
            layout = Layout.of([group]).to(self.policy.device)
            with products(self.precision):
                logp_N = self.policy(layout).logp_N
            assert logp_N is not None
            found.append([row.tolist() for row in torch.split(logp_N, layout.length_R.tolist())])
        return found


def fill_teachers(groups: Sequence[Group], teachers: Sequence[Teacher]) -> None:
    """Set `teacher_logp` of every response: one mean a teacher, in their order."""
    scored = [g for g in groups if g.responses]
    columns = [teacher.means(scored) for teacher in teachers]
    for number, group in enumerate(scored):
        for place, response in enumerate(group.responses):
            response.teacher_logp = [column[number][place] for column in columns]
