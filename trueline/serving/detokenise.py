"""Text out of token ids as they come, without ever sending half a character.

A character of several bytes may be spread over several tokens, and a tokenizer decodes what is not finished yet as
U+FFFD. Text is therefore held while it ends with one. Tokenizers also decode a token differently at the start of a text
(SentencePiece drops its space there), so the tokens that were sent last stay in view as context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"
CHARACTER = 4  # bytes of the longest character, and so the most tokens that it can be spread over
PENDING = 8  # tokens; a longer run of broken characters is the model's own


class Detokeniser:
    """`add` returns the text that is certain so far, `finish` the rest; together they are the decoded whole.

    Special tokens are left out. Bytes that no later token can complete come out as U+FFFD, as the tokenizer writes them.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._window: list[int] = []  # the tokens sent last, then those not sent entirely
        self._read = 0  # tokens of the window whose text has been sent
        self._sent = ""  # text of the window that has been sent

    def add(self, ids: Sequence[int]) -> str:
        """The text that these tokens make certain; often empty in the middle of a character."""
        self._window.extend(ids)
        certain, used = self._certain()
        if not certain.startswith(self._sent):  # a stray byte made the tokenizer take back what came before it
            return ""
        piece = certain[len(self._sent) :]
        self._sent = certain
        if piece and used is not None:
            self._move(used)
        return piece

    def _certain(self) -> tuple[str, int | None]:
        """Text of the window that no later token can change, and the tokens it takes, None within a character.

        The last tokens are left out one by one, because some tokenizers read a whole run of bytes as broken while its
        last character is not complete.
        """
        whole = self._decode(self._window)
        if not whole.endswith(BROKEN):
            return whole, len(self._window)
        for used in range(len(self._window) - 1, max(self._read, len(self._window) - CHARACTER), -1):
            text = self._decode(self._window[:used])
            if not text.endswith(BROKEN):
                return text, used
        overdue = len(self._window) - self._read > PENDING
        return (whole[:-1] if overdue else self._sent), None  # nothing before the last broken one can be completed

    def finish(self) -> str:
        """What was held back; the stream is over."""
        text = self._decode(self._window)
        piece = text[len(self._sent) :]
        self._sent, self._read = text, len(self._window)
        return piece

    def _move(self, used: int) -> None:
        """Drop what is not needed as context: everything before the tokens that were just sent."""
        self._window = self._window[self._read :]
        self._read = used - self._read
        self._sent = self._decode(self._window[: self._read])

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
