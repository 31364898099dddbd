"""What one choice has said so far: text that is certain, log-probs of its tokens, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trueline.decoding.request import Counters, Event, Request, Result
from trueline.serving.detokenise import Detokeniser
from trueline.serving.stopping import StopHolder

# The standard reasons; what they leave out stands in `alignment.status`.
FINISH = {"stop": "stop", "length": "length", "budget": "length"}


@dataclass(frozen=True)
class TokenReport:
    """A token with its log-prob and that of its alternatives, as both protocols need it."""

    text: str
    raw: bytes
    logp: float
    others: list[TokenReport] = field(default_factory=list)

    def chat(self) -> dict[str, Any]:
        plain = {"token": self.text, "logprob": self.logp, "bytes": list(self.raw)}
        return {**plain, "top_logprobs": [other.chat_alone() for other in self.others]}

    def chat_alone(self) -> dict[str, Any]:
        return {"token": self.text, "logprob": self.logp, "bytes": list(self.raw)}


@dataclass
class Piece:
    """What an event adds: text, reports of its tokens (None where none are asked for), and the result at the end."""

    text: str
    tokens: list[TokenReport] | None
    result: Result | None

    def joined(self, later: Piece) -> Piece:
        tokens = None if self.tokens is None else [*self.tokens, *(later.tokens or ())]
        return Piece(self.text + later.text, tokens, later.result)


class Vocabulary:
    """Token ids as text and bytes; parts of characters are written as `bytes:\\xe2\\x82`, as OpenAI does."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._bytes = _byte_table(tokenizer)

    def report(self, token: int, logp: float, others: Sequence[tuple[int, float]] = ()) -> TokenReport:
        raw = self.raw(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return TokenReport(text, raw, logp, [self.report(i, p) for i, p in others])

    def raw(self, token: int) -> bytes:
        """The bytes that this token writes inside a text."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the embedding beyond the tokenizer
            return b""
        if self._bytes is not None and all(letter in self._bytes for letter in piece):
            return bytes(self._bytes[letter] for letter in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("▁", " ").encode()


class Overlap:
    """Drops what an answer writes of its prompt again (token alignment), and holds the answer until that is written."""

    def __init__(self, overlap: str):
        # Tokenizers that begin every text with a space drop that space at the beginning of a decoded text.
        self._starts: tuple[str, ...] | None = (overlap, overlap.removeprefix(" ")) if overlap else None
        self._text = ""

    def add(self, text: str) -> str:
        if self._starts is None or not text:
            return text
        self._text += text
        for start in self._starts:
            if self._text.startswith(start):
                self._starts = None
                return self._text[len(start) :]
        return ""


class Choice:
    """Follows one choice of one request, as the engine runs it. number: its index in the answer."""

    def __init__(self, number: int, request: Request, tokenizer: Any, vocabulary: Vocabulary, reports: bool):
        self.number, self.request, self.vocabulary, self.reports = number, request, vocabulary, reports
        self.ends = frozenset(request.eos_ids)
        self.tokens = 0
        self.result: Result | None = None
        self.law = "realised"
        self._text = Detokeniser(tokenizer)
        self._overlap = Overlap(request.overlap)
        self._stop = StopHolder(request.stop)

    def add(self, event: Event) -> Piece:
        """The text and reports that this event makes certain."""
        self.tokens += len(event.ids)
        words = [i for i in event.ids if i not in self.ends]
        text = self._stop.add(self._overlap.add(self._text.add(words)))
        if event.finished is not None:
            self.result = event.finished
            text += self._stop.add(self._overlap.add(self._text.finish()))
            text += self._stop.finish()
        return Piece(text, self._reported(event) if self.reports else None, event.finished)

    @property
    def finish(self) -> str | None:
        """The standard reason why it ended; None while it runs."""
        if self.result is None:
            return None
        return "stop" if self._stop.matched is not None else FINISH[self.result.finish]

    def _reported(self, event: Event) -> list[TokenReport]:
        """Every token but the one that ended the answer, with log-probs under the law it was committed by."""
        if event.behaviour_logp is None:  # a whole sample chosen among several has no law a token
            self.law = "base"
        logps = event.base_logp if event.behaviour_logp is None else event.behaviour_logp
        tops = event.top or [[] for _ in event.ids]
        return [
            self.vocabulary.report(token, logp, top)
            for token, logp, top in zip(event.ids, logps, tops, strict=True)
            if token not in self.ends
        ]

    def alignment(self, trace: bool) -> dict[str, Any]:
        """What Trueline says of a finished choice beside its text."""
        result = self.result
        assert result is not None
        laws = result.behaviour_logp
        said = {
            "method": self.request.method,
            "status": result.finish,
            "seed": self.request.seed,
            "reward": result.reward,
            "rewards": result.rewards,
            "kl": result.kl,
            "kl_kind": result.kl_kind,
            "logprob": None if laws is None else sum(laws),
            "base_logprob": sum(result.base_logp),
            "logprobs_law": self.law if self.reports else None,
            "tokens": len(result.ids),
        }
        return {**said, "details": result.details} if trace else said


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's counts, and beside them what the reward models had to do."""
    new = sum(choice.tokens for choice in choices)
    spent = total_cost(choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
        "reward_calls": spent["rm_calls"],
        "reward_tokens": spent["rm_tf"],
    }


def total_cost(choices: Sequence[Choice]) -> dict[str, float]:
    """Counters of the whole answer. Choices of one prompt share a set, of which the latest is complete; prompts run side
    by side, so that depth and seconds are those of the slowest."""
    latest: dict[int, Counters] = {}
    for choice in choices:
        if choice.result is not None:
            known, found = latest.get(id(choice.request)), choice.result.counters
            latest[id(choice.request)] = found if known is None else max(known, found, key=lambda c: c.seconds)
    total = {}
    for name in Counters().to_json():
        values = [counters.to_json()[name] for counters in latest.values()]
        total[name] = max(values, default=0) if name in ("depth", "seconds") else sum(values)
    return total


def _byte_table(tokenizer: Any) -> dict[str, int] | None:
    """Letter to byte of a byte-level vocabulary; None for any other."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = set(ByteLevel.alphabet())
    vocabulary = tokenizer.get_vocab()
    if not letters <= vocabulary.keys():
        return None
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves (GPT-2's table)
    rest = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(rest)}
