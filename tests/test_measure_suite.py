"""A suite runs what the inputs allow and says what it skipped; the framework table is the same in any order of runs."""

import json
import sys

import pytest

from tests.report_folders import Plan, make_run
from trueline.cli import main as command_line
from trueline.errors import TruelineError
from trueline.measure.detection import detection
from trueline.measuring import Request
from trueline.measuring.framework import framework, shown
from trueline.measuring.suite import SUITES, run

pytestmark = pytest.mark.slow


def command(monkeypatch, *tokens):
    monkeypatch.setattr(sys, "argv", ["trueline", "measure", *tokens])
    try:
        command_line.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_every_measure_of_a_suite_exists():
    from trueline.catalogue import names

    assert {m for suite in SUITES.values() for m in suite} <= set(names("measure"))


def test_a_suite_measures_what_a_file_allows_and_names_the_rest_with_reasons(tmp_path, monkeypatch, capsys):
    file = tmp_path / "logps.csv"
    file.write_text("prompt,chosen,rejected\na,1,0\nb,2,3\n")
    found = run("preference", Request("all", data=[str(file)]))
    assert list(found.readings) == ["ranking_accuracy", "reward_accuracy"]
    assert found.readings["ranking_accuracy"][0].value == 0.5
    assert set(found.readings) | set(found.skipped) == set(SUITES["preference"])
    assert "needs the columns" in found.skipped["kl"]
    assert (
        command(monkeypatch, "all", "--suite", "preference", "--data", str(file), "--output", str(tmp_path / "out"))
        == 0
    )
    assert "skipped kl:" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "all-preference.json").read_text())
    assert document["readings"]["ranking_accuracy"]["ranking_accuracy"]["value"] == 0.5
    assert set(document["skipped"]) == set(found.skipped)
    assert "<h2>Skipped</h2>" in (tmp_path / "out" / "all-preference.html").read_text()


def test_suites_that_cannot_be_measured_at_all_are_errors(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x.csv"
    file.write_text("nothing\n1\n")
    with pytest.raises(TruelineError, match="Did you mean 'safety'"):
        run("saftey", Request("all", data=[str(file)]))
    with pytest.raises(TruelineError, match="Nothing of the suite 'style' can be measured"):
        run("style", Request("all", data=[str(file)]))
    for tokens, says in (
        (["all"], "belong together"),
        (["kl", "--suite", "safety"], "belong together"),
        (["all", "--suite", "style", "--ties", "1"], "takes no options"),
        (["framework"], "reads run folders"),
    ):
        assert command(monkeypatch, *tokens) == 2
        assert says in capsys.readouterr().err.replace("\n", " ")


def test_the_framework_table_has_four_blocks_and_does_not_depend_on_the_order(tmp_path, monkeypatch, capsys):
    runs = [make_run(tmp_path / f"r{i}", Plan(prompts=12, gain=g), seed=i) for i, g in enumerate((1.5, 0.4))]
    (runs[0] / "measured").mkdir()
    (runs[0] / "measured" / "robustness.json").write_text(
        json.dumps({"readings": {"ratio/space": {"value": 1.0, "low": None, "high": None}}})
    )
    names, found = framework(runs)
    assert (names, found) == framework(runs[::-1])
    assert all(found.values())
    row = found["quality"]["win_rate/lab"]
    assert set(row) == {"r0", "r1"}
    last = [json.loads(line) for line in (runs[0] / "trueline" / "evals.jsonl").open()]
    first, end = (e["readings"]["win_rate/lab"]["value"] for e in (last[0], last[-1]))
    assert (row["r0"].value, row["r0"].change) == (pytest.approx(end), pytest.approx(end - first))
    assert found["robustness"]["robustness: ratio/space"].keys() == {"r0"}
    assert shown(found["robustness"]["robustness: ratio/space"].get("r1")) == ""
    flags = [t for r in runs for t in ("--data", str(r))]
    assert command(monkeypatch, "framework", *flags, "--output", str(tmp_path / "out")) == 0
    assert "<h2>Robustness</h2>" in (tmp_path / "out" / "framework.html").read_text()


def test_detection_catches_the_misaligned():
    found = {r.name: r.value for r in detection([-1.0, 2.0, -3.0, 0.5], [0, 1, 1, 0])}
    assert found == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "auroc": 0.5}
    none = {r.name for r in detection([1.0, 2.0], [1, 1], threshold=1.5)}
    assert none == {"precision", "f1"}
    with pytest.raises(TruelineError, match="expected 1"):
        detection([1.0], [2.0])
