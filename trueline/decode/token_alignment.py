"""Token alignment: prompts that end inside a token are taken back and written again (arXiv 2403.08688).

The last b tokens of the prompt are taken back. While bytes q of them are unwritten, the next token v may be one whose bytes start with q, or one
that q starts with; the others are masked and the rest renormalised. Then decoding is unconstrained. So the whole text starts exactly with
the prompt, and the model may choose the tokens that it would have written: "intermed" is no beginning that it knows, "intermediate" is.

Going back continues over a run of white space, whose tokens depend on what follows, and to the start of a character; it stops at special tokens.
A token after which q could no longer be written is not allowed either (`trueline/decoding/bytetrie.py`), nor one that leaves too few tokens for it.
Masking token by token is not conditioning on the text: `trueline/decoding/string_law.py` computes the distance, which need not shrink as b
grows. backtrack 3 reaches over the last word in common vocabularies; 0 is ordinary decoding. `transformers` heals one token only,
strips the prompt's white space and adds a bias instead of a mask, so that its text need not start with the prompt.

The response's ids begin with the tokens that write q again; its text, stop texts and text rewards begin after q. max_new_tokens grows by the
tokens that were taken back.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.bytetrie import ByteTrie, back_off, token_bytes
from trueline.decoding.request import Request
from trueline.errors import TruelineError


@decoder(
    unit="token",
    hook="prompt",
    arxiv="2403.08688",
    paper="Token Alignment via Character Matching for Subword Completion",
)
def token_alignment(engine: Any, request: Request, *, backtrack: int = 3) -> Request:
    """backtrack: tokens of the prompt that are written again, at least."""
    if backtrack < 0:
        raise TruelineError(f"token_alignment.backtrack is {backtrack}; expected 0 (ordinary decoding) or more tokens.")
    if engine.tokenizer is None:
        raise TruelineError("token_alignment works on the bytes of tokens; open the engine with a tokenizer.")
    trie = _trie(engine.tokenizer)
    ids, text = list(request.prompt_ids), _plain_text(engine.tokenizer, request)
    kept, left = back_off(trie, ids, backtrack, text)
    if not left:
        return request
    limit, given = request.max_new_tokens + len(ids) - len(kept), request.allowed

    def allowed(new: list[int]) -> Any:
        """Tokens that write the prompt's end; once that is written, those that the request's own mask allows."""
        room = limit - len(new)
        written = trie.write(new[: len(left)])  # every one of them writes something
        rest = left[len(written) :]
        if rest:
            return trie.allowed(rest, room if room < len(rest) else None)
        return None if given is None else given(_after(trie, new, len(left)))

    return replace(
        request, prompt_ids=kept, max_new_tokens=limit, allowed=allowed, overlap=left.decode("utf-8", "replace")
    )


@lru_cache(maxsize=4)
def _trie(tokenizer: Any) -> ByteTrie:
    return ByteTrie(token_bytes(tokenizer))


def _plain_text(tokenizer: Any, request: Request) -> str | None:
    """The prompt as text, where its ids are nothing but that text."""
    if not isinstance(request.prompt, str) or not request.prompt:
        return None
    encodings = [tokenizer(request.prompt, add_special_tokens=special)["input_ids"] for special in (True, False)]
    return request.prompt if list(request.prompt_ids) in [list(ids) for ids in encodings] else None


def _after(trie: ByteTrie, new: list[int], size: int) -> list[int]:
    """The tokens after those that wrote the prompt's end."""
    count = written = 0
    while written < size:
        written += len(trie.write(new[count : count + 1]))
        count += 1
    return new[count:]
