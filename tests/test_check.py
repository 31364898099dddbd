"""`trueline check`: what it finds in files, with and without a model."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tests.tokenizers_on_the_spot import byte_level, model_folder, write_jsonl
from trueline.check import check, render
from trueline.encode import Limits
from trueline.errors import TruelineError

ROWS = [
    {"prompt": "why?", "chosen": " because", "rejected": " no", "source": "x"},
    {"prompt": "why?", "chosen": " because", "rejected": " no", "source": "x"},
    {"prompt": "how?", "chosen": " so", "rejected": " so", "source": "x"},
    {"prompt": "when?", "chosen": " now", "rejected": " [never] " * 9, "source": "x"},
]


def shown(result) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(result, console)
    return console.file.getvalue()


def test_a_file_is_described_and_what_is_wrong_with_it_counted(tmp_path):
    result = check([write_jsonl(tmp_path / "a.jsonl", ROWS)])
    (file,) = result.files
    assert (file.format, file.kind, file.rows, file.groups, file.duplicates) == ("preference", "JSON lines", 4, 2, 1)
    assert file.audit.dropped == {"duplicate row": 1, "identical responses": 1}
    assert (result.unit, file.lengths["prompt"]["max"], file.lengths["response"]["max"]) == ("characters", 5.0, 81.0)
    assert (file.responses, file.unread) == ({2: 2}, ["source"])


def test_prompts_in_two_files_are_counted(tmp_path):
    paths = [write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "b.jsonl", ROWS[3:])]
    result = check(paths)
    assert result.overlaps == [(*paths, 1)]
    assert "1 prompts stand in both" in shown(result)


def test_with_a_model_lengths_are_tokens_and_the_sample_shows_its_mask(tmp_path):
    tokenizer = byte_level()
    model = model_folder(tmp_path / "m", tokenizer, len(tokenizer))
    result = check([write_jsonl(tmp_path / "a.jsonl", ROWS)], str(model), Limits(max_length=24))
    (file,) = result.files
    assert (result.unit, sorted(file.lengths)) == ("tokens", ["chosen", "prompt", "rejected"])
    assert file.audit.noted["responses truncated"] == 1
    assert "⟦ because<|im_end|>⟧" in shown(result)


def test_everything_is_printed_and_brackets_in_the_data_are_no_markup(tmp_path):
    text = shown(check([write_jsonl(tmp_path / "a.jsonl", [*ROWS[3:], *ROWS[:3]])]))
    for words in (
        "read as preference",
        "4 rows, 2 groups",
        "dropped 1: duplicate row",
        "same as a.jsonl:2",
        "[never]",
        "longest",
    ):
        assert words in text


def test_a_result_is_json(tmp_path):
    result = check([write_jsonl(tmp_path / "a.jsonl", ROWS)])
    assert json.loads(json.dumps(result.to_json()))["files"][0]["rows"] == 4


def test_a_model_whose_tokenizer_is_too_large_is_refused(tmp_path):
    model = model_folder(tmp_path / "m", byte_level(), 100)
    with pytest.raises(TruelineError, match="The tokenizer does not belong to the model"):
        check([write_jsonl(tmp_path / "a.jsonl", ROWS)], str(model))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(TruelineError, match=r"The tokenizer of .* cannot be loaded"):
        check([write_jsonl(tmp_path / "a.jsonl", ROWS)], str(tmp_path), offline=True)


def test_a_file_that_encoding_empties_is_refused(tmp_path):
    tokenizer = byte_level()
    model = model_folder(tmp_path / "m", tokenizer, len(tokenizer))
    limits = Limits(max_length=8, truncation="drop")
    with pytest.raises(TruelineError, match=r"no row is left after encoding: response over the length limit \(1\)"):
        check([write_jsonl(tmp_path / "a.jsonl", ROWS[3:])], str(model), limits)


def test_rendering_options_without_a_model_and_no_files_are_refused(tmp_path):
    with pytest.raises(TruelineError, match="system_prompt has no effect without a model"):
        check([write_jsonl(tmp_path / "a.jsonl", ROWS)], system_prompt="Be kind.")
    with pytest.raises(TruelineError, match="No data were given"):
        check([])
