"""Tokens, masks and limits: what a model is shown of a text group."""

from __future__ import annotations

import pytest

from tests.tokenizers_on_the_spot import byte_level, sentence_piece, words
from trueline.encode import Limits, check_vocabulary, describe_first, encode, length_summary, overlap, split_by_prompt
from trueline.errors import TruelineError
from trueline.groups import Group, Response


def pair(prompt: str, chosen: str, rejected: str, **extras) -> Group:
    return Group(prompt, [Response(text=chosen, rank=0), Response(text=rejected, rank=1)], extras=extras, origin="f:1")


def numbers(first: int, count: int) -> str:
    """`count` words w<first>, w<first+1>, ... (modulo sixty): one token each for the word tokenizer."""
    return " ".join(f"w{(first + i) % 60}" for i in range(count))


class Counting:
    """A tokenizer that counts its calls and the letters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls, self.letters = tokenizer, 0, 0

    def __call__(self, texts, **options):
        self.calls += 1
        self.letters += len(texts) if isinstance(texts, str) else sum(map(len, texts))
        return self.tokenizer(texts, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def ids_of(first: int, count: int) -> list[int]:
    return [(first + i) % 60 + 2 for i in range(count)]


def coded(group: Group, tokenizer, limits: Limits | None = None, eos: int | None = None):
    end = tokenizer.eos_token_id if eos is None else eos
    return encode([group], tokenizer, limits or Limits(), eos_ids=[end])


def test_prompt_and_response_are_tokenised_apart_and_end_with_eos():
    tokenizer = byte_level()
    (group,), audit = coded(pair("\n\nHuman: why?\n\nAssistant:", " because two", " no"), tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "\n\nHuman: why?\n\nAssistant:"
    assert [tokenizer.decode(r.ids) for r in group.responses] == [" because two<|im_end|>", " no<|im_end|>"]
    assert all(r.mask == [True] * len(r.ids) for r in group.responses)
    assert audit.noted == {"text prompt: the chat template is not applied": 1}


def test_the_prompts_ids_do_not_depend_on_the_response():
    tokenizer = byte_level(None)
    texts = ["\n", "s and more", "!"]
    encoded = [coded(Group("The answer", [Response(text=t)]), tokenizer)[0][0] for t in texts]
    alone = tokenizer("The answer", add_special_tokens=False)["input_ids"]
    assert [g.prompt_ids for g in encoded] == [alone] * 3


def test_bos_stands_exactly_once_whether_or_not_the_text_has_it():
    tokenizer = byte_level(None, bos=True)
    bos = tokenizer.bos_token_id
    (plain,), _ = coded(pair("Hello", " a", " b"), tokenizer)
    (written,), audit = coded(pair("<|endoftext|>Hello", " a", " b"), tokenizer)
    assert plain.prompt_ids == written.prompt_ids
    assert plain.prompt_ids.count(bos) == 1
    assert bos not in plain.responses[0].ids
    assert audit.noted["BOS already in the text"] == 1


def test_a_text_with_two_bos_is_dropped():
    groups, audit = coded(pair("<|endoftext|><|endoftext|>Hello", " a", " b"), byte_level(None, bos=True))
    assert (groups, audit.dropped) == ([], {"doubled BOS": 1})


def test_a_text_that_already_ends_with_eos_gets_no_second_one():
    tokenizer = byte_level(None)
    (group,), audit = coded(pair("Hi", " a<|im_end|>", " b<|im_end|><|im_end|>"), tokenizer)
    assert [tokenizer.decode(r.ids) for r in group.responses] == [" a<|im_end|>", " b<|im_end|>"]
    assert audit.noted == {"EOS already in the text": 1, "doubled EOS removed": 1}


def test_a_template_applied_in_the_text_is_noted():
    tokenizer = byte_level()
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    (group,), audit = coded(pair(prompt, "a", "b"), tokenizer)
    assert tokenizer.decode(group.prompt_ids) == prompt
    assert audit.noted["special tokens in the prompt's text (chat template already applied?)"] == 1


def test_a_control_token_inside_a_response_is_noted():
    _, audit = coded(pair("Hi", " a<|im_end|> b", " c"), byte_level(None))
    assert audit.noted == {"special token inside a response's text": 1}


def test_sentence_piece_puts_no_space_before_a_response():
    tokenizer = sentence_piece()
    (group,), _ = coded(pair("Hello", "world", " world"), tokenizer)
    texts = [tokenizer.convert_ids_to_tokens(r.ids) for r in group.responses]
    assert not texts[0][0].startswith("▁")
    assert texts[1][0].startswith("▁")
    assert group.prompt_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(group.prompt_ids[1:] + group.responses[0].ids[:-1]) == "Helloworld"


def test_a_plain_text_is_scored_from_its_second_token_where_there_is_no_bos():
    text = Group("", [Response(text=numbers(0, 4), rank=0)])
    (group,), _ = coded(text, words())
    assert group.prompt_ids == []
    assert (group.responses[0].ids, group.responses[0].mask) == ([*ids_of(0, 4), 1], [False, True, True, True, True])
    (group,), _ = coded(Group("", [Response(text="Hello", rank=0)]), byte_level(None, bos=True))
    assert group.prompt_ids == [byte_level().bos_token_id]
    assert all(group.responses[0].mask)


def test_a_plain_text_begins_as_the_tokenizer_begins_texts():
    tokenizer = sentence_piece()
    (group,), _ = coded(Group("", [Response(text="Hello", rank=0)]), tokenizer)
    assert [*group.prompt_ids, *group.responses[0].ids] == [*tokenizer("Hello")["input_ids"], tokenizer.eos_token_id]


def test_words_outside_the_vocabulary_are_noted():
    _, audit = coded(pair("w1 zebra", "w2", "w3"), words())
    assert audit.noted == {"text outside the vocabulary (unknown token)": 1}


@pytest.mark.parametrize("side, kept", [("keep_end", ids_of(14, 6)), ("keep_start", ids_of(0, 6))])
def test_an_over_long_prompt_is_cut_once_for_all_its_responses(side, kept):
    limits = Limits(max_length=10, truncation=side)
    (group,), audit = coded(pair(numbers(0, 20), numbers(30, 3), numbers(40, 1)), words(), limits)
    assert group.prompt_ids == kept
    assert [r.ids for r in group.responses] == [[*ids_of(30, 3), 1], [*ids_of(40, 1), 1]]
    assert audit.noted == {"prompts truncated": 1}


def test_the_bos_of_a_prompt_survives_the_cut():
    tokenizer = byte_level(None, bos=True)
    (group,), _ = coded(pair("abc " * 40, " x", " y"), tokenizer, Limits(max_length=12))
    assert group.prompt_ids[0] == tokenizer.bos_token_id
    assert len(group.prompt_ids) + max(len(r.ids) for r in group.responses) == 12


def test_responses_are_cut_at_one_limit_and_lose_their_eos():
    limits = Limits(max_length=20, max_response_length=5)
    (group,), audit = coded(pair(numbers(0, 3), numbers(10, 9), numbers(30, 2)), words(), limits)
    assert [r.ids for r in group.responses] == [ids_of(10, 5), [*ids_of(30, 2), 1]]
    assert [len(r.mask) for r in group.responses] == [5, 3]
    assert audit.noted == {"responses truncated": 1}


def test_a_response_keeps_at_least_half_of_the_length():
    limits = Limits(max_length=20)
    (group,), _ = coded(pair(numbers(0, 50), numbers(1, 50), numbers(2, 50)), words(), limits)
    assert (len(group.prompt_ids), [len(r.ids) for r in group.responses]) == (10, [10, 10])
    (group,), _ = coded(pair(numbers(0, 4), numbers(1, 50), numbers(2, 3)), words(), limits)
    assert (len(group.prompt_ids), [len(r.ids) for r in group.responses]) == (4, [16, 4])


def test_a_prompt_alone_leaves_room_for_an_answer():
    (group,), _ = coded(Group(numbers(0, 50)), words(), Limits(max_length=20))
    assert len(group.prompt_ids) == 10
    (group,), _ = coded(Group(numbers(0, 50)), words(), Limits(max_length=20, max_response_length=4))
    assert len(group.prompt_ids) == 16
    (group,), _ = coded(Group(numbers(0, 50)), words(), Limits(max_length=20, max_prompt_length=3))
    assert len(group.prompt_ids) == 3


@pytest.mark.parametrize(
    "group, reason",
    [
        (pair(numbers(0, 50), "w1", "w2"), "prompt over the length limit"),
        (pair("w0", numbers(0, 50), "w2"), "response over the length limit"),
    ],
)
def test_truncation_by_dropping_leaves_the_whole_group_out(group, reason):
    groups, audit = coded(group, words(), Limits(max_length=20, truncation="drop"))
    assert (groups, audit.dropped, audit.kept) == ([], {reason: 1}, 0)


def test_responses_that_differ_only_beyond_the_limit_are_dropped():
    limits = Limits(max_length=20, max_response_length=4)
    groups, audit = coded(pair("w0", numbers(5, 4) + " w1", numbers(5, 4) + " w2"), words(), limits)
    assert (groups, audit.dropped) == ([], {"identical responses after truncation": 1})


def test_a_response_without_tokens_is_dropped_with_its_group():
    groups, audit = coded(pair("w0", " ", "w1"), words())
    assert (groups, audit.dropped) == ([], {"empty response": 1})


def test_a_response_truncated_to_nothing_is_dropped_with_its_group():
    text = Group("", [Response(text=numbers(0, 9), rank=0)], origin="f:1")  # its first token is context, not loss
    groups, audit = coded(text, words(), Limits(max_length=20, max_response_length=1))
    assert (groups, audit.dropped) == ([], {"empty response after truncation": 1})


def test_sampled_groups_are_never_dropped_and_cut_ones_get_no_eos():
    responses = [Response(text=t, finish=f) for t, f in (("", "stop"), ("", "stop"), ("w1 w2", "length"))]
    (group,), audit = coded(Group("w0", responses), words())
    assert [r.ids for r in group.responses] == [[1], [1], [3, 4]]
    assert audit.dropped == {}


def test_recorded_ids_pass_through_untouched():
    recorded = Group("w0", [Response(text="anything", ids=[7, 7], mask=[True, False])], prompt_ids=[9])
    (group,), _ = coded(recorded, words(), Limits(max_length=2))
    assert group is recorded


def test_recorded_ids_of_another_vocabulary_are_refused():
    recorded = Group("w0", [Response(ids=[62], mask=[True])], prompt_ids=[9], origin="stream.jsonl:4")
    with pytest.raises(
        TruelineError, match=r"stream.jsonl:4: the recorded id 62 is not in this tokenizer's vocabulary of 62"
    ):
        coded(recorded, words())


def test_a_tokenizer_larger_than_the_model_is_refused():
    check_vocabulary(words(), 62)
    with pytest.raises(TruelineError, match="'w59' has id 61, the model knows ids 0 to 60"):
        check_vocabulary(words(), 61)


def test_options_without_effect_are_refused():
    with pytest.raises(TruelineError, match="system_prompt has no effect on text prompts"):
        encode([pair("w1", "w2", "w3")], words(), Limits(), eos_ids=[1], system_prompt="Be brief.")
    with pytest.raises(TruelineError, match=r"max_response_length \(10\) leaves no token"):
        Limits(max_length=10, max_response_length=10)
    with pytest.raises(TruelineError, match="No token ends a response"):
        encode([pair("w1", "w2", "w3")], words(), Limits(), eos_ids=[])


@pytest.mark.parametrize("side", ["keep_end", "keep_start"])
def test_a_ten_megabyte_example_is_cut_as_if_all_of_it_had_been_tokenised(side):
    tokenizer, limits = Counting(byte_level(None, bos=True)), Limits(max_length=64, truncation=side)
    huge = "".join(f"{i} is a number and the answer is four.\n" for i in range(240_000))
    (group,), audit = coded(pair(huge, " " + huge, " no"), tokenizer, limits)
    assert tokenizer.letters < 50_000
    whole = tokenizer(huge[:4000] if side == "keep_start" else huge[-4000:], add_special_tokens=False)["input_ids"]
    expected = whole[:31] if side == "keep_start" else whole[-31:]
    assert group.prompt_ids == [tokenizer.bos_token_id, *expected]
    assert len(group.responses[0].ids) == 32
    assert audit.noted == {"responses truncated": 1, "prompts truncated": 1}


def test_an_enormous_text_of_few_tokens_is_tokenised_whole():
    huge = " " * 10_000 + numbers(0, 30) + " " * 10_000 + "w59"
    (group,), audit = coded(Group(huge, [Response(text=huge, rank=0)]), words(), Limits(max_length=80))
    assert group.prompt_ids == [*ids_of(0, 30), 61]
    assert group.responses[0].ids == [*ids_of(0, 30), 61, 1]
    assert audit.noted == {}


def test_thousands_of_groups_take_few_calls_of_the_tokenizer():
    tokenizer = Counting(words())
    groups = [pair(f"w{i % 60}", "w1", f"w{i % 7} w2") for i in range(3_000)]
    encoded, _ = encode(groups, tokenizer, Limits(), eos_ids=[1])
    assert len(encoded) == 3_000
    assert tokenizer.calls < 10


def test_a_prompt_stays_on_its_side_when_rows_are_added():
    groups = [pair(f"p{i % 100}", "a", f"b{i}") for i in range(300)]
    train, held_out = split_by_prompt(groups, 0.2, seed=1)
    assert overlap(train, held_out) == 0
    assert 10 <= len({g.prompt for g in held_out}) <= 30
    more = [pair(f"q{i}", "a", "b") for i in range(50)]
    assert [g.prompt for g in split_by_prompt(more + groups[::-1], 0.2, 1)[1] if g.prompt[0] == "p"] == [
        g.prompt for g in held_out[::-1]
    ]
    assert {g.prompt for g in split_by_prompt(groups, 0.2, seed=2)[1]} != {g.prompt for g in held_out}


def test_texts_without_a_prompt_are_split_by_their_text():
    groups = [Group("", [Response(text=f"story {i}")]) for i in range(50)]
    train, held_out = split_by_prompt(groups, 0.3, seed=0)
    assert len(train) + len(held_out) == 50
    assert overlap(train, held_out) == 0
    assert overlap(train, [*held_out, train[0], train[0]]) == 1


@pytest.mark.parametrize(
    "fraction, message", [(0.0, "between 0 and 1"), (1.0, "between 0 and 1"), (1e-9, "no evaluation")]
)
def test_a_split_without_two_sides_is_refused(fraction, message):
    with pytest.raises(TruelineError, match=message):
        split_by_prompt([pair("p", "a", "b")], fraction, seed=0)


def test_lengths_are_summarised_for_prompt_chosen_and_rejected():
    groups = [
        Group("", [Response(ids=[1] * n, rank=0), Response(ids=[1] * 9, rank=1)], prompt_ids=[1] * 4) for n in (2, 4, 6)
    ]
    groups.append(Group("", [Response(ids=[1] * 20, label=False)], prompt_ids=[1] * 4))
    summary = length_summary(groups)
    assert summary["chosen"] == {"p5": pytest.approx(2.2), "p50": 4.0, "p95": pytest.approx(5.8), "max": 6.0}
    assert (summary["rejected"]["max"], summary["prompt"]["p50"]) == (20.0, 4.0)
    assert "rejected" not in length_summary([Group("", [Response(ids=[1])], prompt_ids=[1])])


def test_the_first_sample_shows_what_counts_also_without_colour():
    tokenizer = words()
    response = Response(ids=[4, 5, 6, 1], mask=[True, False, True, True], rank=0, reward=0.5)
    shown = describe_first(Group("", [response], prompt_ids=[2, 3], origin="f:7"), tokenizer).plain
    assert "first sample · f:7\nprompt · 2 tokens\nw0 w1\n" in shown
    assert "response 1 · 4 tokens · 3 in the loss · rank 0 · reward 0.5" in shown
    assert "⟦w2⟧w3⟦w4</s>⟧" in shown.replace(" </s>", "</s>")


def test_a_long_first_sample_is_shown_from_both_ends():
    group = Group("", [Response(ids=ids_of(0, 50), mask=[True] * 50)], prompt_ids=[2])
    shown = describe_first(group, words(), limit=10).plain
    assert "… 40 tokens …" in shown
    assert "w4⟧" in shown and "⟦w45" in shown and "w20" not in shown
