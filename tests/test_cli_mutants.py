"""The runner of `make mutants` says 'caught' only where a test failed because of the planted error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.run_mutants import Mutant, copy_tree, planted, read_mutants, run

TESTS = """
import os
import pytest
from code_under_test import double

def test_double(): assert double(2) == 4
def test_nothing(): assert double
@pytest.mark.skip(reason="no data")
def test_skipped(): assert False
@pytest.mark.parametrize("n", [0, 3])
def test_parametrised(n): assert double(n) == 2 * n
def test_already_failing(): assert False
def test_crash():
    if double(2) != 4: os._exit(3)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "tests" / "mutants").mkdir(parents=True)
    (root / "tests" / "__init__.py").touch()
    (root / "code_under_test.py").write_text("def double(n):\n    return n * 2  # n and n\n")
    (root / "tests" / "test_a.py").write_text(TESTS)
    (root / "ignored.txt").write_text("not copied")
    (root / ".gitignore").write_text("ignored.txt\n")
    subprocess.run(["git", "init", "-q", root], check=True)
    return root


def mutant(test: str, find: str = "n * 2", replace: str = "n * 3") -> Mutant:
    return Mutant("area", "why", "code_under_test.py", find, replace, f"tests/test_a.py::{test}")


@pytest.mark.slow
def test_every_verdict_is_told_apart(tree: Path) -> None:
    expected = {
        mutant("test_double"): "caught",
        mutant("test_parametrised"): "caught",
        mutant("test_nothing"): "SURVIVED",
        mutant("test_skipped"): "skipped",
        mutant("test_already_failing"): "test failed unplanted",
        mutant("test_that_is_not_there"): "test broken unplanted",
        mutant("test_crash"): "broken",
        mutant("test_double", replace="n *"): "broken",
        mutant("test_double", find="return n * 2", replace="raise_no(n)"): "caught",
        mutant("test_double", find="n and m"): "does not apply",
        mutant("test_double", find="n"): "does not apply",
        mutant("test_double", replace="n * 2"): "does not apply",
    }
    outcome = {planted_one: verdict for planted_one, verdict, _ in run(tree, list(expected), workers=2, timeout=60)}
    assert outcome == expected
    assert (tree / "code_under_test.py").read_text().count("n * 2") == 1


def test_the_copy_holds_new_files_and_leaves_ignored_ones(tree: Path, tmp_path: Path) -> None:
    copy = copy_tree(tree, tmp_path / "copy")
    assert (copy / "code_under_test.py").exists() and not (copy / "ignored.txt").exists()


def test_entries_with_missing_or_further_keys_are_refused(tree: Path) -> None:
    (tree / "tests" / "mutants" / "area.toml").write_text('[[mutant]]\nwhy = "w"\nfile = "f"\n')
    with pytest.raises(SystemExit, match=r"area.toml, entry 1: expected the keys"):
        read_mutants(tree, [])
    with pytest.raises(SystemExit, match="No such area: other"):
        read_mutants(tree, ["other"])


def test_every_committed_error_applies_to_its_file_and_names_an_existing_test() -> None:
    root = Path(__file__).parent.parent
    for entry in read_mutants(root, []):
        assert planted(entry, root) is not None, f"{entry.area}: {entry.why}"
        file, _, test = entry.test.partition("::")
        name = test.partition("[")[0]  # a case of a parametrised test may be named alone
        assert f"def {name}(" in (root / file).read_text(encoding="utf-8"), entry.test
