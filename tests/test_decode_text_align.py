"""Token alignment: bytes of tokens, the mask, the way back, and how far it is from conditioning on the text."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import model_folders
from tests import tokenizers_on_the_spot as spot
from trueline.decoding.bytetrie import ByteTrie, back_off, token_bytes
from trueline.decoding.string_law import distance_to_exact, next_bytes
from trueline.errors import TruelineError

TEXTS = ["the cat sat on the mat", "key: value of an intermediate thing", "    return café + 12", "a  b\n\n\tc 日本"]
PLAIN = ["the cat sat on the mat", "key: value of an intermediate thing"]


def word_piece() -> Any:
    """Pieces of words, the later ones with ##; spaces stand for themselves."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "</s>"], show_progress=False)
    backend.train_from_iterator(PLAIN * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>")


def unigram() -> Any:
    """SentencePiece's unigram model: pieces with a space sign, the first one of a text too."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    letters = sorted({c for text in PLAIN for c in text.replace(" ", "▁")})
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", initial_alphabet=letters, show_progress=False)  # fmt: skip
    backend.train_from_iterator(PLAIN * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


TOKENIZERS = {
    "byte-level": (spot.byte_level, TEXTS),
    "word-piece": (word_piece, PLAIN),
    "unigram": (unigram, PLAIN),
    "sentence-piece": (spot.sentence_piece, ["the answer is a hen", "why are you here today"]),
}


def random_continuation(trie: ByteTrie, text: bytes, seed: int, room: int | None = None) -> list[int]:
    """Tokens drawn evenly from what the mask allows, until the text is written."""
    rng = np.random.default_rng(seed)
    new: list[int] = []
    while (left := text[len(trie.write(new)) :]) and (
        allowed := trie.allowed(left, None if room is None else room - len(new))
    ):
        new.append(int(rng.choice(allowed)))
    return new


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_starts_with_the_prompt_at_every_cut_of_every_text(name: str) -> None:
    make, texts = TOKENIZERS[name]
    tokenizer = make()
    trie = ByteTrie(token_bytes(tokenizer))
    checked = 0
    for text, backtrack in itertools.product(texts, (1, 3, 99)):
        for cut in range(1, len(text) + 1):
            prompt = text[:cut]
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if not ids:
                continue
            kept, left = back_off(trie, ids, backtrack, prompt)
            new = random_continuation(trie, left, cut)
            assert tokenizer.decode([*kept, *new]).startswith(prompt), (prompt, kept, new)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_of_tokens_are_what_the_decoder_writes(name: str) -> None:
    make, texts = TOKENIZERS[name]
    tokenizer = make()
    trie = ByteTrie(token_bytes(tokenizer))
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert trie.write(ids).decode() in (text, " " + text)
        assert all(trie.table[i] for i in ids)
    assert all(trie.table[i] is None for i in tokenizer.all_special_ids)


def test_special_tokens_that_have_no_role_write_nothing_either() -> None:
    """<|im_start|> is special without being EOS, padding or listed among the tokenizer's own."""
    tokenizer = model_folders.tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    table = token_bytes(tokenizer)
    assert start not in tokenizer.all_special_ids and table[start] is None
    tokenizer.add_tokens(["<think>"])  # an added token that is text
    assert token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"


def brute_force(table: list[bytes | None], text: bytes) -> set[int]:
    """Every token by the definition, asking whether the rest can be written."""

    def writable(rest: bytes) -> bool:
        return not rest or any(
            piece and (piece.startswith(rest) or (rest.startswith(piece) and writable(rest[len(piece) :])))
            for piece in table
        )

    return {
        i
        for i, piece in enumerate(table)
        if piece and (piece.startswith(text) or (text.startswith(piece) and writable(text[len(piece) :])))
    }


@pytest.mark.parametrize("name", TOKENIZERS)
def test_mask_is_the_brute_force_over_the_vocabulary(name: str) -> None:
    make, texts = TOKENIZERS[name]
    table = token_bytes(make())
    trie = ByteTrie(table)
    assert trie.allowed(b"") is None
    for text in texts:
        raw = text.encode()
        for start in range(0, len(raw) - 4, 3):
            for left in (raw[start : start + 1], raw[start : start + 4]):
                try:
                    assert set(trie.allowed(left) or ()) == brute_force(table, left), left
                except TruelineError:
                    assert not brute_force(table, left)


def test_a_byte_level_mask_is_the_papers_rule() -> None:
    """With every byte in the vocabulary nothing is a dead end: starts with q, or q starts with it."""
    table = token_bytes(spot.byte_level())
    trie = ByteTrie(table)
    for left in (b"Hel", b"\xff\xfe", "日".encode(), b"    "):
        rule = {i for i, piece in enumerate(table) if piece and (piece.startswith(left) or left.startswith(piece))}
        assert set(trie.allowed(left) or ()) == rule


def test_a_token_that_leads_into_a_dead_end_is_not_allowed() -> None:
    trie = ByteTrie([b"ab", b"a", b"bc", b"abcd"])
    assert trie.allowed(b"abc") == (1, 3)  # 'ab' would leave a 'c' that nothing writes
    assert trie.fewest(b"abcab") == 3
    with pytest.raises(TruelineError, match="No token of this vocabulary can write b'cc'"):
        trie.allowed(b"cc")


def test_room_leaves_only_tokens_that_finish_in_time() -> None:
    trie = ByteTrie([b"a", b"b", b"ab", b"abab"])
    assert trie.allowed(b"abab") == (0, 2, 3)
    assert trie.allowed(b"abab", 2) == (2, 3)
    assert trie.allowed(b"abab", 1) == (3,)
    table = token_bytes(spot.byte_level())
    wide = ByteTrie(table)
    ids = spot.byte_level()("Hello world, how", add_special_tokens=False)["input_ids"]
    for seed in range(20):
        _, left = back_off(wide, ids, 3)
        assert len(random_continuation(wide, left, seed, room=3)) <= 3


def test_going_back_keeps_special_tokens_whole_characters_and_runs_of_space() -> None:
    tokenizer = spot.byte_level()
    trie = ByteTrie(token_bytes(tokenizer))

    def back(text: str, backtrack: int) -> tuple[str, bytes]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        kept, left = back_off(trie, ids, backtrack, text)
        assert trie.write(kept) + left == trie.write(ids)
        return tokenizer.decode(kept), left

    assert back("Hello world", 0) == ("Hello world", b"")
    assert back("<|im_start|>Hi", 99) == ("<|im_start|>", b"Hi")
    kept, left = back("x = 日", 1)
    assert left.decode() and "\ufffd" not in kept  # a character of three tokens is taken back whole
    kept, left = back("if:\n\n    ", 1)
    assert not kept[-1:].isspace() and left.strip() == b""
    assert back("Hello", 99)[0]  # the first token stays: a model needs something to read


def test_a_space_that_the_tokenizer_drops_is_asked_for() -> None:
    tokenizer = word_piece()
    trie = ByteTrie(token_bytes(tokenizer))
    ids = tokenizer("the cat ", add_special_tokens=False)["input_ids"]
    assert ids == tokenizer("the cat", add_special_tokens=False)["input_ids"]
    kept, left = back_off(trie, ids, 1, "the cat ")
    assert left.endswith(b" ")
    for seed in range(5):
        assert tokenizer.decode([*kept, *random_continuation(trie, left, seed)]).startswith("the cat ")


def test_a_text_that_the_tokenizer_changes_is_refused() -> None:
    tokenizer = word_piece()
    trie = ByteTrie(token_bytes(tokenizer))
    ids = tokenizer("the  cat", add_special_tokens=False)["input_ids"]
    with pytest.raises(TruelineError, match=r"does not keep this prompt's text.*part about byte 4"):
        back_off(trie, ids, 1, "the  cat")
    cleaning = word_piece()
    cleaning.backend_tokenizer.decoder = decoders.WordPiece(cleanup=True)
    with pytest.raises(TruelineError, match="cleanup"):
        token_bytes(cleaning)


# -- the distance to conditioning on the text --------------------------------------------------------------------------

TABLE: list[bytes | None] = [None, b"a", b"b", b"ab", b"ba", b"aa"]  # 0 begins and ends


def random_model(seed: int) -> Any:
    """Next-token log-probs that depend on the last token alone."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((len(TABLE), len(TABLE)))
    logits[:, 0] -= 2.0
    law = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return lambda ids: law[ids[-1]]


def test_the_exact_law_is_the_ratio_of_string_probabilities() -> None:
    """P(next byte | s) = P(text starts with s + byte) / P(text starts with s), each summed over all token sequences."""
    logp, trie = random_model(3), ByteTrie(TABLE)

    def starts(text: bytes) -> float:
        total, stack = 0.0, [([0], b"", 0.0)]
        while stack:
            ids, written, weight = stack.pop()
            if len(written) >= len(text):
                total += np.exp(weight) * written.startswith(text)
                continue
            law = logp(ids)
            stack += [([*ids, v], written + (TABLE[v] or b""), weight + law[v]) for v in range(1, len(TABLE))]
        return float(total)

    found = next_bytes(logp, trie, [0], b"aba", 1, ends=(0,))
    for byte in (b"a", b"b"):
        assert found[byte, False] == pytest.approx(starts(b"aba" + byte) / starts(b"aba"), abs=1e-12)
    assert found[b"", True] == pytest.approx(1 - found[b"a", False] - found[b"b", False], abs=1e-12)


def test_masking_one_covering_token_is_exact_and_more_are_not_always_better() -> None:
    trie = ByteTrie(TABLE)
    worse_than_one = worse_than_none = 0
    for seed in range(60):
        gaps = distance_to_exact(random_model(seed), trie, [0, 3, 3, 1], (0, 1, 99), 2, ends=(0,))
        assert all(0 <= gap <= 1 for gap in gaps.values()) and gaps[99] > 1e-6
        worse_than_one += gaps[99] > gaps[1]
        worse_than_none += gaps[99] > gaps[0]
    assert 0 < worse_than_one < 60 and worse_than_none < 60


def test_letters_alone_leave_no_distance() -> None:
    """Where every text has one cover, going back changes nothing."""
    trie = ByteTrie([None, b"a", b"b"])
    law = np.log(np.array([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.3, 0.3, 0.4]]))
    gaps = distance_to_exact(lambda ids: law[ids[-1]], trie, [0, 1, 2, 1], (0, 1, 2, 3), 2, ends=(0,))
    assert max(gaps.values()) < 1e-12
