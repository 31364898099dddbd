"""Journals: byte-identical lines, torn last lines, cutting back to a step, numbers that are not finite."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trueline.engine import failpoints
from trueline.engine.journal import Journal, encode, read, records
from trueline.errors import TruelineError


def in_a_process(code, *arguments, failpoint=None):
    """Run code in a fresh interpreter, with a fail-point armed or not."""
    environment = {k: v for k, v in os.environ.items() if k != failpoints.VARIABLE}
    if failpoint:
        environment[failpoints.VARIABLE] = failpoint
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_what_is_appended_is_read_back_with_the_same_bits(tmp_path):
    rows = [
        {"step": 1, "loss": 0.1 + 0.2, "tiny": 5e-324},
        {"step": 2, "text": "Grüße 你好", "ids": [1, 2], "none": None},
    ]
    with Journal(tmp_path / "metrics.jsonl") as journal:
        for row in rows:
            journal.append(row)
    assert read(tmp_path / "metrics.jsonl") == rows
    assert list(records(tmp_path / "metrics.jsonl")) == rows


def test_equal_records_give_equal_bytes_and_keys_keep_their_order():
    assert encode({"b": 1.0, "a": 1e-7}) == b'{"b": 1.0, "a": 1e-07}\n'


def test_numbers_that_are_not_finite_are_strict_json_and_float_reads_them_back():
    line = encode({"loss": math.nan, "inner": {"high": [math.inf, -math.inf, 1.5]}})
    held = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert math.isnan(float(held["loss"]))
    assert [float(x) for x in held["inner"]["high"]] == [math.inf, -math.inf, 1.5]


def test_a_lone_surrogate_in_a_text_survives():
    text = "broken \ud83d here"
    assert json.loads(encode({"text": text}))["text"] == text


def test_what_json_has_no_word_for_is_an_error():
    with pytest.raises(TypeError):
        encode({"ids": {1, 2}})


def test_cutting_back_to_a_step_keeps_the_bytes_of_the_lines_before_it(tmp_path):
    path = tmp_path / "stream.jsonl"
    with Journal(path) as journal:
        for step in (1, 2, 2, 3, 4):
            journal.append({"step": step, "x": 0.1 * step})
        before = path.read_bytes().splitlines(keepends=True)
        assert journal.truncate_after(2) == 2
        assert path.read_bytes() == b"".join(before[:3])
        journal.append({"step": 3, "again": True})
    assert path.read_bytes() == b"".join(before[:3]) + b'{"step": 3, "again": true}\n'
    assert os.listdir(tmp_path) == ["stream.jsonl"]


def test_cutting_back_to_before_the_first_step_empties_the_file(tmp_path):
    with Journal(tmp_path / "evals.jsonl") as journal:
        journal.append({"step": 0})
        assert journal.truncate_after(-1) == 1
    assert (tmp_path / "evals.jsonl").read_bytes() == b""


def test_a_torn_last_line_is_not_read_and_is_removed_when_the_journal_opens(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert read(path) == [{"step": 1}]
    with Journal(path) as journal:
        journal.append({"step": 2, "whole": True})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "whole": true}\n'


def test_a_torn_line_longer_than_a_block_is_removed_too(tmp_path):
    path = tmp_path / "stream.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"x" * 200_000)
    Journal(path).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(TruelineError, match=r"metrics\.jsonl:2 is not JSON"):
        read(path)
    with Journal(path) as journal, pytest.raises(TruelineError, match="jsonl:2"):
        journal.truncate_after(1)


def test_a_missing_journal_is_an_error_that_names_it(tmp_path):
    with pytest.raises(TruelineError, match=r"nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")


def test_a_line_the_disk_refuses_is_taken_back_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        journal.append({"step": 1})
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises(TruelineError, match="File too large"):
                journal.append({"step": 2, "text": "a line longer than ten bytes"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        journal.append({"step": 2})
    assert [row["step"] for row in read(path)] == [1, 2]


WRITER = """
import sys
from pathlib import Path
from trueline.engine.journal import Journal
journal = Journal(sys.argv[1])
for step in (1, 2, 3):
    journal.append({"step": step})
"""


def test_a_kill_in_the_middle_of_a_line_leaves_the_lines_before_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert in_a_process(WRITER, path, failpoint="metrics.line.middle:3").returncode == -9
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step'
    assert read(path) == [{"step": 1}, {"step": 2}]


def test_an_unarmed_failpoint_changes_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert in_a_process(WRITER, path).returncode == 0
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize("setting", ["metrics.line.midle", "metrics.line.middle:0", "metrics.line.middle:x"])
def test_a_misspelt_failpoint_in_the_environment_is_an_error(setting):
    done = in_a_process("import trueline.engine.failpoints", failpoint=setting)
    assert done.returncode == 1
    assert "TruelineError" in done.stderr and setting.split(":")[0] in done.stderr


def test_every_registered_failpoint_stands_somewhere_in_the_code():
    package = Path(failpoints.__file__).parents[1]
    code = "".join(f.read_text() for f in package.rglob("*.py") if f.name != "failpoints.py")
    assert [name for name in failpoints.POINTS if f'"{name}"' not in code] == []
