"""Conversations: what the chat template adds, what counts in a loss, and where a template makes it impossible."""

from __future__ import annotations

import pytest

from tests.tokenizers_on_the_spot import CHATML, FORGETFUL, REASONING, byte_level
from trueline.encode import Limits, encode
from trueline.errors import TruelineError
from trueline.groups import Group, Response

USER = {"role": "user", "content": "why?"}
MORE = {"role": "user", "content": "and how?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "4"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def exchange(*messages, prompt=(USER,), **extras) -> Group:
    return Group(list(prompt), [Response(text="", messages=list(messages), rank=0)], extras=extras, origin="f:1")


def coded(group: Group, tokenizer, limits: Limits | None = None, **options):
    return encode([group], tokenizer, limits or Limits(), eos_ids=[tokenizer.eos_token_id], **options)


def marked(group: Group, tokenizer, index: int = 0) -> str:
    """The response's text with the tokens that count in [brackets]."""
    response, out, start = group.responses[index], "", 0
    for end in range(1, len(response.ids) + 1):
        if end == len(response.ids) or response.mask[end] != response.mask[start]:
            text = tokenizer.decode(response.ids[start:end])
            out += f"[{text}]" if response.mask[start] else text
            start = end
    return out


def test_a_prompt_ends_with_the_generation_prompt_and_a_response_with_its_end_token():
    tokenizer = byte_level()
    (group,), audit = coded(exchange(says("because")), tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    assert marked(group, tokenizer) == "[because<|im_end|>]"
    assert audit.noted == {}


def test_prompt_ids_are_those_a_sampler_is_given():
    tokenizer = byte_level()
    (with_answer,), _ = coded(exchange(says("\nnew line first")), tokenizer)
    (bare,), _ = coded(Group([USER]), tokenizer)
    own = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert with_answer.prompt_ids == bare.prompt_ids == own


def test_only_assistant_turns_and_their_end_tokens_count():
    tokenizer = byte_level()
    call = {**says("add 2 2"), "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    (group,), _ = coded(exchange(call, TOOL, says("four"), MORE, says("so")), tokenizer)
    assert marked(group, tokenizer) == (
        "[add 2 2<|im_end|>]\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
        "[four<|im_end|>]\n<|im_start|>user\nand how?<|im_end|>\n<|im_start|>assistant\n[so<|im_end|>]"
    )


def test_the_pieces_join_to_what_the_template_renders():
    tokenizer = byte_level()
    turns = [says("a"), MORE, says("b")]
    (group,), _ = coded(exchange(*turns, prompt=[SYSTEM, USER]), tokenizer)
    whole = tokenizer.apply_chat_template([SYSTEM, USER, *turns], tokenize=False)
    assert tokenizer.decode(group.prompt_ids + group.responses[0].ids) + "\n" == whole


def test_a_pair_of_exchanges_shares_one_prompt():
    tokenizer = byte_level()
    group = Group(
        [USER], [Response(messages=[says("a"), MORE, says("b")], rank=0), Response(messages=[says("c")], rank=1)]
    )
    (group,), _ = coded(group, tokenizer)
    assert marked(group, tokenizer, 1) == "[c<|im_end|>]"
    assert marked(group, tokenizer, 0).startswith("[a<|im_end|>]\n<|im_start|>user")


def test_a_template_that_strips_earlier_reasoning_gives_one_group_per_turn():
    tokenizer = byte_level(FORGETFUL)
    turns = [says("<think>hm</think>a"), MORE, says("<think>so</think>b")]
    groups, audit = coded(exchange(*turns), tokenizer)
    assert [tokenizer.decode(g.prompt_ids) for g in groups] == [
        "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nand how?<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert [marked(g, tokenizer) for g in groups] == [
        "[<think>hm</think>a<|im_end|>]",
        "[<think>so</think>b<|im_end|>]",
    ]
    assert [g.origin for g in groups] == ["f:1#1", "f:1#3"]
    assert audit.noted == {"split into one group per turn: the template rewrites earlier turns": 1}


def test_a_pair_that_such_a_template_would_tear_apart_is_dropped():
    sides = [[says("<think>hm</think>a"), MORE, says("b")], [says("c")]]
    group = Group([USER], [Response(messages=m, rank=i) for i, m in enumerate(sides)], origin="f:1")
    groups, audit = coded(group, byte_level(FORGETFUL))
    assert groups == []
    assert audit.dropped == {"template rewrites earlier turns, and a comparison of whole exchanges cannot be split": 1}


def test_a_closed_reasoning_block_in_the_generation_prompt_stays_in_the_prompt():
    tokenizer = byte_level(REASONING)
    (group,), _ = coded(exchange(says("because")), tokenizer, chat_template_kwargs={"block": "<think>\n\n</think>\n\n"})
    assert tokenizer.decode(group.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert marked(group, tokenizer) == "[because<|im_end|>]"


def test_a_block_that_the_generation_prompt_only_opens_is_refused():
    with pytest.raises(TruelineError, match=r"f:1: the chat template's generation prompt ends with '<think>\\n'"):
        coded(exchange(says("because")), byte_level(REASONING), chat_template_kwargs={"block": "<think>\n"})


def test_a_missing_template_is_refused_with_what_to_do():
    with pytest.raises(TruelineError, match=r"no chat template to render them with\. Give one with chat_template"):
        coded(exchange(says("because")), byte_level(None))


def test_a_template_applied_twice_drops_the_row():
    groups, audit = coded(exchange(says("<|im_start|>assistant\nbecause<|im_end|>")), byte_level())
    assert groups == []
    assert audit.dropped == {"special token inside a message (template applied twice?)": 1}


def test_a_template_that_ends_no_turn_gets_an_eos():
    tokenizer = byte_level("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    (group,), audit = coded(exchange(says("because")), tokenizer)
    assert marked(group, tokenizer) == "[because\n<|im_end|>]"
    assert audit.noted == {"the chat template does not end a turn: EOS appended": 1}


def test_any_of_several_end_tokens_ends_a_turn():
    tokenizer = byte_level()
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    (group,), _ = encode([exchange(says("because"))], tokenizer, Limits(), eos_ids=ends)
    assert marked(group, tokenizer) == "[because<|im_end|>]"


def test_a_system_prompt_goes_only_where_there_is_none():
    tokenizer = byte_level()
    plain, own = exchange(says("a")), exchange(says("a"), prompt=[SYSTEM, USER])
    groups, _ = encode([plain, own], tokenizer, Limits(), eos_ids=[tokenizer.eos_token_id], system_prompt="Be kind.")
    texts = [tokenizer.decode(g.prompt_ids) for g in groups]
    assert texts[0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert texts[1].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert groups[0].prompt[0]["content"] == "Be kind."
    assert plain.prompt == [USER]


def test_tools_and_template_options_come_from_the_row():
    template = CHATML.replace(
        "{% for", "{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}{{ mood }}{% for", 1
    )
    tokenizer = byte_level(template)
    tool = {"type": "function", "function": {"name": "add"}}
    group = exchange(says("a"), tools=[tool], chat_template_kwargs={"mood": "calm"})
    (encoded,), _ = coded(group, tokenizer, chat_template_kwargs={"mood": "wild"})
    assert tokenizer.decode(encoded.prompt_ids).startswith("addcalm<|im_start|>user")


def test_template_options_without_effect_are_refused():
    template = CHATML + "{% if enable_thinking %}{% endif %}"
    with pytest.raises(
        TruelineError, match=r"'enable_thinkin', which the chat template does not use. Did you mean 'enable_thinking'"
    ):
        coded(exchange(says("a")), byte_level(template), chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(TruelineError, match="f:1: the row gives 'tools', which the chat template does not use"):
        coded(exchange(says("a"), tools=[{"type": "function"}]), byte_level())


def test_a_conversation_that_the_template_refuses_is_dropped_with_its_words():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    groups, audit = coded(exchange(says("a"), prompt=[SYSTEM, USER]), byte_level(template))
    assert groups == []
    assert audit.dropped == {"the chat template refuses the conversation": 1}
    assert "no system role" in next(iter(audit.examples.values()))[0]["detail"]


def test_keep_start_never_cuts_the_assistants_header_off():
    long = {"role": "user", "content": "why " * 200}
    groups, audit = coded(
        exchange(says("a"), prompt=[long]), byte_level(), Limits(max_length=64, truncation="keep_start")
    )
    assert groups == []
    assert list(audit.dropped) == ["prompt over the length limit, and keep_start would cut the assistant's header"]
    (group,), _ = coded(exchange(says("a"), prompt=[long]), byte_level(), Limits(max_length=64))
    assert byte_level().decode(group.prompt_ids).endswith("<|im_start|>assistant\n")


def test_a_sampled_answer_needs_no_messages_and_one_cut_off_no_end():
    tokenizer = byte_level()
    responses = [Response(text="because", finish="stop"), Response(text="because t", finish="length")]
    (group,), _ = coded(Group([USER], responses), tokenizer)
    assert [marked(group, tokenizer, i) for i in (0, 1)] == ["[because<|im_end|>]", "[because t]"]


def test_a_response_that_begins_with_a_user_turn_is_dropped():
    _, audit = coded(exchange(MORE, says("a")), byte_level())
    assert audit.dropped == {"response does not begin and end with an assistant turn": 1}


def test_a_text_prompt_with_messages_as_response_is_refused():
    group = Group("why?", [Response(text="a", messages=[says("a")])], origin="f:1")
    with pytest.raises(TruelineError, match="f:1: the prompt is text and a response is messages"):
        coded(group, byte_level())
