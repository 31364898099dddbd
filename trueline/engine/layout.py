"""Groups as one flat row of tokens: the shared prefix once, every response after it, many groups laid end to end.

Sharing is computational. What is laid out once is the longest common *token* prefix of a group's full rows
(prompt and response) that carries no loss; positions restart after it, so that each response continues the prefix as
if it stood alone. Which token may look at which is told by `segments` (for attention) and `mask` (for tests).

Shape suffixes: _T tokens of the flat row, _N response tokens that count in a loss, _R responses, _K marked tokens.
Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trueline.errors import TruelineError
from trueline.groups import Group


@dataclass(frozen=True)
class Segment:
    """Where one group stands in the flat row: shared prefix [start, shared_end), responses [first, end) after it.

    A group of one response has no shared prefix: its whole row is one causal sequence.
    """

    start: int
    shared_end: int
    responses: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        return self.responses[-1][1]

    @property
    def longest(self) -> int:
        """Tokens of the longest full row (shared prefix and response)."""
        return self.shared_end - self.start + max(end - first for first, end in self.responses)


@dataclass(frozen=True)
class Layout:
    """One flat row and the indices that scoring needs.

    ids_T, positions_T: token ids and position of each token in its own full row.
    predictor_N: index in T of the token whose hidden state predicts counted token n. target_N: that token's id.
    owner_N: response (0..R-1, groups in order, responses in order) that counted token n belongs to.
    last_R: index in T of each response's last token, for scalar heads. length_R: counted tokens a response.
    mark_K: index in T of each response's marked tokens (`Response.marks`), responses in order; marked_K: whose they are.
    rows: number of responses R.
    """

    ids_T: Tensor
    positions_T: Tensor
    segments: tuple[Segment, ...]
    predictor_N: Tensor
    target_N: Tensor
    owner_N: Tensor
    last_R: Tensor
    length_R: Tensor
    mark_K: Tensor
    marked_K: Tensor
    highest_id: int  # kept as an int, so that a range check costs no device transfer

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Layout:
        """Lay the groups end to end. Raises TruelineError for a group that is not encoded or cannot be scored."""
        if not groups:
            raise TruelineError("No group to score: a layout needs at least one group with one encoded response.")
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        predictor: list[int] = []
        target: list[int] = []
        owner: list[int] = []
        last: list[int] = []
        mark: list[int] = []
        marked: list[int] = []
        for number, group in enumerate(groups):
            rows = _full_rows(group, number)
            shared = _shared_prefix(rows)
            start = len(ids)
            shared_end = start + shared
            ids += rows[0][0][:shared]
            positions += range(shared)
            spans = []
            for response, (row_ids, row_mask) in zip(group.responses, rows, strict=True):
                first = len(ids)
                for t in (len(group.prompt_ids or ()) + m for m in response.marks or ()):
                    mark.append(start + t if t < shared else first + t - shared)
                    marked.append(len(last))
                for t in range(shared, len(row_ids)):
                    if row_mask[t]:
                        predictor.append(shared_end - 1 if t == shared else first + t - shared - 1)
                        target.append(row_ids[t])
                        owner.append(len(last))
                ids += row_ids[shared:]
                positions += range(shared, len(row_ids))
                spans.append((first, len(ids)))
                last.append(len(ids) - 1)
            segments.append(Segment(start, shared_end, tuple(spans)))
        if min(ids) < 0:
            raise TruelineError(f"A token id is {min(ids)}; ids are vocabulary indices from 0. Encode the data again.")
        owner_N = torch.tensor(owner)
        return cls(
            ids_T=torch.tensor(ids),
            positions_T=torch.tensor(positions),
            segments=tuple(segments),
            predictor_N=torch.tensor(predictor),
            target_N=torch.tensor(target),
            owner_N=owner_N,
            last_R=torch.tensor(last),
            length_R=torch.bincount(owner_N, minlength=len(last)),
            mark_K=torch.tensor(mark, dtype=torch.long),
            marked_K=torch.tensor(marked, dtype=torch.long),
            highest_id=max(ids),
        )

    @property
    def rows(self) -> int:
        return len(self.last_R)

    @property
    def longest(self) -> int:
        """Tokens of the longest full row."""
        return max(s.longest for s in self.segments)

    @property
    def shared_tokens(self) -> int:
        """Tokens that the flat row holds: what the model computes."""
        return len(self.ids_T)

    @property
    def unshared_tokens(self) -> int:
        """Tokens of the same responses as separate rows without padding."""
        return sum(s.shared_end - s.start + end - first for s in self.segments for first, end in s.responses)

    def full_rows(self) -> list[Tensor]:
        """Token ids of every response's full row, in order of R: what a plain, unpacked call takes."""
        return [
            torch.cat([self.ids_T[s.start : s.shared_end], self.ids_T[first:end]])
            for s in self.segments
            for first, end in s.responses
        ]

    def mask(self, window: int | None = None) -> Tensor:
        """Boolean [T, T], True where query (row) may look at key (column): the definition that attention is tested on.

        A token sees its own response and its group's shared prefix, causally; with a sliding window, keys fewer
        than `window` *positions* back (not flat-row indices back).
        """
        device = self.ids_T.device
        group_T = torch.full_like(self.ids_T, -1)
        span_T = torch.full_like(self.ids_T, -1)  # -1 in the shared prefix, else the response's number
        number = 0
        for g, segment in enumerate(self.segments):
            group_T[segment.start : segment.end] = g
            for first, end in segment.responses:
                span_T[first:end] = number
                number += 1
        same_group = group_T[:, None] == group_T[None, :]
        same_span = (span_T[:, None] == span_T[None, :]) | (span_T[None, :] == -1)
        distance = self.positions_T[:, None] - self.positions_T[None, :]
        near = torch.ones((), dtype=torch.bool, device=device) if window is None else distance < window
        return same_group & same_span & (distance >= 0) & near

    def to(self, device: torch.device | str) -> Layout:
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def _full_rows(group: Group, number: int) -> list[tuple[list[int], list[bool]]]:
    """Every response as (prompt ids + response ids, loss mask over both), checked."""
    where = group.origin or f"group {number} of the batch"
    if not group.responses:
        raise TruelineError(f"{where}: the group has no response; scoring needs at least one.")
    if group.prompt_ids is None or any(r.ids is None for r in group.responses):
        raise TruelineError(f"{where}: the group has no token ids; call trueline.encode.encode before scoring.")
    rows = []
    for i, response in enumerate(group.responses):
        own = list(response.ids or ())
        mask = list(response.mask) if response.mask is not None else [True] * len(own)
        if len(mask) != len(own):
            raise TruelineError(f"{where}, response {i}: {len(own)} ids but {len(mask)} mask entries; they must match.")
        if not all(0 <= m < len(own) for m in response.marks or ()):
            raise TruelineError(
                f"{where}, response {i}: a mark stands outside its {len(own)} ids. Encode the data again."
            )
        if not any(mask):
            raise TruelineError(f"{where}, response {i}: none of its {len(own)} tokens counts in a loss; drop the row.")
        if not group.prompt_ids and mask[0]:
            raise TruelineError(
                f"{where}, response {i}: the prompt has no token, so nothing predicts the response's first token; "
                "give the prompt at least a BOS token."
            )
        rows.append((group.prompt_ids + own, [False] * len(group.prompt_ids) + mask))
    return rows


def _shared_prefix(rows: list[tuple[list[int], list[bool]]]) -> int:
    """Length of the longest common token prefix that carries no loss; 0 for a single row.

    Every row has a counted token, so each keeps at least one token of its own.
    """
    if len(rows) == 1:
        return 0
    shared = 0
    first_ids = rows[0][0]
    for t in range(min(len(ids) for ids, _ in rows)):
        if any(ids[t] != first_ids[t] or mask[t] for ids, mask in rows):
            break
        shared = t + 1
    return shared


class Sized(Protocol):
    """What knows how many flat-row tokens it takes: a group, or an item with its companions."""

    def tokens(self) -> int: ...


def micro_batches(groups: Sequence[Sized], token_budget: int) -> list[list[int]]:
    """Cut the groups (or items), in order, into runs of at most `token_budget` flat-row tokens; returns their indices.

    None is ever split: one that is over the budget by itself gets a micro-batch of its own.
    """
    if token_budget < 1:
        raise TruelineError(f"The token budget is {token_budget}; it must be at least 1 token.")
    cuts: list[list[int]] = []
    filled = 0
    for i, group in enumerate(groups):
        tokens = group.tokens()
        if not cuts or filled + tokens > token_budget:
            cuts.append([])
            filled = 0
        cuts[-1].append(i)
        filled += tokens
    return cuts


def laid_out(groups: Sequence[Group], token_budget: int, device: torch.device) -> Iterator[tuple[list[int], Layout]]:
    """Each micro-batch of the groups: their indices, and the layout that holds them on the device."""
    for cut in micro_batches(groups, token_budget):
        yield cut, Layout.of([groups[i] for i in cut]).to(device)
