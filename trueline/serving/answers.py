"""Answers in OpenAI's two protocols, whole or as chunks. One class each; what they share stands in `Answer`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from trueline.serving.choices import Choice, Piece, TokenReport, Vocabulary, total_cost, usage
from trueline.serving.prepare import Plan
from trueline.serving.scheduler import Batch


class Answer:
    """The choices of one HTTP request as they grow; choice j of prompt i has index i * n + j."""

    object: str
    chunk: str
    prefix: str

    def __init__(self, plan: Plan, tokenizer: Any, vocabulary: Vocabulary, echo: bool = False):
        self.plan = plan
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.choices = [
            Choice(i * request.n + j, request, tokenizer, vocabulary, plan.alternatives is not None)
            for i, request in enumerate(plan.requests)
            for j in range(request.n)
        ]
        self.echo = [plan.prompts[i] if echo else "" for i, r in enumerate(plan.requests) for _ in range(r.n)]
        self._texts: list[list[str]] = [[] for _ in self.choices]
        self._reports: list[list[TokenReport]] = [[] for _ in self.choices]

    def add(self, batch: Batch) -> Iterator[tuple[Choice, Piece]]:
        """The piece of each choice that these events make certain: what was committed at once is sent at once."""
        pieces: dict[Choice, Piece] = {}
        for index, event in batch:
            choice = self.choices[index * self.plan.requests[index].n + event.choice]
            piece = choice.add(event)
            pieces[choice] = pieces[choice].joined(piece) if choice in pieces else piece
        yield from pieces.items()

    def keep(self, batch: Batch) -> None:
        """Gather the pieces for a whole answer."""
        for choice, piece in self.add(batch):
            self._texts[choice.number].append(piece.text)
            self._reports[choice.number] += piece.tokens or []

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for choice, texts, reports, echo in zip(self.choices, self._texts, self._reports, self.echo, strict=True):
            said = self._whole_choice(echo + "".join(texts))
            logprobs = self._logprobs(reports, len(echo)) if self.plan.alternatives is not None else None
            choices.append(
                {
                    "index": choice.number,
                    **said,
                    "logprobs": logprobs,
                    "finish_reason": choice.finish,
                    "alignment": choice.alignment(self.plan.trace),
                }
            )
        return {
            **self._head(self.object),
            "choices": choices,
            "usage": usage(self.plan.prompt_tokens, self.choices),
            "alignment": self.cost(),
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first token."""
        raise NotImplementedError

    def chunks(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """A chunk a piece that says something; the end of a choice comes with what is known of it."""
        for choice, piece in self.add(batch):
            if not (piece.text or piece.tokens or piece.result):
                continue
            body: dict[str, Any] = {"index": choice.number, **self._part(piece.text)}
            asked = self.plan.alternatives is not None
            body["logprobs"] = self._logprobs(piece.tokens or [], self._offset(choice)) if asked else None
            body["finish_reason"] = choice.finish
            self._texts[choice.number].append(piece.text)
            if piece.result is not None:
                body["alignment"] = choice.alignment(self.plan.trace)
            last = {"alignment": self.cost()} if all(c.result is not None for c in self.choices) else {}
            yield {**self._head(self.chunk), "choices": [body], **last}

    def closing(self) -> dict[str, Any]:
        """The chunk after the last one, without choices, for clients that asked for usage."""
        return {**self._head(self.chunk), "choices": [], "usage": usage(self.plan.prompt_tokens, self.choices)}

    def cost(self) -> dict[str, Any]:
        return {"method": self.plan.requests[0].method, "counters": total_cost(self.choices)}

    def over_budget(self) -> bool:
        """Whether a choice ended for want of budget although the client would rather have an error."""
        ended = [choice.result.finish for choice in self.choices if choice.result is not None]
        return self.plan.on_budget == "error" and "budget" in ended

    def _offset(self, choice: Choice) -> int:
        return len(self.echo[choice.number]) + sum(map(len, self._texts[choice.number]))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.plan.model}

    def _whole_choice(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _part(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, reports: Sequence[TokenReport], offset: int) -> dict[str, Any]:
        raise NotImplementedError


class ChatAnswer(Answer):
    """/v1/chat/completions."""

    object, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self) -> Iterator[dict[str, Any]]:
        for choice in self.choices:
            delta = {"role": "assistant", "content": ""}
            body = {"index": choice.number, "delta": delta, "logprobs": None, "finish_reason": None}
            yield {**self._head(self.chunk), "choices": [body]}

    def _whole_choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, reports: Sequence[TokenReport], offset: int) -> dict[str, Any]:
        return {"content": [report.chat() for report in reports], "refusal": None}


class CompletionAnswer(Answer):
    """/v1/completions."""

    object, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def opening(self) -> Iterator[dict[str, Any]]:
        for choice, echo in zip(self.choices, self.echo, strict=True):
            if echo:
                body = {"index": choice.number, "text": echo, "logprobs": None, "finish_reason": None}
                yield {**self._head(self.chunk), "choices": [body]}

    def _whole_choice(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _part(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, reports: Sequence[TokenReport], offset: int) -> dict[str, Any]:
        """The older form: parallel lists. text_offset counts characters of the tokens as they are reported."""
        offsets, at = [], offset
        for report in reports:
            offsets.append(at)
            at += len(report.text)
        return {
            "tokens": [report.text for report in reports],
            "token_logprobs": [report.logp for report in reports],
            "top_logprobs": [{other.text: other.logp for other in report.others} for report in reports],
            "text_offset": offsets,
        }
