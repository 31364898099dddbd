"""Tokens as the bytes they write, and which of them may come next while a text that was begun is being written again.

Token alignment (`trueline/decode/token_alignment.py`) takes a prompt back by a few tokens and has their bytes q written anew:

    allowed(q) = {v : bytes(v) starts with q} + {v : q starts with bytes(v), and tokens exist that write what is left}

The last condition is ours: without it a vocabulary that lacks single bytes (WordPiece, unigram) can be led into a dead end where
nothing is allowed. For a vocabulary with every byte it is always met, and the rule is the paper's.

Everything is bytes, because byte-level pieces may be parts of a character. The trie is kept as a sorted table: tokens that start with
q are one run of it, and tokens that q starts with are looked up by their bytes.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from trueline.errors import TruelineError

MASKS = 4096  # remaining texts whose masks are kept


def byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte (GPT-2's table, which `tokenizers` shares)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    rest = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """What each id writes in the middle of a text; None for special tokens, the unknown token and ids without a token.

    Tokens of vocabularies that put a space before every text (SentencePiece, words) carry that space. Raises TruelineError for a
    tokenizer whose decoder rewrites text across tokens, because then no token has bytes of its own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TruelineError(
            f"{type(tokenizer).__name__} is not a `tokenizers` tokenizer, so the bytes of its tokens cannot be read. Load the "
            "model's tokenizer.json (use_fast=True)."
        )
    write = _writer(json.loads(backend.to_str())["decoder"])
    vocabulary = tokenizer.get_vocab()
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for piece, number in vocabulary.items():
        table[number] = write(piece)
    for number, token in tokenizer.added_tokens_decoder.items():
        table[number] = None if token.special else token.content.encode()
    for number in {*tokenizer.all_special_ids, tokenizer.unk_token_id} - {None}:
        table[number] = None
    return [piece or None for piece in table]


def _writer(decoder: dict[str, Any] | None) -> Any:
    """The function from a piece of the vocabulary to its bytes."""
    steps = [decoder] if decoder and decoder["type"] != "Sequence" else (decoder or {}).get("decoders", [])
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        letters = byte_letters()
        return lambda piece: bytes(letters[c] for c in piece) if all(c in letters for c in piece) else piece.encode()
    if "WordPiece" in kinds:
        step = kinds["WordPiece"]
        if step.get("cleanup"):
            raise TruelineError(
                "This tokenizer's decoder takes spaces out before punctuation (WordPiece with cleanup), so its tokens have no "
                "bytes of their own. Set cleanup to false in tokenizer.json's decoder."
            )
        mark = step["prefix"]
        return lambda piece: (piece[len(mark) :] if piece.startswith(mark) else " " + piece).encode()
    if "Metaspace" in kinds or "ByteFallback" in kinds or "Replace" in kinds:
        space = kinds.get("Metaspace", {}).get("replacement", "▁")
        return lambda piece: _byte_piece(piece) or piece.replace(space, " ").encode()
    if not steps:  # `tokenizers` joins such tokens by spaces
        return lambda piece: (" " + piece).encode()
    raise TruelineError(
        f"The bytes of this tokenizer's tokens cannot be read: its decoder is {' + '.join(kinds)}. Known are byte-level, WordPiece, "
        "SentencePiece (Metaspace, Replace, ByteFallback) and word-level tokenizers."
    )


def _byte_piece(piece: str) -> bytes | None:
    """SentencePiece's <0x0A>: one byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return None


class ByteTrie:
    """The tokens of a vocabulary by their bytes. table: bytes by id, None where a token writes none."""

    def __init__(self, table: Sequence[bytes | None]):
        self.table = list(table)
        pairs = sorted((piece, number) for number, piece in enumerate(self.table) if piece)
        self._pieces = [piece for piece, _ in pairs]
        self._ids = [number for _, number in pairs]
        self._longest = max(map(len, self._pieces), default=0)
        self.allowed = lru_cache(maxsize=MASKS)(self._allowed)

    def starting_with(self, text: bytes) -> list[int]:
        """Ids of tokens whose bytes start with this text, in order of their bytes."""
        return self._ids[slice(*self._run(text))]

    def starts_of(self, text: bytes) -> list[int]:
        """Ids of tokens that are shorter than this text and begin it."""
        return [i for size in range(1, min(len(text), self._longest + 1)) for i in self._exactly(text[:size])]

    def fewest(self, text: bytes) -> int | None:
        """The fewest tokens that write this text (the last may write more); None if none do."""
        return self._fewest(text)[0]

    def _allowed(self, text: bytes, room: int | None = None) -> tuple[int, ...] | None:
        """Ids that may be written next, in order; None (all may) once nothing is left to write. room: tokens there are left, where
        that is few enough to matter."""
        if not text:
            return None
        fewest = self._fewest(text)
        left = len(text) if room is None else room - 1
        found = self.starting_with(text) if left >= 0 else []
        for number in self.starts_of(text):
            need = fewest[len(self.table[number] or b"")]
            if need is not None and need <= left:
                found.append(number)
        if not found:
            raise TruelineError(
                f"No token of this vocabulary can write {text[:40]!r}"
                + (f" within {room} tokens." if room is not None else ".")
            )
        return tuple(sorted(found))

    def _fewest(self, text: bytes) -> list[int | None]:
        """Per place of the text, the fewest tokens that write what follows."""
        fewest: list[int | None] = [None] * len(text) + [0]
        for at in range(len(text) - 1, -1, -1):
            low, high = self._run(text[at:])
            ways = [1] if high > low else []
            for size in range(1, min(len(text) - at, self._longest + 1)):
                rest = fewest[at + size]
                if rest is not None and self._exactly(text[at : at + size]):
                    ways.append(1 + rest)
            fewest[at] = min(ways, default=None)
        return fewest

    def _run(self, text: bytes) -> tuple[int, int]:
        low = bisect_left(self._pieces, text)
        after = text.rstrip(b"\xff")  # the least text beyond all that start with this one
        high = bisect_left(self._pieces, after[:-1] + bytes([after[-1] + 1])) if after else len(self._pieces)
        return low, high

    def _exactly(self, text: bytes) -> list[int]:
        low = bisect_left(self._pieces, text)
        high = low
        while high < len(self._pieces) and self._pieces[high] == text:
            high += 1
        return self._ids[low:high]

    def write(self, ids: Iterable[int]) -> bytes:
        """The bytes of these tokens; special ones write nothing."""
        return b"".join(self.table[i] or b"" if i < len(self.table) else b"" for i in ids)


def back_off(trie: ByteTrie, ids: Sequence[int], backtrack: int, text: str | None = None) -> tuple[list[int], bytes]:
    """Take a prompt back by `backtrack` tokens; returns the tokens that stay and the bytes to be written again.

    It goes on back over a run of white space (whose pieces depend on what follows it) and to the beginning of a character, and stops
    at a special token and at the prompt's first token. text: the prompt as it was given, where its tokens stand for nothing
    else; spaces at its end that the tokenizer dropped are then asked for too. Raises TruelineError where the tokenizer changed
    the text elsewhere.
    """
    free = 0  # ordinary tokens at the end
    while free < len(ids) and ids[-1 - free] < len(trie.table) and trie.table[ids[-1 - free]]:
        free += 1
    lost = b""
    if text is not None and backtrack:
        lost = _lost(trie.write(ids[len(ids) - free :]), text, free < len(ids))
    free = min(free, len(ids) - 1)  # a model needs something to read
    back = min(backtrack, free)

    def first(count: int) -> bytes:
        return trie.table[ids[len(ids) - count]] or b""

    while 0 < back < free and (
        (first(back)[:1].isspace() and first(back + 1).isspace()) or 0x80 <= first(back)[0] < 0xC0  # inside a character
    ):
        back += 1
    stay = len(ids) - back
    return list(ids[:stay]), trie.write(ids[stay:]) + lost


def _lost(written: bytes, text: str, special: bool) -> bytes:
    """White space at the end of the text that its tokens do not write. special: they follow a special token."""
    given = text.encode()
    for end in range(len(given), len(given.rstrip()) - 1, -1):
        body = given[:end]
        if written in (body, b" " + body) or (special and body.endswith((written, written.removeprefix(b" ")))):
            return given[end:]
    pairs = enumerate(zip(written.lstrip(), given.lstrip(), strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(written), len(given)))
    raise TruelineError(
        f"The tokenizer does not keep this prompt's text: its tokens write {written[:60]!r} for {given[:60]!r} (they part about byte "
        f"{same}). A continuation cannot start with a text that the vocabulary cannot write; normalise the prompt as the tokenizer does."
    )
