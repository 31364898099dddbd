"""Plant every committed error and see that a named test catches it: `python tests/run_mutants.py [AREA...]`.

An area is a file tests/mutants/AREA.toml with entries `why`, `file`, `find`, `replace`, `test`. `find` must occur
exactly once in `file`. All named tests must pass in an untouched copy of the tree first; then each error is planted
alone in a copy and its test must fail (a file that no longer imports, or a runner that crashes, proves nothing and
counts as broken). Tests that are skipped here, for want of data or of a browser, are reported and prove nothing either way.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
FIELDS = {"why", "file", "find", "replace", "test"}
GOOD = ("caught", "skipped")


@dataclass(frozen=True)
class Mutant:
    """One planted error: replace `find` by `replace` in `file`, and `test` must fail."""

    area: str
    why: str
    file: str
    find: str
    replace: str
    test: str


def read_mutants(root: Path, areas: list[str]) -> list[Mutant]:
    """All entries of the named areas, or of every area."""
    files = sorted((root / "tests" / "mutants").glob("*.toml"))
    if unknown := set(areas) - {file.stem for file in files}:
        sys.exit(f"No such area: {', '.join(sorted(unknown))}. There are: {', '.join(file.stem for file in files)}.")
    found = []
    for file in files:
        if areas and file.stem not in areas:
            continue
        for number, entry in enumerate(tomllib.loads(file.read_text(encoding="utf-8")).get("mutant", []), start=1):
            if entry.keys() != FIELDS:
                sys.exit(f"{file.name}, entry {number}: expected the keys {sorted(FIELDS)}, found {sorted(entry)}.")
            found.append(Mutant(file.stem, **entry))
    if not found:
        sys.exit("There are no mutants to plant.")
    return found


def planted(mutant: Mutant, root: Path) -> str | None:
    """The file's text with the error planted, or None if `find` does not occur exactly once or nothing changes."""
    file = root / mutant.file
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.count(mutant.find) != 1 or mutant.find == mutant.replace:
        return None
    return text.replace(mutant.find, mutant.replace)


def copy_tree(root: Path, target: Path) -> Path:
    """The tracked and new files of the repository; ignored ones (environments, caches, runs) stay behind."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def run_tests(tree: Path, tests: list[str], timeout: float) -> dict[str, str]:
    """pytest on these tests in a copy: test to 'passed', 'failed', 'skipped' or 'broken' (no verdict)."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("TRUELINE_DATA", str(ROOT.parent / "shared" / "data"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    try:
        subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(tests, "timed out")
    return {test: _verdict(report, test) for test in tests}


def clean_outcomes(tree: Path, tests: list[str], timeout: float) -> dict[str, str]:
    """Outcomes in an untouched copy. One misspelt name makes pytest run nothing, so what has no verdict runs alone."""
    outcomes = run_tests(tree, tests, timeout * len(tests))
    for test in tests if len(tests) > 1 else ():
        if outcomes[test] == "broken":
            outcomes |= run_tests(tree, [test], timeout)
    return outcomes


def _verdict(report: Path, test: str) -> str:
    """A test's outcome over all its parameters: any failure is a failure, all skipped is skipped."""
    path, _, name = test.partition("::")
    module = path.removesuffix(".py").replace("/", ".")
    wanted = name.split("::")[-1]
    outcomes = []
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        found = str(case.get("name"))
        same = found == wanted or found.partition("[")[0] == wanted
        if same and str(case.get("classname")).startswith(module):
            tags = {child.tag for child in case}
            outcomes.append(next((t for t in ("error", "failure", "skipped") if t in tags), "passed"))
    if not outcomes:
        return "broken"
    if {"failure", "error"} & set(outcomes):
        return "failed"
    return "skipped" if set(outcomes) == {"skipped"} else "passed"


def judge(mutant: Mutant, tree: Path, clean: str, timeout: float) -> str:
    """Plant one error in a copy, run its test, and put the copy back as it was."""
    text = planted(mutant, tree)
    if text is None:
        return "does not apply"
    if clean != "passed":
        return "skipped" if clean == "skipped" else f"test {clean} unplanted"
    file = tree / mutant.file
    original = file.read_bytes()
    try:
        if file.suffix == ".py":
            compile(text, mutant.file, "exec")
        file.write_text(text, encoding="utf-8")
        outcome = run_tests(tree, [mutant.test], timeout)[mutant.test]
    except SyntaxError:
        return "broken"
    finally:
        file.write_bytes(original)
    return {"failed": "caught", "passed": "SURVIVED"}.get(outcome, outcome)


def run(root: Path, mutants: list[Mutant], workers: int, timeout: float) -> list[tuple[Mutant, str, float]]:
    """Every mutant with its verdict and its seconds. Each worker has a copy of the tree of its own."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(workers) as pool:
        trees: queue.Queue[Path] = queue.Queue()
        for i in range(workers):
            trees.put(copy_tree(root, Path(folder, str(i))))

        def borrowed(task):
            tree, start = trees.get(), time.perf_counter()
            try:
                return task(tree), time.perf_counter() - start
            finally:
                trees.put(tree)

        tests = sorted({m.test for m in mutants})
        shares = [tests[i::workers] for i in range(workers) if tests[i::workers]]
        clean: dict[str, str] = {}
        for outcomes, _ in pool.map(lambda share: borrowed(lambda t: clean_outcomes(t, share, timeout)), shares):
            clean.update(outcomes)
        verdicts = pool.map(lambda m: borrowed(lambda t: judge(m, t, clean[m.test], timeout)), mutants)
        return [(mutant, *verdict) for mutant, verdict in zip(mutants, verdicts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("areas", nargs="*", help="names of tests/mutants/*.toml; default: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one test")
    options = parser.parse_args()
    results = run(ROOT, read_mutants(ROOT, options.areas), options.workers, options.timeout)

    table = Table("Area", "Planted", "Test", "Verdict", "s", box=None)
    for mutant, verdict, seconds in results:
        style = "green" if verdict == "caught" else "yellow" if verdict == "skipped" else "bold red"
        test = mutant.test.replace("tests/", "").replace("::", "\n")
        table.add_row(mutant.area, mutant.why, test, f"[{style}]{verdict}[/]", f"{seconds:.0f}")
    console = Console()
    console.print(table)
    counts = Counter(verdict for _, verdict, _ in results)
    console.print(f"{len(results)} planted: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    sys.exit(any(verdict not in GOOD for _, verdict, _ in results))


if __name__ == "__main__":
    main()
