"""Special tokens and the vocabulary: what ends a response, what pads, what is added, and whether two vocabularies agree.

A response ends at any of several tokens: the tokenizer's EOS, those the model's generation config lists, the token its
chat template puts after an assistant turn, and whatever the user names. Masks go by length, never by `id != pad`, so
sharing a token between padding and EOS is safe for language models; it is not for a sequence classifier, whose plain
`transformers` forward takes the last token that is not padding.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from trueline.encode import check_vocabulary
from trueline.errors import TruelineError, nearest
from trueline.randomness import derive

# Names that released models give to tokens meant for padding, most specific first.
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>", "<|vision_pad|>", "<|endoftext|>")
NEW_PAD = "<|pad|>"

_HASHES: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()


def vocabulary_hash(tokenizer: Any) -> str:
    """Content key of what turns text into ids: equal hashes mean that ids may travel between two models."""
    known = _HASHES.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = (len(tokenizer), _hash(tokenizer))
        _HASHES[tokenizer] = known
    return known[1]


def _hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        body: dict[str, Any] = {"vocab": tokenizer.get_vocab()}
    else:
        whole = json.loads(backend.to_str())
        # Truncation, padding and the post-processor shape a call, not the meaning of an id.
        body = {k: whole.get(k) for k in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def embedding_rows(model: Any) -> int:
    """Rows of the input embedding; often padded beyond the tokenizer's vocabulary."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_fits(tokenizer: Any, rows: int, path: str) -> None:
    """Every id the tokenizer can produce needs an embedding row."""
    vocabulary = tokenizer.get_vocab()
    if not vocabulary or len(vocabulary) <= len(tokenizer.all_special_ids):
        raise TruelineError(
            f"'{path}' has no tokenizer: its vocabulary holds {len(vocabulary)} tokens, special ones included. "
            "Copy tokenizer.json and tokenizer_config.json of the model into the folder."
        )
    try:
        check_vocabulary(tokenizer, rows)
    except TruelineError as error:
        raise TruelineError(f"'{path}': {error}") from error


def add_special_tokens(model: Any, tokenizer: Any, tokens: Sequence[str], seed: int) -> list[str]:
    """Add tokens as special ones and give each an embedding (and head) row near the mean of the existing ones.

    A mean row makes the new token as likely as an average one at first (resizing with raw random rows can put a new
    token far above all others). Tied heads stay tied. Returns notes for the user.
    """
    from tokenizers import AddedToken

    for token in tokens:
        if not token.strip():
            raise TruelineError(f"add_tokens holds {token!r}; a special token needs a visible name such as '<|tool|>'.")
    vocabulary = tokenizer.get_vocab()
    fresh = [t for t in dict.fromkeys(tokens) if t not in vocabulary]
    present = [t for t in dict.fromkeys(tokens) if t in vocabulary]
    notes = [f"add_tokens: {t!r} was already in the vocabulary (id {vocabulary[t]})." for t in present]
    first_new = max(vocabulary.values()) + 1
    used_rows = first_new
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens], special_tokens=True)
    if not fresh:
        return notes
    ids = tokenizer.convert_tokens_to_ids(fresh)
    needed, rows = max(ids) + 1, embedding_rows(model)
    if needed > rows:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "add_tokens"))
            model.resize_token_embeddings(needed, mean_resizing=True)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.trueline_added_tokens = True  # an adapter folder must then carry the embedding too
    # Rows that were mere padding of the embedding were never trained either.
    _set_to_mean(model, [i for i in ids if i < rows], used_rows)
    notes.append(
        f"add_tokens: {', '.join(map(repr, fresh))} added as ids {ids}; embedding rows {rows} -> {embedding_rows(model)}."
    )
    return notes


@torch.no_grad()
def _set_to_mean(model: Any, ids: list[int], used_rows: int) -> None:
    """Set existing but unused rows of embedding and head to the mean of the used ones."""
    if not ids:
        return
    layers: Iterable[nn.Module | None] = (model.get_input_embeddings(), model.get_output_embeddings())
    for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
        weight[ids] = weight[:used_rows].mean(0)  # type: ignore[index, operator]


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The special token that the chat template puts right after an assistant turn; None where there is none."""
    if not tokenizer.chat_template:
        return None
    content = "trueline-probe"
    turns = [{"role": "user", "content": "probe"}, {"role": "assistant", "content": content}]
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, KeyError, ValueError):
        return None  # a template with its own idea of a conversation; encoding the user's data will say what is wrong
    _, found, rest = text.rpartition(content)
    if not found or not rest.strip():
        return None
    ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and _is_special(tokenizer, ids[0]) else None


def _is_special(tokenizer: Any, token_id: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token_id)
    return token_id in tokenizer.all_special_ids or bool(added is not None and added.special)


def find_eos_ids(tokenizer: Any, listed: Iterable[int], named: Sequence[str], rows: int, path: str) -> list[int]:
    """Every id that ends a response, the tokenizer's own EOS first.

    listed: ids of the model's generation config (or its config). named: tokens the user gave as eos_tokens.
    """
    vocabulary = tokenizer.get_vocab()
    for token in named:
        if token not in vocabulary:
            raise TruelineError(
                f"eos_tokens: {token!r} is not a token of '{path}'. {nearest(token, tokenizer.all_special_tokens)} "
                "A new token goes into add_tokens as well."
            )
    candidates = [tokenizer.eos_token_id, end_of_turn_id(tokenizer), *listed, *(vocabulary[t] for t in named)]
    ids = [i for i in dict.fromkeys(candidates) if i is not None]
    beyond = [i for i in ids if not 0 <= i < rows]
    if beyond:
        raise TruelineError(
            f"'{path}' ends responses at token id {beyond[0]}, but its embedding has {rows} rows. Correct eos_token_id in "
            "its generation_config.json."
        )
    if not ids:
        raise TruelineError(
            f"'{path}' has no token that ends a response: no eos_token in its tokenizer, none in its generation config, none "
            "in its chat template. Name one with eos_tokens (and add_tokens if it is new)."
        )
    return ids


def ensure_pad(model: Any, tokenizer: Any, *, head: str, ends: Sequence[int], seed: int) -> list[str]:
    """Give tokenizer and model a padding token. Returns notes for the user.

    A language model without one borrows a token (masks go by length). A sequence classifier needs a token that never
    ends a response, or plain `transformers` would read the score one token early; it gets a new one if need be.
    """
    notes: list[str] = []
    free = [t for t in PAD_NAMES if t in tokenizer.get_vocab() and tokenizer.convert_tokens_to_ids(t) not in ends]
    clash = head == "scalar" and tokenizer.pad_token_id in ends
    if tokenizer.pad_token_id is None or clash:
        before = tokenizer.pad_token
        if free:
            tokenizer.pad_token = free[0]
        elif head == "scalar":
            notes += add_special_tokens(model, tokenizer, [NEW_PAD], seed)
            tokenizer.pad_token = NEW_PAD
        else:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
        why = f"its padding token {before!r} also ends responses" if clash else "it has no padding token"
        notes.append(f"The tokenizer pads with {tokenizer.pad_token!r} now: {why}.")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.config.get_text_config() is not model.config:
        model.config.pad_token_id = tokenizer.pad_token_id
    return notes
