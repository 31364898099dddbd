"""Formats: what each kind of row becomes, and how a file's kind is recognised."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers_on_the_spot import write_jsonl
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.readers import formats, load, read

USER = {"role": "user", "content": "What is two and two?"}
FOUR = {"role": "assistant", "content": "Four."}
FIVE = {"role": "assistant", "content": "Five."}
SYSTEM = {"role": "system", "content": "Be brief."}


def one(tmp_path: Path, row: dict[str, Any], form: str) -> Group:
    """The group of a one-row file, which must be recognised as `form`."""
    (table,) = load(write_jsonl(tmp_path / "data.jsonl", [row]))
    assert table.format == form
    assert table.audit.dropped == {}
    return table.groups[0]


def facts(group: Group) -> list[tuple[str, int | None, bool | None, float | None]]:
    return [(r.text, r.rank, r.label, r.reward) for r in group.responses]


def test_a_text_is_a_demonstration_without_a_prompt(tmp_path):
    group = one(tmp_path, {"text": "Once upon a time.", "topic": "tale"}, "language modeling (text)")
    assert (group.prompt, facts(group)) == ("", [("Once upon a time.", 0, None, None)])
    assert group.extras == {"topic": "tale"}
    assert group.origin == "data.jsonl:1"


def test_a_conversation_is_cut_at_its_first_assistant_turn(tmp_path):
    more = {"role": "user", "content": "Sure?"}
    group = one(tmp_path, {"messages": [SYSTEM, USER, FOUR, more, FIVE]}, "language modeling (messages)")
    assert group.prompt == [SYSTEM, USER]
    assert group.responses[0].messages == [FOUR, more, FIVE]


def test_turns_after_the_last_assistant_turn_are_cut_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [USER, FOUR, {"role": "user", "content": "Thanks"}]}])
    groups, audit = read([path])
    assert groups[0].responses[0].messages == [FOUR]
    assert audit.noted == {"turns after the last assistant turn cut": 1}


@pytest.mark.parametrize("prompt", ["Two and two is", [USER]])
def test_a_prompt_alone_has_no_response(tmp_path, prompt):
    group = one(tmp_path, {"prompt": prompt, "answer": "4"}, "prompt-only")
    assert (group.prompt, group.responses, group.extras) == (prompt, [], {"answer": "4"})


def test_prompt_and_completion_keep_their_white_space(tmp_path):
    group = one(tmp_path, {"prompt": "Two and two is", "completion": " four."}, "prompt-completion")
    assert (group.prompt, facts(group)) == ("Two and two is", [(" four.", 0, None, None)])


def test_a_conversational_completion_is_messages(tmp_path):
    group = one(tmp_path, {"prompt": [USER], "completion": [FOUR]}, "prompt-completion")
    assert (group.prompt, group.responses[0].messages, group.responses[0].text) == ([USER], [FOUR], "Four.")


@pytest.mark.parametrize("label, expected", [(True, True), (False, False), (0, False), ("true", True)])
def test_a_thumb_is_one_response_with_a_label_and_no_rank(tmp_path, label, expected):
    group = one(tmp_path, {"prompt": "Sky?", "completion": "Blue", "label": label}, "unpaired preference")
    assert facts(group) == [("Blue", None, expected, None)]


def test_steps_are_joined_and_good_where_every_step_is(tmp_path):
    row = {"prompt": "2+2+1?", "completions": ["2+2=4. ", "4+1=6."], "labels": [True, False]}
    group = one(tmp_path, row, "stepwise supervision")
    assert facts(group) == [("2+2=4. 4+1=6.", None, False, None)]
    assert group.extras == {"steps": ["2+2=4. ", "4+1=6."], "step_labels": [True, False]}


def test_a_text_pair_is_chosen_then_rejected(tmp_path):
    group = one(tmp_path, {"prompt": "2+2?", "chosen": " Four", "rejected": " Five"}, "preference")
    assert (group.prompt, facts(group)) == ("2+2?", [(" Four", 0, None, None), (" Five", 1, None, None)])


@pytest.mark.parametrize("repeated", [[], [USER]])
def test_a_conversational_pair_may_repeat_its_prompt(tmp_path, repeated):
    row = {"prompt": [USER], "chosen": [*repeated, FOUR], "rejected": [*repeated, FIVE]}
    group = one(tmp_path, row, "preference")
    assert (group.prompt, [r.messages for r in group.responses]) == ([USER], [[FOUR], [FIVE]])


def test_conversations_with_an_implicit_prompt_share_their_leading_turns(tmp_path):
    row = {"chosen": [SYSTEM, USER, FOUR], "rejected": [SYSTEM, USER, FIVE]}
    group = one(tmp_path, row, "preference (implicit prompt)")
    assert (group.prompt, [r.messages for r in group.responses]) == ([SYSTEM, USER], [[FOUR], [FIVE]])


def test_equal_first_answers_are_responses_and_not_prompt(tmp_path):
    more = {"role": "user", "content": "Sure?"}
    row = {"chosen": [USER, FOUR], "rejected": [USER, FOUR, more, FIVE]}
    group = one(tmp_path, row, "preference (implicit prompt)")
    assert (group.prompt, [r.messages for r in group.responses]) == ([USER], [[FOUR], [FOUR, more, FIVE]])


def test_unmarked_texts_are_cut_at_a_word_and_counted_as_guessed(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"chosen": "The sky is blue.", "rejected": "The sky is black."}])
    groups, audit = read([path])
    assert (groups[0].prompt, [r.text for r in groups[0].responses]) == ("The sky is", [" blue.", " black."])
    assert audit.noted == {"prompt guessed from the common start of both texts": 1}


def test_a_transcript_is_cut_after_the_marker_and_not_at_the_common_prefix(tmp_path):
    start = "\n\nHuman: Sky?\n\nAssistant: Blue.\n\nHuman: Sure?\n\nAssistant:"
    row = {"chosen": start + " Yes, blue.", "rejected": start + " Yes, black."}
    group = one(tmp_path, row, "HH transcripts")
    assert (group.prompt, [r.text for r in group.responses]) == (start, [" Yes, blue.", " Yes, black."])


def test_one_broken_transcript_does_not_change_what_the_file_is(tmp_path):
    start = "\n\nHuman: Sky?\n\nAssistant:"
    rows = [{"chosen": f"{start} Blue {i}", "rejected": f"{start} Black {i}"} for i in range(5)]
    (table,) = load(write_jsonl(tmp_path / "d.jsonl", [{"chosen": "Blue", "rejected": "Black"}, *rows]))
    assert (table.format, table.audit.dropped) == ("HH transcripts", {"no assistant marker": 1})


def test_ultrafeedback_binarized_takes_prompt_from_the_turns_and_scores_as_rewards(tmp_path):
    row = {"prompt": USER["content"], "prompt_id": "a", "messages": [USER, FOUR]}
    row |= {"chosen": [USER, FOUR], "rejected": [USER, FIVE], "score_chosen": 8.5, "score_rejected": 2}
    (table,) = load(write_jsonl(tmp_path / "d.jsonl", [row]))
    group = table.groups[0]
    assert table.format == "UltraFeedback-binarized"
    assert (group.prompt, facts(group)) == ([USER], [("Four.", 0, None, 8.5), ("Five.", 1, None, 2.0)])
    assert group.extras == {"prompt_id": "a"}


def test_scores_against_the_order_are_counted(tmp_path):
    row = {
        "prompt": USER["content"],
        "chosen": [USER, FOUR],
        "rejected": [USER, FIVE],
        "score_chosen": 1,
        "score_rejected": 2,
    }
    _, audit = read([write_jsonl(tmp_path / "d.jsonl", [row])])
    assert audit.noted["scores contradict chosen and rejected"] == 1


def test_ultrafeedback_keeps_every_completion_ordered_by_its_fine_grained_score(tmp_path):
    completions = [
        {"response": "Bad", "model": "a", "overall_score": 10.0, "fine-grained_score": 1.0},
        {"response": "Good", "model": "b", "overall_score": 8.0, "fine-grained_score": 4.5, "critique": "Right."},
        {"response": "Also good", "model": "c", "overall_score": 7.0, "fine-grained_score": 4.5},
    ]
    group = one(tmp_path, {"instruction": "Q", "completions": completions}, "UltraFeedback")
    assert facts(group) == [("Good", 0, None, 4.5), ("Also good", 0, None, 4.5), ("Bad", 1, None, 1.0)]
    assert [(r.source, r.judgment) for r in group.responses] == [("b", "Right."), ("c", None), ("a", None)]


def test_sharegpt_roles_become_ours(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    group = one(tmp_path, {"conversations": turns, "system": "Be brief."}, "ShareGPT")
    assert group.prompt == [SYSTEM, {"role": "user", "content": "Hi"}]
    assert facts(group) == [("Hello", 0, None, None)]


def test_a_sharegpt_ranking_has_one_turn_on_each_side(tmp_path):
    row = {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    }
    group = one(tmp_path, row, "ShareGPT ranking")
    assert facts(group) == [("4", 0, None, None), ("5", 1, None, None)]


def test_alpaca_joins_instruction_and_input_after_system_and_history(tmp_path):
    row = {"instruction": "Add", "input": "2 and 2", "output": "4", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    group = one(tmp_path, row, "Alpaca")
    assert group.prompt == [
        SYSTEM,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Add\n2 and 2"},
    ]
    assert group.responses[0].messages == [{"role": "assistant", "content": "4"}]


def test_an_alpaca_ranking_is_a_pair(tmp_path):
    group = one(tmp_path, {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"}, "Alpaca ranking")
    assert facts(group) == [("4", 0, None, None), ("5", 1, None, None)]


@pytest.mark.parametrize("row", [{"instruction": "2+2?", "output": "5"}, {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "5"}]}])  # fmt: skip
def test_a_kto_tag_makes_a_thumb(tmp_path, row):
    (table,) = load(write_jsonl(tmp_path / "d.jsonl", [{**row, "kto_tag": False}]))
    assert facts(table.groups[0]) == [("5", None, False, None)]


@pytest.mark.parametrize(
    "preference, expected",
    [
        (1.2, [("one", 0, None, 0.8), ("two", 1, None, 0.2)]),
        (2, [("two", 0, None, 1.0), ("one", 1, None, 0.0)]),
        (1.5, [("one", 0, None, 0.5), ("two", 0, None, 0.5)]),
    ],
)
def test_an_alpacaeval_preference_is_each_outputs_chance_to_win(tmp_path, preference, expected):
    row = {"instruction": "Q", "output_1": "one", "output_2": "two", "preference": preference}
    group = one(tmp_path, row, "AlpacaEval annotations")
    assert [(t, rank, lab, round(w or 0.0, 9)) for t, rank, lab, w in facts(group)] == expected


def test_a_failed_judge_is_counted(tmp_path):
    row = {"instruction": "Q", "output_1": "one", "output_2": "two"}
    rows = [{**row, "preference": p} for p in (1.0, None, float("nan"), "", 3)]
    _, audit = read([write_jsonl(tmp_path / "d.jsonl", rows)])
    assert audit.dropped == {"judge failed": 3, "preference outside [1, 2]": 1}


def test_a_judgment_in_words_is_kept_and_its_absence_is_praise(tmp_path):
    rows = [
        {"instruction": "Q", "input": "", "output": "A", "judgment": "Too short."},
        {"instruction": "R", "input": "", "output": "A", "judgment": None},
    ]
    (table,) = load(write_jsonl(tmp_path / "d.jsonl", rows))
    assert table.format == "CUT judgments"
    assert [(g.responses[0].judgment, g.responses[0].label) for g in table.groups] == [
        ("Too short.", False),
        (None, True),
    ]


def test_a_recorded_stream_comes_back_as_it_was_repeated_and_empty_samples_included(tmp_path):
    empty = Response(text="", ids=[2], mask=[True], reward=0.25, finish="stop", source="policy", behaviour_logp=[-1.5])
    group = Group("p", [empty, empty], prompt_ids=[5, 6], extras={"answer": "4"}, origin="train.jsonl:3")
    folder = tmp_path / "run" / "trueline"
    folder.mkdir(parents=True)
    write_jsonl(folder / "stream.jsonl", [{"step": s, **group.to_json()} for s in (1, 1, 2)])
    groups, audit = read([str(tmp_path / "run")])
    assert [g.extras.pop("step") for g in groups] == [1, 1, 2]
    assert groups == [group] * 3
    assert audit.dropped == {}


def test_columns_that_fit_two_types_are_said_so(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "Hi", "messages": [USER, FOUR]}])
    (table,) = load(path)
    assert (table.format, table.also_fits) == ("language modeling (messages)", ["prompt-only"])
    assert any("prompt-only" in reason for reason in table.audit.noted)


def test_every_format_is_found_by_its_own_columns_alone():
    names = [f.name for f in formats()]
    assert len(set(names)) == len(names) == 19


def test_tools_and_template_options_of_a_row_are_read_from_json_text(tmp_path):
    row = {"messages": [USER, FOUR], "tools": '[{"type": "function"}]', "chat_template_kwargs": '{"thinking": false}'}
    groups, _ = read([write_jsonl(tmp_path / "d.jsonl", [row])])
    assert groups[0].extras == {"tools": [{"type": "function"}], "chat_template_kwargs": {"thinking": False}}


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def _containers(folder: Path) -> dict[str, str]:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    rows = [PAIR, {**PAIR, "prompt": "2+3?"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = "prompt,chosen,rejected\n2+2?,4,5\n2+3?,4,5\n"
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "lines.json").write_text(lines)
    (folder / "pretty.json").write_text(json.dumps({"data": rows}, indent=2))
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.csv").write_text(table)
    (folder / "a.tsv").write_text(table.replace(",", "\t"))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "unnamed.jsonl").write_bytes(gzip.compress(lines.encode()))
    (folder / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    Dataset.from_list(rows).save_to_disk(str(folder / "arrow"))
    (folder / "many").mkdir()
    (folder / "many" / "train-1.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (folder / "many" / "train-2.csv").write_text("prompt,chosen,rejected\n2+3?,4,5\n")
    names = [
        "a.json",
        "lines.json",
        "pretty.json",
        "a.jsonl",
        "a.csv",
        "a.tsv",
        "a.jsonl.gz",
        "unnamed.jsonl",
        "a.csv.gz",
    ]
    return {name: str(folder / name) for name in [*names, "a.parquet", "arrow", "many"]}


def test_every_container_holds_the_same_groups(tmp_path):
    for name, path in _containers(tmp_path).items():
        groups, audit = read([path])
        assert [(g.prompt, [r.text for r in g.responses]) for g in groups] == [
            ("2+2?", ["4", "5"]),
            ("2+3?", ["4", "5"]),
        ], name
        assert (audit.read, audit.kept) == (2, 2)


def test_an_arrow_file_inside_a_saved_set_can_be_named_itself(tmp_path):
    saved = _containers(tmp_path)["arrow"]
    (file,) = Path(saved).glob("*.arrow")
    assert len(read([str(file)])[0]) == 2


def test_a_saved_set_with_several_splits_gives_the_one_asked_for(tmp_path):
    from datasets import Dataset, DatasetDict

    parts = {"train": Dataset.from_list([PAIR]), "test": Dataset.from_list([{**PAIR, "prompt": "2+3?"}])}
    DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert read([str(tmp_path / "d")])[0][0].prompt == "2+2?"
    assert read([str(tmp_path / "d")], split="test")[0][0].prompt == "2+3?"
    with pytest.raises(TruelineError, match=r"no split 'tset'\. Did you mean 'test'"):
        read([str(tmp_path / "d")], split="tset")


def test_messages_in_a_csv_cell_are_json(tmp_path):
    import csv

    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion"], [json.dumps([USER]), json.dumps([FOUR])]])
    groups, _ = read([str(tmp_path / "d.csv")])
    assert (groups[0].prompt, groups[0].responses[0].messages) == ([USER], [FOUR])


def test_a_weight_takes_a_share_that_depends_on_content_alone(tmp_path):
    rows = [{"prompt": f"{i}+1?", "completion": str(i + 1)} for i in range(40)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    backwards = write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    third = {g.prompt for g in read([f"{path}::0.3"])[0]}
    assert len(third) == 12
    assert third == {g.prompt for g in read([f"{backwards}::0.3"])[0]}
    assert third < {g.prompt for g in read([f"{path}::0.5"])[0]}
    groups, audit = read([f"{path}::2.5", path])
    assert len(groups) == audit.kept == 140
    assert read([f"{path}::0.3"])[1].dropped == {"left out by the weight 0.3": 28}


@pytest.mark.parametrize("suffix", ["::0", "::-1", "::much", "::nan", "::inf"])
def test_a_senseless_weight_is_refused(tmp_path, suffix):
    path = write_jsonl(tmp_path / "d.jsonl", [PAIR])
    with pytest.raises(TruelineError, match="the weight"):
        read([path + suffix])
