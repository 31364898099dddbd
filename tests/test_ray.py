"""Work over processes and over a real Ray: what a killed worker had finished stays, and the result is that of one process.

Ray is started by the tests and ended by them.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.model_folders import model_folder
from tests.worker_tasks import always_killed, refused, square
from trueline import rows
from trueline.errors import TruelineError
from trueline.jobs import Job, run_jobs
from trueline.rows import Sampling, Scoring, sample, score
from trueline.workers import Crew

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)
WITH_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
CREWS = [pytest.param(Crew(2), id="processes"), pytest.param(Crew(2, "local"), id="ray", marks=WITH_RAY)]


def jobs_of(folder, calls):
    made = []
    for number, (call, *further) in enumerate(calls):
        log, product = folder / f"{number}.log", folder / f"{number}.txt"
        made.append(Job(f"n{number}", call, (number, str(folder), *further), (), 1, (folder, "*.txt"), log, product))
    return made


@pytest.mark.parametrize("crew", CREWS)
def test_a_killed_worker_loses_no_finished_work_and_its_task_is_done_by_another(tmp_path, crew):
    calls = [(square,), (square, True), (square,), (always_killed,), (refused,), (square,)]
    failures = run_jobs(jobs_of(tmp_path, calls), QUIET, crew, keep_going=True)
    assert [(tmp_path / f"{n}.txt").read_text() for n in (0, 1, 2, 5)] == ["0", "1", "4", "25"]
    begun = [len((tmp_path / f"begun-{n}").read_text().split()) for n in (0, 1, 2, 5)]
    assert begun == [1, 2, 1, 1], "finished work was done again, or a lost task was not"
    reasons = {f.name: f.reason for f in failures}
    assert reasons.keys() == {"n3", "n4"} and reasons["n4"] == "row 4 is no number"
    assert "died 3 times" in reasons["n3"] or "after 3 attempts" in reasons["n3"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, how):
    program = (
        "from pathlib import Path; from rich.console import Console; from tests.worker_tasks import endless\n"
        "from trueline.jobs import Job, run_jobs\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        "    jobs = [Job(str(n), endless, (str(folder),), (), 1, (folder, 'x'), folder / f'{n}.log') for n in range(2)]\n"
        "    run_jobs(jobs, Console(quiet=True), 2)\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    parent = subprocess.Popen([sys.executable, str(file)], env=environment, stderr=subprocess.PIPE)
    try:
        started = wait_for(lambda: pids if len(pids := list(tmp_path.glob("pid-*"))) == 2 else None, 120)
        parent.send_signal(how)
        assert parent.wait(timeout=30) == (143 if how == signal.SIGTERM else -9)
        workers = [int(p.name.removeprefix("pid-")) for p in started]
        wait_for(lambda: not any(alive(pid) for pid in workers), 30)
    finally:
        parent.kill()


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


@WITH_RAY
def test_an_address_without_ray_is_refused():
    with pytest.raises(TruelineError, match=r"There is no Ray at '127\.0\.0\.1:1'"):
        run_jobs(jobs_of(Path("/nowhere"), [(square,)]), QUIET, Crew(ray="127.0.0.1:1"))


def test_without_ray_installed_the_option_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TruelineError, match=r"pip install 'trueline\[ray\]'"):
        run_jobs(jobs_of(tmp_path, [(square,)]), QUIET, Crew(ray="local"))


def test_many_runs_inside_one_run_of_many_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TruelineError, match="starts workers of its own"):
        run_jobs(jobs_of(tmp_path, [(square,)]), QUIET, 1)


# -- sample and score --------------------------------------------------------------------------------------------------

WORDS = ["the cat", "a dog", "on the mat", "sat", "and the", "ran to"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    model_folder(folder / "model", sharp=False)
    rows = [
        {"prompt": f"{WORDS[i % 6]} {i % 9}:", "chosen": f" {WORDS[i % 5]}", "rejected": f" {WORDS[i % 4]} x"}
        for i in range(12)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def asked(place, **changes):
    given = {"samples": 2, "max_length": 48, "max_new_tokens": 6, "block": 4}
    return Sampling(str(place / "model"), (str(place / "pairs.jsonl"),), **{**given, **changes})


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def one_process(monkeypatch):
    """Let `sample` and `score` do every block here, one after another; calling it again gives the workers back."""

    def here(jobs, console, crew):
        for job in jobs:
            if not job.product.exists():
                job.call(*job.arguments)

    monkeypatch.setattr(rows, "run_jobs", here)
    return lambda: monkeypatch.setattr(rows, "run_jobs", run_jobs)


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray that another process has started."""
    program = (
        "import sys, ray; n = ray.init(num_cpus=2, include_dashboard=False, logging_level='error')\n"
        "print(n.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "RAY_raylet_start_wait_time_s": "120", "RAY_USAGE_STATS_ENABLED": "0"}
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    yield started.stdout.readline().strip()
    started.stdin.close()
    started.wait(timeout=60)


def test_sampling_over_workers_gives_the_bytes_of_one_process_whatever_the_blocks(place, tmp_path, one_process):
    one = sample(asked(place), tmp_path / "one.jsonl")
    groups = lines(one)
    assert len(groups) == len({g["prompt"] for g in groups}) and all(len(g["responses"]) == 2 for g in groups)
    assert not (tmp_path / "one.jsonl.parts").exists()
    other = lines(sample(asked(place, block=5), tmp_path / "block.jsonl"))
    assert [[r["ids"] for r in g["responses"]] for g in other] == [[r["ids"] for r in g["responses"]] for g in groups]
    one_process()
    assert sample(asked(place), tmp_path / "many.jsonl", Crew(2)).read_bytes() == one.read_bytes()


@pytest.mark.parametrize("kind", ["processes", pytest.param("ray", marks=WITH_RAY)])
def test_scoring_survives_a_worker_killed_in_flight_and_equals_one_process(
    place, tmp_path, kind, monkeypatch, one_process, request
):
    judge = ("rule:tests.worker_tasks:longest",)
    given = Scoring((str(place / "pairs.jsonl"),), str(place / "model"), feedback=judge, block=4)
    one = score(given, tmp_path / "one.jsonl")
    one_process()
    monkeypatch.setenv("TRUELINE_TEST_KILL", str(tmp_path / "killed"))
    crew = Crew(2) if kind == "processes" else Crew(2, request.getfixturevalue("cluster"))
    many = score(given, tmp_path / "many.jsonl", crew)
    assert (tmp_path / "killed").exists(), "no worker was killed"
    assert one.read_bytes() == many.read_bytes()
    row = lines(one)[0]["responses"][0]
    assert row["logp"] < 0 and row["tokens"] > 1 and row["rewards"]["rule"] == float(len(row["text"]))


def test_a_stopped_command_goes_on_with_the_missing_blocks_and_refuses_other_settings(
    place, tmp_path, monkeypatch, one_process
):
    output = tmp_path / "out.jsonl"
    whole = sample(asked(place), tmp_path / "whole.jsonl").read_bytes()
    here = rows.run_jobs

    def stopped(jobs, console, crew):
        here(jobs[:1], console, crew)
        raise KeyboardInterrupt

    with monkeypatch.context() as stops:
        stops.setattr(rows, "run_jobs", stopped)
        with pytest.raises(KeyboardInterrupt):
            sample(asked(place), output)
    first = tmp_path / "out.jsonl.parts" / "block-000001.jsonl"
    made = first.stat().st_mtime_ns
    with pytest.raises(TruelineError, match="pieces of other settings"):
        sample(asked(place, seed=1), output)
    assert first.stat().st_mtime_ns == made and sample(asked(place), output).read_bytes() == whole
    with pytest.raises(TruelineError, match="exists already"):
        sample(asked(place), output)


def test_what_cannot_be_scored_or_sampled_is_refused(place, tmp_path):
    data = (str(place / "pairs.jsonl"),)
    with pytest.raises(TruelineError, match="Who scores"):
        score(Scoring(data), tmp_path / "x.jsonl")
    with pytest.raises(TruelineError, match="reference has no effect"):
        score(Scoring(data, feedback=("lab",), reference="m"), tmp_path / "x.jsonl")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat"}\n')
    with pytest.raises(TruelineError, match="has no response to score"):
        score(Scoring((str(prompts),), model="m"), tmp_path / "x.jsonl")
