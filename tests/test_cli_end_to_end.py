"""The commands of the guide on a real, tiny model: from a text file to aligned runs and their comparison."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest

from trueline.cli import main as command_line

pytestmark = pytest.mark.slow


def run(line: str) -> int:
    before, sys.argv = sys.argv, ["trueline", *line.split()]
    try:
        command_line.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


def pairs(file: Path, n: int = 60) -> None:
    draw = random.Random(0)
    words = ["red", "blue", "green", "small", "large", "old", "new", "kind", "plain", "warm"]
    with file.open("w") as lines:
        for i in range(n):
            said = [" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(3)]
            lines.write(
                json.dumps({"prompt": f"say {i} {said[0]}", "chosen": f" {said[1]} a", "rejected": f" {said[2]} b"})
            )
            lines.write("\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl, a new model, a reward model and an offline run, all made by commands."""
    folder = tmp_path_factory.mktemp("place")
    pairs(folder / "pairs.jsonl")
    common = f"--data {folder}/pairs.jsonl --batch-size 8 --steps 3 --lr 1e-3 --max-length 64 --max-response-length 8"
    held_out = "--eval-fraction 0.2 --eval-steps 3 --eval-prompts 4 --eval-opponent-samples 1"
    model = f"--model {folder}/model {common} {held_out}"
    assert run(f"new-model --data {folder}/pairs.jsonl --size 200k --steps 0 --output {folder}/model") == 0
    assert run(f"align {model} --objective bt --output {folder}/rm") == 0
    assert run(f"align {model} --objective dpo --eval-feedback reward:{folder}/rm --output {folder}/a") == 0
    judge = f"--source policy --feedback reward:{folder}/rm"
    assert run(f"align {model} --objective ipo --beta 0.2 {judge} --output {folder}/b") == 0
    return folder


def test_check_shows_the_file_and_its_first_sample(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"check {place}/pairs.jsonl --model {place}/model") == 0
    shown = capsys.readouterr().out
    assert "preference" in shown and "60" in shown and "say 0" in shown


def test_runs_record_the_options_as_resolved(place: Path) -> None:
    config = json.loads((place / "b" / "trueline" / "config.json").read_text())
    assert config["objective"] == {"ipo": 1.0} and config["method_options"]["objectives.ipo"] == {"beta": 0.2}
    assert config["steps"] == 3 and config["learning_rate"] == 1e-3
    assert json.loads((place / "a" / "trueline" / "summary.json").read_text())["status"] == "finished"


def test_compare_and_report_write_their_pages(place: Path) -> None:
    assert run(f"compare {place}/a {place}/b --output {place}/gap.html") == 0
    assert "<html" in (place / "gap.html").read_text(encoding="utf-8")
    page = place / "a" / "trueline" / "report.html"
    page.unlink()
    assert run(f"report {place}/a") == 0
    assert page.exists()


def test_a_used_folder_is_refused_and_a_dry_run_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"align --model {place}/model --data {place}/pairs.jsonl --objective dpo --steps 1 --batch-size 4"
    assert run(f"{line} --output {place}/a") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run(f"{line} --output {place}/dry --dry-run") == 0
    assert not (place / "dry").exists()


def test_an_adapter_run_merges_into_a_plain_model(place: Path) -> None:
    line = f"align --model {place}/model --data {place}/pairs.jsonl --objective dpo --steps 1 --batch-size 4"
    assert run(f"{line} --adapter lora --lora_r 2 --output {place}/lora") == 0
    assert (place / "lora" / "adapter_config.json").exists()
    assert run(f"merge {place}/lora --output {place}/merged") == 0
    assert (place / "merged" / "model.safetensors").exists()


def test_chat_answers_piped_lines(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("say red\n/quit\n"))
    assert run(f"chat {place}/model --max-new-tokens 4 --temperature 0") == 0
    assert capsys.readouterr().out


def test_a_run_ends_with_where_its_model_and_report_are_and_starts_with_what_was_noted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = f"--model {place}/model --data {place}/pairs.jsonl --batch-size 8 --steps 1 --max-length 64"
    assert run(f"align {rows} --max-response-length 4 --objective dpo --output {place}/said") == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-2:] == [f"Model: {place}/said", f"Report: {place}/said/trueline/report.html"]
    assert "noted:" in "".join(lines) and "60 text prompt" in " ".join(" ".join(lines).split())


def test_a_dry_run_says_in_what_unit_it_estimates_memory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"align --model {place}/model --data {place}/pairs.jsonl --objective dpo --dry-run") == 0
    shown = capsys.readouterr()
    assert "in GB:" in shown.out and "Report:" not in shown.err
