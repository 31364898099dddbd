"""Serving, the text side: detokenisation, stop strings, the protocol's types, masks and keys."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers_on_the_spot import byte_level, sentence_piece, words
from trueline.errors import TruelineError
from trueline.serving.choices import Vocabulary
from trueline.serving.detokenise import BROKEN, Detokeniser
from trueline.serving.errors import ApiError
from trueline.serving.grammar import Banned, Grammars, both
from trueline.serving.keys import Keys, check_exposure, is_loopback
from trueline.serving.protocol import ChatRequest, CompletionRequest, ScoreRequest, parse
from trueline.serving.stopping import StopHolder

BYTES, PIECES, WORDS = byte_level(), sentence_piece(), words()
HOSTILE = "a🙂é\u202e漢字👨‍👩‍👧‍👦\u0000 \u2028z ﷽ Z͑ͫ̓"


def byte_fallback():
    """A tokenizer that spells what it does not know in bytes, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1} | {f"<0x{i:02X}>": i + 2 for i in range(256)} | {"▁": 258, "a": 259, "▁a": 260}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


FALLBACK = byte_fallback()
ALL = {"byte_level": BYTES, "sentence_piece": PIECES, "words": WORDS, "byte_fallback": FALLBACK}


def streamed(tokenizer, chunks):
    stream = Detokeniser(tokenizer)
    return [stream.add(chunk) for chunk in chunks], stream.finish()


def cut(items, sizes):
    """The items in chunks of these sizes, the last one holding the rest."""
    chunks, at = [], 0
    for size in sizes:
        chunks.append(items[at : at + size])
        at += size
    return [*chunks, items[at:]]


# -- detokenisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12), sizes=st.lists(st.integers(1, 3), max_size=12))
def test_streamed_pieces_join_to_the_decoded_whole_and_hold_no_half_character(name, text, sizes):
    tokenizer = ALL[name]
    ids = tokenizer(text + HOSTILE[: len(text)], add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    pieces, rest = streamed(tokenizer, cut(ids, sizes))
    assert "".join(pieces) + rest == whole
    if BROKEN not in whole:
        assert not any(BROKEN in piece for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(3, 319), max_size=30), sizes=st.lists(st.integers(1, 4), max_size=20))
def test_any_ids_of_a_byte_level_model_stream_to_exactly_what_they_decode_to(ids, sizes):
    whole = BYTES.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    pieces, rest = streamed(BYTES, cut(ids, sizes))
    assert "".join(pieces) + rest == whole


def test_a_character_of_four_tokens_is_sent_when_its_last_byte_arrives():
    ids = BYTES("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert streamed(BYTES, [[i] for i in ids]) == (["", "", "", "🙂"], "")


def test_the_space_before_a_word_is_kept_where_a_tokenizer_drops_it_at_the_start():
    ids = PIECES("the world are", add_special_tokens=False)["input_ids"]
    pieces, rest = streamed(PIECES, [[i] for i in ids])
    assert "".join(pieces) + rest == "the world are"


def test_a_long_run_of_broken_bytes_is_not_held_for_ever():
    lone = BYTES.convert_tokens_to_ids("Ð")  # the byte 0xD0, which begins a character
    pieces, rest = streamed(BYTES, [[lone]] * 40)
    assert len("".join(pieces)) > 20 and len("".join(pieces) + rest) == 40


# -- stop strings ------------------------------------------------------------------------------------------------------


def reference(text, stops):
    """What is sent of a text: everything before the stop that is complete first, the longest of equal ends."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=14),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    sizes=st.lists(st.integers(1, 4), max_size=14),
)
def test_stops_cut_the_same_text_however_it_is_chunked(text, stops, sizes):
    holder = StopHolder(stops)
    sent = "".join(holder.add(chunk) for chunk in cut(text, sizes)) + holder.finish()
    assert (sent, holder.matched is not None) == reference(text, stops)


def test_the_beginning_of_a_stop_is_held_until_it_turns_out_not_to_be_one():
    holder = StopHolder(["END"])
    assert [holder.add(c) for c in ("say E", "N", "d E", "ND", "more")] == ["say ", "", "ENd ", "", ""]
    assert holder.matched == "END" and holder.finish() == ""


# -- the protocol ------------------------------------------------------------------------------------------------------


def refusal(shape, **body):
    with pytest.raises(ApiError) as caught:
        parse(shape, json.dumps(body).encode())
    return caught.value


CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"temperatur": 1}, "temperatur", "Did you mean 'temperature'?"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"n": True}, "n", "integer"),
        ({"n": 1.5}, "n", "integer"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "messages[0].content[0].text",
            "str",
        ),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role", "'wizard'"),
        ({"messages": [{"role": "user", "content": "", "x": 1}]}, "messages[0].x", "Unknown key"),
        ({"messages": []}, "messages", "at least 1"),
        ({"model": None}, "model", "string"),
        ({"alignment": {"metod": "args"}}, "alignment.metod", "Unknown key"),
        ({"alignment": {"rewards": [{"name": "a", "weight": "x"}]}}, "alignment.rewards[0].weight", "number"),
        ({"stop": [""]}, "stop[0]", "at least 1"),
        ({"tools": [{"type": "function"}]}, "tools", "not offered"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not offered"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "Unknown key"),
        ({"seed": 2**70}, "seed", "less than"),
    ],
)
def test_what_is_wrong_is_named_by_its_json_path(change, param, words):
    error = refusal(ChatRequest, **{**CHAT, **change})
    assert error.status == 400 and error.param == param and words in error.message, error.message
    assert set(error.body()["error"]) == {"message", "type", "param", "code"}


def test_a_missing_key_is_named():
    assert refusal(ChatRequest, model="m").param == "messages"
    assert refusal(CompletionRequest, model="m", prompt=[["x"]]).param == "prompt[0][0]"


@pytest.mark.parametrize(
    "body",
    [
        {"top_logprobs": 3},
        {"stream_options": {"include_usage": True}},
        {"max_tokens": 3, "max_completion_tokens": 4},
    ],
)
def test_options_that_contradict_or_have_no_effect_are_refused(body):
    assert refusal(ChatRequest, **CHAT, **body).status == 400


def test_fields_that_ask_for_nothing_are_accepted():
    idle = {"tools": None, "frequency_penalty": 0, "presence_penalty": 0.0, "store": False, "stop": None, "n": None}
    assert parse(ChatRequest, json.dumps({**CHAT, **idle}).encode()).n is None


def test_a_bias_that_is_no_mask_is_refused_and_minus_100_bans():
    request = parse(ChatRequest, json.dumps({**CHAT, "logit_bias": {"7": -100, "8": 0}}).encode())
    assert request.banned() == [7]
    for bias in ({"7": 5}, {"x": -100}):
        with pytest.raises(ApiError):
            parse(ChatRequest, json.dumps({**CHAT, "logit_bias": bias}).encode()).banned()


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "\\ud800"}', b"[" * 100_000, b'{"n": NaN}', b"1" * 9000),
        b'{"temperature": 1e999, "model": "m", "messages": [{"role": "user", "content": "x"}]}',
    ],
)
def test_bodies_that_are_no_json_object_are_refused(raw):
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, raw)
    assert caught.value.status == 400 and len(caught.value.message) < 500


def test_long_values_do_not_come_back_in_the_message():
    assert len(refusal(ChatRequest, **CHAT, top_p="x" * 100_000).message) < 300


def test_every_form_of_a_prompt_is_read():
    forms = {"a": ["a"], "ab": ["ab"]}
    for given_, expected in forms.items():
        assert parse(CompletionRequest, json.dumps({"model": "m", "prompt": given_}).encode()).prompts() == expected
    for given_, expected in ((["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])):
        assert parse(CompletionRequest, json.dumps({"model": "m", "prompt": given_}).encode()).prompts() == expected
    assert parse(ScoreRequest, b'{"prompt": "p", "responses": ["r"]}').responses == ["r"]


# -- masks -------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("tokenizer", [BYTES, FALLBACK], ids=["byte_level", "byte_fallback"])
def test_only_text_of_the_schema_can_be_written_under_its_mask(tokenizer):
    eos = tokenizer.eos_token_id
    mask = Grammars(tokenizer, [eos], 340).json(SCHEMA)
    target, ids = '{"a":12,"b":"y"}', []
    for letter in target:
        assert eos not in mask(ids)
        token = tokenizer.get_vocab().get(letter, tokenizer.get_vocab().get(f"<0x{ord(letter):02X}>"))
        assert token in mask(ids), f"{letter} after {tokenizer.decode(ids)}"
        ids.append(token)
    assert mask(ids) == [eos]


def test_a_mask_depends_on_the_tokens_alone_whatever_was_asked_before():
    grammars = Grammars(BYTES, [BYTES.eos_token_id], 340)
    spelled = [BYTES.convert_tokens_to_ids(c) for c in '{"a":12,"b":"y"}']
    asked = [spelled[:n] for n in (9, 3, 16, 0, 12, 5, 16, 1)] + [[*spelled[:5], *spelled[6:7]]]
    one = grammars.json(SCHEMA)
    for ids in asked:
        assert one(ids) == grammars.json(SCHEMA)(ids)


def test_a_schema_that_cannot_be_kept_and_a_tokenizer_without_bytes_are_refused():
    with pytest.raises(TruelineError, match="schema"):
        Grammars(BYTES, [2], 340).json({"type": "nonsense"})
    unkept = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "x-guidance": {"lenient": True}}
    with pytest.raises(TruelineError, match="not"):
        Grammars(BYTES, [2], 340).json(unkept)
    with pytest.raises(TruelineError, match="byte-level"):
        Grammars(WORDS, [1], 62).json(None)


def test_bans_and_grammars_compose():
    eos = BYTES.eos_token_id
    brace = BYTES.convert_tokens_to_ids("{")
    assert both(Grammars(BYTES, [eos], 340).json(SCHEMA), Banned([brace], 340))([]) == []
    assert both(None, Banned([1], 3))([]) == [0, 2] and both(None, None) is None
    with pytest.raises(TruelineError, match="token 9"):
        Banned([9], 3)


def test_tokens_are_reported_with_their_bytes():
    emoji = BYTES("🙂", add_special_tokens=False)["input_ids"]
    vocabulary = Vocabulary(BYTES)
    assert b"".join(vocabulary.raw(i) for i in emoji) == "🙂".encode()
    assert vocabulary.report(emoji[0], -1.0).text == "bytes:\\xf0"
    assert Vocabulary(FALLBACK).raw(FALLBACK.convert_tokens_to_ids("<0xF0>")) == b"\xf0"
    assert Vocabulary(PIECES).raw(PIECES.convert_tokens_to_ids("▁a")) in (b" a", b"<unk>")


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=10))
def test_bytes_of_tokens_join_to_the_text(text):
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    vocabulary = Vocabulary(BYTES)
    assert b"".join(vocabulary.raw(i) for i in ids).decode() == text


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_opens_the_server_and_nothing_else_does():
    keys = Keys(["first-key-123", "second-key-456"])
    keys.check("Bearer second-key-456", "example.org")
    keys.check("bearer first-key-123", None)
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer first-key-12", "Basic first-key-123", "Bearer ключ\udc80"):
        with pytest.raises(ApiError) as caught:
            keys.check(wrong, "127.0.0.1")
        assert caught.value.status == 401


def test_every_key_is_compared_with_a_digest_of_equal_length(monkeypatch):
    from trueline.serving import keys as module

    seen = []
    real = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b))) or real(a, b))
    Keys(["first-key-123", "second-key-456"]).check("Bearer first-key-123", None)
    assert seen == [(32, 32), (32, 32)]


def test_without_a_key_only_this_machine_is_served():
    none = Keys([])
    for host in ("127.0.0.1:8000", "localhost", "[::1]:80", "127.8.8.8"):
        none.check(None, host)
    for host in ("evil.example:8000", "", None, "127.0.0.1.evil.example", "[::2]"):
        with pytest.raises(ApiError) as caught:
            none.check(None, host)
        assert caught.value.status == 403
    check_exposure("127.0.0.1", none)
    check_exposure("0.0.0.0", Keys(["long-enough"]))
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(TruelineError, match="--api-key"):
            check_exposure(host, none)
    assert is_loopback("::1") and not is_loopback("0.0.0.0")


@pytest.mark.parametrize("key", ["", "short", "with space in it", "schlüssel-lang"])
def test_keys_that_cannot_be_sent_or_can_be_guessed_are_refused(key):
    with pytest.raises(TruelineError, match="API key"):
        Keys([key])
