"""Bad input: refused with the place named, or dropped and counted. docs/data.md has the table."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.tokenizers_on_the_spot import write_jsonl
from trueline.errors import TruelineError
from trueline.readers import load, read
from trueline.readers.files import open_tables

PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


def dropped(tmp_path, *rows):
    """What is dropped from a file of these rows and one good pair."""
    return read([write_jsonl(tmp_path / "d.jsonl", [PAIR, *rows])])[1].dropped


def refused(tmp_path, content, name="d.jsonl"):
    """The message with which a file of these bytes is refused."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TruelineError) as caught:
        read([str(tmp_path / name)])
    return str(caught.value)


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_an_empty_file_is_refused(tmp_path, name):
    assert "is empty (0 bytes)" in refused(tmp_path, b"", name)


@pytest.mark.parametrize(
    "name, content", [("d.jsonl", "\n\n"), ("d.json", "[]"), ("d.csv", "prompt,chosen,rejected\n")]
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    assert "holds no row" in refused(tmp_path, content, name)


def test_broken_json_on_line_7_names_line_and_column(tmp_path):
    lines = [json.dumps({**PAIR, "prompt": f"{i}?"}) for i in range(9)]
    lines[6] = '{"prompt": "x", "chosen": }'
    message = refused(tmp_path, "\n".join(lines))
    assert "d.jsonl:7: broken JSON at column 27" in message


def test_broken_json_on_the_first_line_names_it(tmp_path):
    assert "d.jsonl:1: broken JSON at column 12" in refused(tmp_path, '{"prompt": }\n' + json.dumps(PAIR))


def test_broken_json_inside_an_array_names_its_line(tmp_path):
    text = json.dumps([PAIR, PAIR], indent=1).replace('"rejected": "5"', '"rejected" "5"', 1)
    assert "d.json:5: broken JSON" in refused(tmp_path, text, "d.json")


def test_a_row_that_is_no_object_is_refused(tmp_path):
    assert "d.jsonl:2 holds int, expected a JSON object" in refused(tmp_path, json.dumps(PAIR) + "\n7\n")


def test_a_row_without_a_column_is_refused_by_its_line(tmp_path):
    message = refused(tmp_path, json.dumps(PAIR) + "\n" + json.dumps({"prompt": "a", "chosen": "b"}))
    assert "d.jsonl:2: column 'rejected' is missing" in message


def test_a_misspelt_column_is_recognised(tmp_path):
    message = refused(tmp_path, json.dumps({"choosen": "b", "rejected": "c"}))
    assert "Columns seen: 'choosen', 'rejected'" in message
    assert "'choosen' looks like 'chosen': rename it" in message


@pytest.mark.parametrize(
    "row, advice",
    [
        ({"prompt": "a", "choosen": "b", "rejected": "c"}, "Rename 'choosen' to 'chosen'; if prompt-only was meant"),
        ({"promt": "a", "chosen": "a b", "rejected": "a c"}, "Rename 'promt' to 'prompt'"),
        ({"prompt": "a", "completion": "b", "lable": True}, "Rename 'lable' to 'label'"),
        ({"instruction": "a", "output": "b", "judgement": "c"}, "Rename 'judgement' to 'judgment'"),
    ],
)
def test_a_misspelt_column_does_not_turn_a_file_into_a_poorer_type(tmp_path, row, advice):
    assert advice in refused(tmp_path, json.dumps(row))


def test_unknown_columns_are_refused_with_the_nearest_type(tmp_path):
    message = refused(tmp_path, "instruction_id,preference,chars_1\n1,1.5,3\n", "d.csv")
    assert "nearest known type is AlpacaEval annotations" in message
    assert "missing: 'instruction', 'output_1', 'output_2'" in message


@pytest.mark.parametrize("column, value", [("chosen", 7), ("prompt", 7), ("rejected", ["x"]), ("prompt", {"a": 1})])
def test_a_wrong_type_names_row_and_column(tmp_path, column, value):
    message = refused(tmp_path, json.dumps(PAIR) + "\n" + json.dumps({**PAIR, column: value}))
    assert "d.jsonl:2: column '" + column in message
    assert f"holds {type(value).__name__}" in message or "a message" in message


def test_a_label_that_is_no_truth_value_is_refused(tmp_path):
    row = {"prompt": "a", "completion": "b", "label": "good"}
    assert "column 'label' holds str 'good', expected true or false" in refused(tmp_path, json.dumps(row))


def test_an_unknown_role_is_refused_with_the_nearest(tmp_path):
    row = {"messages": [{"role": "usr", "content": "Hi"}, REPLY]}
    assert "messages[0] has the role 'usr'. Did you mean 'user'?" in refused(tmp_path, json.dumps(row))


def test_a_picture_is_refused(tmp_path):
    row = {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, REPLY]}
    assert "a part that is not text" in refused(tmp_path, json.dumps(row))


def test_equal_responses_are_dropped(tmp_path):
    assert dropped(tmp_path, {**PAIR, "chosen": "5"}) == {"identical responses": 1}


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("blank", ["", " \n"])
def test_empty_prompts_and_responses_are_dropped(tmp_path, column, blank):
    reason = "empty prompt" if column == "prompt" else "empty response"
    assert dropped(tmp_path, {**PAIR, column: blank}) == {reason: 1}


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_missing_values_are_dropped(tmp_path, nothing):
    assert dropped(tmp_path, {**PAIR, "chosen": nothing}) == {"missing value": 1}


def test_duplicates_are_dropped_and_opposite_orders_noted(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [PAIR, PAIR, {**PAIR, "chosen": "5", "rejected": "4"}])
    groups, audit = read([path])
    assert (len(groups), audit.dropped) == (2, {"duplicate row": 1})
    assert audit.noted == {"same pair with the opposite order": 1}
    assert audit.examples["duplicate row"] == [{"origin": "d.jsonl:2", "detail": "same as d.jsonl:1"}]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, USER, REPLY],
        [USER, REPLY, REPLY],
        [REPLY, USER, REPLY],
        [USER, {"role": "tool", "content": "x"}, REPLY],
        [USER, REPLY, {"role": "system", "content": "x"}, USER, REPLY],
    ],
)
def test_roles_that_do_not_alternate_are_dropped(tmp_path, messages):
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [USER, REPLY]}, {"messages": messages}])
    assert read([path])[1].dropped == {"roles do not alternate": 1}


def test_a_tool_answers_an_assistant_and_an_assistant_answers_a_tool(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]}
    tool = {"role": "tool", "content": "4"}
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [USER, call, tool, tool, REPLY]}])
    assert len(read([path])[0][0].responses[0].messages) == 4


def test_an_empty_turn_is_dropped(tmp_path):
    turns = [[USER, {"role": "assistant", "content": " "}], [{"role": "user", "content": ""}, REPLY], [USER]]
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [USER, REPLY]}, *({"messages": t} for t in turns)])
    assert read([path])[1].dropped == {"empty response": 1, "empty message": 1, "no assistant turn": 1}


def test_a_file_with_nothing_usable_is_refused_with_the_reasons(tmp_path):
    message = refused(tmp_path, json.dumps({**PAIR, "chosen": "5"}))
    assert "none of its 1 rows can be used: identical responses (1)" in message


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_a_score_that_is_not_finite_drops_the_row(tmp_path, score):
    row = {"prompt": "Hi", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "Hm"}], "score_rejected": 1}
    good = {**row, "prompt": "Hey", "chosen": [{**USER, "content": "Hey"}, REPLY], "score_chosen": 3}
    good["rejected"] = [{**USER, "content": "Hey"}, {**REPLY, "content": "Hm"}]
    path = write_jsonl(tmp_path / "d.jsonl", [good, {**row, "score_chosen": score}])
    reason = "missing value" if score is None else "score is not finite"
    assert read([path])[1].dropped == {reason: 1}


def test_bytes_that_are_not_utf8_name_line_and_offset(tmp_path):
    good = json.dumps(PAIR).encode() + b"\n"
    message = refused(tmp_path, good * 2 + b'{"prompt": "caf\xe9"}\n')
    assert "d.jsonl:3: byte 0xe9 at offset 15 of the line is not UTF-8" in message
    assert "d.csv:2: byte 0xe9 at offset 3" in refused(tmp_path, b"text\ncaf\xe9\n", "d.csv")


def test_utf16_is_refused_by_name(tmp_path):
    assert "UTF-16" in refused(tmp_path, json.dumps(PAIR).encode("utf-16"))


def test_half_a_surrogate_pair_drops_the_row(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(PAIR) + '\n{"prompt": "a", "chosen": "\\ud83d", "rejected": "b"}\n')
    assert read([str(tmp_path / "d.jsonl")])[1].dropped == {"text that is not valid Unicode": 1}


def test_byte_order_marks_windows_line_ends_and_blank_lines_change_nothing(tmp_path):
    row = {**PAIR, "chosen": "line\u2028separator"}
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{json.dumps(PAIR)}\r\n\r\n\n".encode())
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbfprompt,chosen,rejected\r\n2+2?,4,5\r\n\r\n\r\n")
    groups, _ = read([str(tmp_path / "d.jsonl")])
    assert [(g.origin, g.responses[0].text) for g in groups] == [
        ("d.jsonl:1", "line\u2028separator"),
        ("d.jsonl:3", "4"),
    ]
    assert read([str(tmp_path / "d.csv")])[0][0].responses[1].text == "5"


@pytest.mark.parametrize("line, cells", [("2+2?,4", 2), ("2+2?,4,5,6", 4)])
def test_a_ragged_csv_row_is_refused_by_its_line(tmp_path, line, cells):
    message = refused(tmp_path, f'prompt,chosen,rejected\n"two\nlines",a,b\n{line}\n', "d.csv")
    assert f"d.csv:4: {cells} cells where the header has 3" in message


def test_an_unclosed_quote_in_a_csv_is_refused(tmp_path):
    assert "broken CSV" in refused(tmp_path, 'prompt,chosen,rejected\n"a,b,c\n', "d.csv")


def test_a_column_named_twice_in_a_csv_is_refused(tmp_path):
    assert "occurs twice" in refused(tmp_path, "prompt,prompt,x\na,b,c\n", "d.csv")


def test_a_damaged_gzip_file_is_refused(tmp_path):
    content = gzip.compress(json.dumps(PAIR).encode())
    assert "cannot be unpacked" in refused(tmp_path, content[:-9], "d.jsonl.gz")


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    assert "cannot be read as Parquet" in refused(tmp_path, b"not parquet at all", "d.parquet")


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json"])
def test_a_single_example_of_ten_megabytes_is_read_whole(tmp_path, name):
    text = "long " * 2_000_000
    if name == "d.csv":
        content = f"prompt,chosen,rejected\nQ,{text},short\n"
    else:
        row = {"prompt": "Q", "chosen": text, "rejected": "short"}
        content = json.dumps([row] if name == "d.json" else row)
    (tmp_path / name).write_text(content)
    assert read([str(tmp_path / name)])[0][0].responses[0].text == text


def test_a_file_that_does_not_exist_names_its_neighbour(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [PAIR])
    with pytest.raises(TruelineError, match=r"There is no file or folder .*Did you mean 'train.jsonl'"):
        read([str(tmp_path / "trian.jsonl")])


def test_a_folder_without_data_and_an_unknown_ending_are_refused(tmp_path):
    (tmp_path / "notes.docx").write_bytes(b"x")
    with pytest.raises(TruelineError, match="holds no data file"):
        read([str(tmp_path)])
    with pytest.raises(TruelineError, match=r"has the ending '.docx'"):
        read([str(tmp_path / "notes.docx")])


def test_a_recorded_response_with_foreign_fields_or_a_torn_mask_is_refused(tmp_path):
    row = {"prompt": "a", "prompt_ids": [1], "responses": [{"text": "b", "colour": "red"}]}
    assert "d.jsonl:1: response 1 has fields a recorded group does not: ['colour']" in refused(
        tmp_path, json.dumps(row)
    )
    row["responses"] = [{"text": "b", "ids": [1, 2], "mask": [True]}]
    assert "ids and mask of different lengths" in refused(tmp_path, json.dumps(row))


def test_a_column_that_only_contains_a_known_name_is_no_misspelling(tmp_path):
    row = {"chosen": "a b", "rejected": "a c", "prompt_id": 7}
    assert read([write_jsonl(tmp_path / "d.jsonl", [row])])[0][0].extras == {"prompt_id": 7}


class GatedRepoError(Exception):
    pass


class DatasetNotFoundError(Exception):
    pass


@pytest.mark.parametrize(
    "error, offline, expected",
    [
        (GatedRepoError("403"), False, "it is gated. Accept its terms at https://huggingface.co/datasets/some/set"),
        (DatasetNotFoundError("?"), False, "does not exist or is private"),
        (ConnectionError("no route"), False, "the hub cannot be reached"),
        (ConnectionError("no route"), True, r"may not be asked \(offline\)"),
    ],
)
def test_a_hub_that_gives_nothing_says_what_to_do(monkeypatch, error, offline, expected):
    asked = []

    def load_dataset(name, download_config):
        asked.append(download_config)
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("datasets.DownloadConfig", lambda local_files_only: local_files_only)
    with pytest.raises(TruelineError, match=expected):
        read(["some/set"], offline=offline)
    assert asked == [True if offline else None]


def test_a_hub_set_is_read_like_a_file(monkeypatch):
    from datasets import Dataset, DatasetDict

    parts = DatasetDict(
        {"train": Dataset.from_list([PAIR]), "test": Dataset.from_list([PAIR, {**PAIR, "prompt": "?"}])}
    )
    monkeypatch.setattr("datasets.load_dataset", lambda name, download_config: parts)
    assert [len(open_tables("some/set", split=s)[0].rows) for s in (None, "test")] == [1, 2]
    assert load("some/set")[0].groups[0].origin == "set:1"


def test_offline_asks_no_hub_for_a_data_set(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda host, *rest, **more: asked.append(host) or (_ for _ in ()).throw(OSError)
    )
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the retries of a client that does ask
    with pytest.raises(TruelineError, match=r"may not be asked \(offline\)"):
        read(["some/set"], offline=True)
    assert asked == []
