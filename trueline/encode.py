"""Text to tokens: the only place where a response that was read becomes ids and a loss mask.

**The boundary.** Prompt and response are tokenised apart and joined: ids = tok(prompt) + tok(response) + EOS. A sampler
is given tok(prompt) and nothing else, so any other choice would train on a prompt that is never met again. A tokenizer
that puts a space before every text (SentencePiece) is kept from doing so inside a sequence. For conversations the same
holds for the pieces that the chat template appends (`chat.py`).

**Limits.** A group is cut as a whole: one prompt for all its responses, one limit for all its responses. The response
limit is `max_response_length`, or what the prompt leaves of `max_length`, and at least half of it; the prompt
then gets the rest. A response that was cut has no EOS: nobody ended it.

Nothing is dropped from groups that were sampled (`finish` is set): equal and empty samples are data there. Groups that
have ids already pass through unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trueline.chat import Chat, Draft, Piece, special_pattern
from trueline.errors import TruelineError
from trueline.groupfile import like
from trueline.groups import Audit, Group, Response
from trueline.randomness import derive
from trueline.readers.contract import Unusable
from trueline.stepwise import STEP_END

if TYPE_CHECKING:
    from trueline.config import AlignConfig

BATCH = 4096  # texts handed to the tokenizer at once: enough to keep its threads busy, little memory
LETTERS_PER_TOKEN = 48  # text beyond limit x this is not tokenised: no vocabulary averages so long a token
Ids = list[int]


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens. truncation: which part of an over-long prompt stays, or 'drop' to leave such groups out."""

    max_length: int = 1024
    max_prompt_length: int | None = None
    max_response_length: int | None = None
    truncation: Literal["keep_end", "keep_start", "drop"] = "keep_end"

    def __post_init__(self) -> None:
        if self.max_response_length is not None and self.max_response_length >= self.max_length:
            raise TruelineError(
                f"max_response_length ({self.max_response_length}) leaves no token of max_length ({self.max_length}) for the "
                "prompt. Raise max_length or lower max_response_length."
            )

    def room(self, prompt: int) -> int:
        """Tokens that a sampled response may have after this many of its prompt: at most max_response_length (half of
        max_length where none is given), and what max_length leaves."""
        return max(1, min(self.max_response_length or self.max_length // 2, self.max_length - prompt))

    def response_limit(self, prompt: int) -> int:
        """Tokens a response may have after a prompt of this length (before the prompt is cut)."""
        prompt = min(prompt, self.max_prompt_length or prompt)
        return self.max_response_length or self.max_length - min(prompt, self.max_length // 2)


def limits_of(config: AlignConfig) -> Limits:
    """The limits of a run."""
    return Limits(config.max_length, config.max_prompt_length, config.max_response_length, config.truncation)


UNLIMITED = Limits(1 << 24)  # a model that judges reads the whole text or refuses it, and never cuts it unsaid


def encode(
    groups: Sequence[Group],
    tokenizer: Any,
    limits: Limits,
    *,
    eos_ids: Sequence[int],
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    vocabulary: int | None = None,
) -> tuple[list[Group], Audit]:
    """Groups with `prompt_ids`, and ids and mask of every response; and what was dropped, cut or noted on the way.

    eos_ids: tokens that end a response; the first is appended where a response does not end with one of them.
    vocabulary: how many ids the model knows (a padded embedding can sample beyond its tokenizer); default the tokenizer's.
    A response in `steps` gets `marks` where they end. A row's `extras["tools"]` and `extras["chat_template_kwargs"]` reach the template. Raises TruelineError for what is
    wrong with the call as a whole: no chat template, an option without effect, ids from another vocabulary.
    """
    if not eos_ids:
        raise TruelineError("No token ends a response: the tokenizer has no EOS. Name one with eos_tokens.")
    coder = _Coder(tokenizer, limits, eos_ids)
    texts = [group for group in groups if group.prompt_ids is None]
    conversations = any(isinstance(group.prompt, list) for group in texts)
    if texts and not conversations and (system_prompt or chat_template_kwargs):
        option = "system_prompt" if system_prompt else "chat_template_kwargs"
        raise TruelineError(f"{option} has no effect on text prompts, and the data hold no conversation. Leave it out.")
    chat = Chat(tokenizer, eos_ids, system_prompt, chat_template_kwargs) if conversations else None
    audit = Audit(read=len(groups))
    drafts: list[Draft | Group] = []
    for group in groups:
        try:
            drafts += (
                [_recorded(group, vocabulary or len(tokenizer))]
                if group.prompt_ids is not None
                else _drafts(group, chat, tokenizer, audit)
            )
        except Unusable as trouble:
            audit.drop(trouble.reason, group.origin, trouble.detail)
    ids = iter(coder.tokenise([d for d in drafts if isinstance(d, Draft)], audit))
    encoded: list[Group] = []
    for draft in drafts:
        try:
            encoded.append(draft if isinstance(draft, Group) else coder.finish(draft, next(ids), audit))
        except Unusable as trouble:
            origin = draft.origin if isinstance(draft, Group) else draft.group.origin
            audit.drop(trouble.reason, origin, trouble.detail)
    audit.kept = len(encoded)
    return encoded, audit


def continuation_ids(tokenizer: Any, text: str, limits: Limits, eos_ids: Sequence[int]) -> Ids:
    """Ids of a text that goes on from others, such as what an environment says between two turns."""
    return _Coder(tokenizer, limits, eos_ids)._continuations([(text, True, "")], Audit())[0]


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Refuse a tokenizer that produces ids beyond the model's embedding (vocab_size rows)."""
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= vocab_size:
        raise TruelineError(
            f"The tokenizer does not belong to the model: its token {token!r} has id {highest}, the model knows ids 0 to "
            f"{vocab_size - 1}. Use the model's own tokenizer; tokens of your own go into add_tokens."
        )


def _drafts(group: Group, chat: Chat | None, tokenizer: Any, audit: Audit) -> list[Draft]:
    if isinstance(group.prompt, list):
        assert chat is not None
        drafts = chat.drafts(group)
        if len(drafts) > 1:
            audit.note("split into one group per turn: the template rewrites earlier turns", group.origin)
        return drafts
    if any(r.messages for r in group.responses):
        raise TruelineError(
            f"{group.origin}: the prompt is text and a response is messages. Give both in the same form."
        )
    if tokenizer.chat_template and group.prompt:
        audit.note("text prompt: the chat template is not applied", group.origin)
    return [Draft(group, group.prompt, [_pieces(r) for r in group.responses], conversational=False)]


def _pieces(response: Response) -> list[Piece]:
    """A text response: one piece, or every step and the line break that ends it."""
    texts = [response.text] if response.steps is None else [t for step in response.steps for t in (step, STEP_END)]
    return [Piece(text, counts=True) for text in texts]


def _recorded(group: Group, vocabulary: int) -> Group:
    """A group that has ids: they are the truth, if this model can have made them."""
    if any(r.ids is None for r in group.responses):
        raise TruelineError(
            f"{group.origin}: the prompt has token ids and a response has none. Record both or neither."
        )
    highest = max([*(group.prompt_ids or [0]), *(i for r in group.responses for i in r.ids or ())])
    if highest >= vocabulary:
        raise TruelineError(
            f"{group.origin}: the recorded id {highest} is not in this tokenizer's vocabulary of {vocabulary}. The "
            "stream was recorded with another model; replay it with that one."
        )
    return group


@dataclass
class _Tokens:
    """A draft's token lists: the prompt, and per response one list for each of its pieces."""

    prompt: Ids
    responses: list[list[Ids]]


class _Coder:
    """Tokenises drafts in batches and puts them together within the limits."""

    def __init__(self, tokenizer: Any, limits: Limits, eos_ids: Sequence[int]):
        self.tokenizer, self.limits = tokenizer, limits
        self.eos = list(eos_ids)
        self.bos = _added_before(tokenizer)
        self.unknown = tokenizer.unk_token_id
        self.special = special_pattern(tokenizer)
        self.anchor = _anchor(tokenizer)

    def tokenise(self, drafts: list[Draft], audit: Audit) -> list[_Tokens]:
        """Ids of every prompt and every piece, in few calls of the tokenizer."""
        side = "end" if self.limits.truncation == "keep_end" else "start"
        prompts = self._bounded([d.prompt for d in drafts], side)
        pieces = ((d, piece) for d in drafts for own in d.responses for piece in own)
        ids = iter(self._continuations([(piece.text, bool(d.prompt), d.group.origin) for d, piece in pieces], audit))
        return [
            _Tokens(prompt, [[next(ids) for _ in own] for own in d.responses])
            for d, prompt in zip(drafts, prompts, strict=True)
        ]

    def _continuations(self, pieces: list[tuple[str, bool, str]], audit: Audit) -> list[Ids]:
        """Ids of (text, follows something, origin): what begins a sequence is left to the tokenizer's own manner."""
        anchor, anchor_ids = self.anchor
        inside = [bool(anchor) and follows for _, follows, _ in pieces]
        ids = self._bounded([anchor + text if use else text for (text, _, _), use in zip(pieces, inside, strict=True)])
        for i, (text, _, origin) in enumerate(pieces):
            if inside[i] and ids[i][: len(anchor_ids)] == anchor_ids:
                ids[i] = ids[i][len(anchor_ids) :]
            elif inside[i]:
                ids[i] = self._bounded([text])[0]
                audit.note("the tokenizer puts a space before this response", origin, text[:40])
        return ids

    def _bounded(self, texts: list[str], side: str = "start") -> list[Ids]:
        """Ids of texts; of enormous ones only as much as no limit can exceed, from the side that will be kept."""
        parts = [self._shorten(text, side) for text in texts]
        ids = self._batch(parts)
        for i, (text, part) in enumerate(zip(texts, parts, strict=True)):
            if part is not text and len(ids[i]) <= self.limits.max_length:  # fewer tokens than any guess: do all of it
                ids[i] = self._batch([text])[0]
        return ids

    def _shorten(self, text: str, side: str) -> str:
        """The text itself, or a part that surely holds more tokens than any limit, cut at white space where it can be.

        A special token at the very start (BOS of a chat template) stays.
        """
        room = (self.limits.max_length + 64) * LETTERS_PER_TOKEN
        if len(text) <= room:
            return text
        if side == "end":
            part = text[-room:]
            gap = next((i for i in range(1000) if part[i].isspace()), 0)
            marks = [mark for mark in self.tokenizer.all_special_tokens if text.startswith(mark)]
            return max(marks, key=len, default="") + part[gap:]
        gap = next((i for i in range(room - 1, room - 1000, -1) if text[i].isspace()), room)
        return text[:gap]

    def _batch(self, texts: list[str]) -> list[Ids]:
        ids: list[Ids] = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            ids += self.tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
        return ids

    def finish(self, draft: Draft, tokens: _Tokens, audit: Audit) -> Group:
        """The encoded group: special tokens exactly once, within the limits, nothing empty. Raises Unusable."""
        group = draft.group
        sampled = any(r.finish for r in group.responses)
        prompt = self._begin(draft, tokens.prompt, audit)
        rows = [
            self._end(response, pieces, lists, draft, audit)
            for response, pieces, lists in zip(group.responses, draft.responses, tokens.responses, strict=True)
        ]
        if not prompt and rows and rows[0][1]:  # nothing predicts the first token of a text without BOS
            for _, mask in rows:
                mask[0] = False
        self._note_oddities(draft, prompt, rows, audit)
        if not sampled:
            self._refuse_useless(rows, "")
        prompt, rows = self._fit(prompt, rows, draft, sampled, audit)
        if not sampled:
            self._refuse_useless(rows, " after truncation")
        responses = [
            replace(r, ids=ids, mask=mask, **_marks(r, lists, len(ids)))
            for r, (ids, mask), lists in zip(group.responses, rows, tokens.responses, strict=True)
        ]
        return replace(group, prompt_ids=prompt, responses=responses)

    def _begin(self, draft: Draft, ids: Ids, audit: Audit) -> Ids:
        """The prompt with the tokenizer's BOS exactly once. A chat template writes its own, or wants none."""
        n = len(self.bos)
        if n and ids[:n] == self.bos:
            if ids[n : 2 * n] == self.bos:
                raise Unusable("doubled BOS", draft.prompt[:60])
            if not draft.conversational:
                audit.note("BOS already in the text", draft.group.origin)
            return ids
        return ids if draft.conversational else [*self.bos, *ids]

    def _end(
        self, response: Response, pieces: list[Piece], lists: list[Ids], draft: Draft, audit: Audit
    ) -> tuple[Ids, list[bool]]:
        """Ids and mask of one response, with an EOS exactly once unless sampling hit its limit."""
        ids: Ids = [i for part in lists for i in part]
        mask = [piece.counts for piece, part in zip(pieces, lists, strict=True) for _ in part]
        ended = 0
        while ended < len(ids) and ids[-1 - ended] in self.eos:
            ended += 1
        keep = len(ids) - ended
        own = ids[keep:][:1]
        if ended > 1:
            audit.note("doubled EOS removed", draft.group.origin)
        elif ended and not draft.conversational:
            audit.note("EOS already in the text", draft.group.origin)
        elif not ended and draft.conversational and response.finish != "length":
            audit.note("the chat template does not end a turn: EOS appended", draft.group.origin)
        closing = [] if response.finish == "length" else own or self.eos[:1]
        return ids[:keep] + closing, mask[:keep] + [True] * len(closing)

    def _note_oddities(self, draft: Draft, prompt: Ids, rows: list[tuple[Ids, list[bool]]], audit: Audit) -> None:
        origin = draft.group.origin
        if self.unknown is not None and (self.unknown in prompt or any(self.unknown in ids for ids, _ in rows)):
            audit.note("text outside the vocabulary (unknown token)", origin)
        if draft.conversational or self.special is None:
            return
        if self.special.search(draft.prompt):
            audit.note("special tokens in the prompt's text (chat template already applied?)", origin)
        for response in draft.group.responses:
            found = self.special.search(response.text)
            if (
                found and self.special.sub("", response.text[found.end() :]).strip()
            ):  # closing tokens are `_end`'s concern
                audit.note("special token inside a response's text", origin)
                return

    def _refuse_useless(self, rows: list[tuple[Ids, list[bool]]], when: str) -> None:
        """Refuse responses without a token of their own, and groups in which there is nothing to compare."""
        for number, (ids, mask) in enumerate(rows, 1):
            if not any(counts and i not in self.eos for i, counts in zip(ids, mask, strict=True)):
                raise Unusable(f"empty response{when}", f"response {number} has no token of its own")
        if len(rows) > 1 and all(row == rows[0] for row in rows[1:]):
            raise Unusable(f"identical responses{when}", f"{len(rows)} responses of {len(rows[0][0])} equal tokens")

    def _fit(
        self, prompt: Ids, rows: list[tuple[Ids, list[bool]]], draft: Draft, sampled: bool, audit: Audit
    ) -> tuple[Ids, list[tuple[Ids, list[bool]]]]:
        """Cut responses, then the prompt, alike for the whole group; or refuse the group where truncation is 'drop'."""
        limits, origin = self.limits, draft.group.origin
        longest = max((len(ids) for ids, _ in rows), default=0)
        allowed = limits.response_limit(len(prompt))
        drop = limits.truncation == "drop" and not sampled
        if longest > allowed:
            detail = f"{longest} tokens, {allowed} allowed"
            if drop:
                raise Unusable("response over the length limit", detail)
            audit.note("responses truncated", origin, detail)
            rows = [(ids[:allowed], mask[:allowed]) for ids, mask in rows]
            longest = allowed
        room = limits.max_length - (longest if rows else limits.response_limit(len(prompt)))
        room = min(room, limits.max_prompt_length or room)
        if len(prompt) > room:
            detail = f"{len(prompt)} tokens, {room} allowed"
            if drop:
                raise Unusable("prompt over the length limit", detail)
            if limits.truncation == "keep_start" and draft.conversational:
                raise Unusable("prompt over the length limit, and keep_start would cut the assistant's header", detail)
            audit.note("prompts truncated", origin, detail)
            prompt = self._cut(prompt, room)
        return prompt, rows

    def _cut(self, prompt: Ids, room: int) -> Ids:
        """The end (or the start) of a prompt; its BOS stays."""
        if self.limits.truncation != "keep_end":
            return prompt[:room]
        head = self.bos if self.bos and prompt[: len(self.bos)] == self.bos and room > len(self.bos) else []
        return [*head, *prompt[len(prompt) - (room - len(head)) :]]


def _marks(response: Response, lists: list[Ids], kept: int) -> dict[str, Any]:
    """Where each step ends among the ids that were kept, and the labels of those steps. Raises Unusable for none."""
    if response.steps is None:
        return {}
    ends = [sum(len(part) for part in lists[: 2 * i + 2]) - 1 for i in range(len(response.steps))]
    marks = [end for end in ends if end < kept]
    if not marks:
        raise Unusable(
            "no step ends within the length limit", f"the first step has {ends[0] + 1} tokens, {kept} are kept"
        )
    labels = response.step_labels
    return {"marks": marks, "step_labels": None if labels is None else labels[: len(marks)]}


def _added_before(tokenizer: Any) -> Ids:
    """The ids that the tokenizer itself puts before a text: usually BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def _anchor(tokenizer: Any) -> tuple[str, Ids]:
    """A text to put before a continuation if the tokenizer would otherwise begin it with a space; else ('', [])."""

    def ids(text: str) -> Ids:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first = tokenizer.convert_ids_to_tokens(ids("a")[:1])
    if not first or not first[0].startswith(("▁", "Ġ")):
        return "", []
    for anchor in ("\n", ":", "."):
        start = ids(anchor)
        if start and ids(anchor + "a")[: len(start)] == start:
            return anchor, start
    return "", []


def split_key(group: Group) -> str:
    """What decides a group's side of a split: its prompt, or its text where there is none (plain texts)."""
    if group.prompt or not group.responses:
        return group.prompt_key()
    return hashlib.sha256(group.responses[0].text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def split_by_prompt(groups: Sequence[Group], fraction: float, seed: int) -> tuple[Any, list[Group]]:
    """(train, held out), all groups of a prompt on one side; train is on disk where the groups are.

    A prompt's side depends on the prompt and the seed alone: it does not move when rows are added, nor between
    stages that read different files with the same prompts. `fraction` is therefore met on average, not exactly.
    """
    if not 0 < fraction < 1:
        raise TruelineError(f"The held-out fraction is {fraction}, expected a number between 0 and 1.")
    sides: tuple[Any, list[Group]] = (like(groups), [])
    for group in groups:
        sides[derive(seed, "held out", split_key(group)) < fraction * 2**63].append(group)
    if not all(sides):
        empty = "training" if not sides[0] else "evaluation"
        raise TruelineError(
            f"Holding out {fraction:g} of {len({split_key(g) for g in groups})} prompts leaves no {empty} group. Change the "
            "fraction, or give eval_data."
        )
    return sides


def overlap(train: Sequence[Group], held_out: Sequence[Group]) -> int:
    """Number of distinct prompts (texts, where there is no prompt) that stand in both."""
    keys = {split_key(g) for g in held_out}
    return len(keys & {key for g in train if (key := split_key(g)) in keys})


def length_summary(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Tokens of prompts, chosen and other responses: {prompt, chosen, rejected: {p5, p50, p95, max}}.

    chosen: the best by rank, else by reward, else a thumb up or a response without a verdict. A part without values
    is left out.
    """
    lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    for group in groups:
        lengths["prompt"].append(len(group.prompt_ids or ()))
        for part, responses in _parts(group.responses).items():
            lengths[part] += [len(r.ids or ()) for r in responses]
    return {part: percentiles(values) for part, values in lengths.items() if values}


def _parts(responses: list[Response]) -> dict[str, list[Response]]:
    if len(responses) < 2:
        return {"rejected" if r.label is False else "chosen": [r] for r in responses}
    if all(r.rank is not None for r in responses):
        best = min(responses, key=lambda r: r.rank or 0)
    elif all(r.reward is not None for r in responses):
        best = max(responses, key=lambda r: r.reward or 0.0)
    else:
        return {"chosen": responses}
    return {"chosen": [best], "rejected": [r for r in responses if r is not best]}


def percentiles(values: Sequence[int]) -> dict[str, float]:
    """{p5, p50, p95, max} of these lengths."""
    p5, p50, p95 = np.percentile(values, [5, 50, 95])
    return {"p5": float(p5), "p50": float(p50), "p95": float(p95), "max": float(max(values))}


def describe_first(group: Group, tokenizer: Any, *, limit: int = 400) -> Any:
    """The group as the model sees it, for the terminal: a rich Text.

    Tokens that count in a loss stand between ⟦ and ⟧ (and are green and bold), all others are dim. Parts longer than
    `limit` tokens are shown from both ends.
    """
    from rich.text import Text

    out = Text()
    ids = group.prompt_ids or []
    out.append(f"first sample · {group.origin or 'no origin'}\n", style="bold")
    out.append(f"prompt · {len(ids)} tokens\n", style="bold cyan")
    _append_tokens(out, ids, [False] * len(ids), tokenizer, limit)
    for number, response in enumerate(group.responses, 1):
        own, mask = response.ids or [], response.mask or []
        facts = [f"response {number}", f"{len(own)} tokens", f"{sum(mask)} in the loss"]
        facts += [
            f"{name} {value}" for name in ("rank", "label", "reward") if (value := getattr(response, name)) is not None
        ]
        facts += [f"steps {response.step_labels} read at {response.marks}"] if response.marks else []
        out.append("\n" + " · ".join(facts) + "\n", style="bold cyan")
        _append_tokens(out, own, mask, tokenizer, limit)
    return out


def _append_tokens(out: Any, ids: Ids, mask: list[bool], tokenizer: Any, limit: int) -> None:
    head = len(ids) if len(ids) <= limit else limit // 2
    _append_spans(out, ids[:head], mask[:head], tokenizer)
    if head < len(ids):
        out.append(f" … {len(ids) - 2 * head} tokens … ", style="italic")
        _append_spans(out, ids[-head:], mask[-head:], tokenizer)
    out.append("\n")


def _append_spans(out: Any, ids: Ids, mask: list[bool], tokenizer: Any) -> None:
    start = 0
    while start < len(ids):
        end = start
        while end < len(ids) and mask[end] == mask[start]:
            end += 1
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        out.append(f"⟦{text}⟧" if mask[start] else text, style="bold green" if mask[start] else "dim")
        start = end
