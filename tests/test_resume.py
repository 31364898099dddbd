"""A run that is killed anywhere and resumed is the uninterrupted run, byte for byte.

Runs are real processes, forked from one server that has the imports done, and they kill themselves with SIGKILL at
named fail-points. The judge of sampled text is a rule of this module.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from tests.model_folders import model_folder
from trueline.engine import checkpoint, failpoints
from trueline.engine.journal import read
from trueline.errors import TruelineError

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["trueline.align", "tests.test_resume"])

COMMON = {
    "objective": "dpo",
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "save_steps": 2,
    "eval_steps": 3,
    "eval_fraction": 0.3,
    "eval_prompts": 2,
    "eval_opponent_samples": 1,
    "max_length": 64,
    "max_response_length": 8,
    "token_budget": 256,
}
OFFLINE = {**COMMON, "reference_cache": True, "save_total_limit": 2, "best_metric": "eval_loss"}
ONLINE = {**COMMON, "source": "policy", "feedback": ["rule:tests.test_resume:many_vowels"], "adapter": "lora"}
ARMS = {"offline": OFFLINE, "online": ONLINE}

calls = 0


def many_vowels(completions, **columns):
    """The judge of the online arm. Where the environment says so, its n-th call asks the process to stop."""
    global calls
    calls += 1
    if calls == int(os.environ.get("STOP_AT_CALL", 0)):
        os.kill(os.getpid(), signal.SIGTERM)
    return [float(sum(text.count(v) for v in "aeiou ")) + len(text) / 100 for text in completions]


def job(options, result, point, environment):
    """One run in a process of its own; `result` says how it ended."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    failpoints.arm(point)
    from trueline.align import align

    try:
        Path(result).write_text(align(**options).status)
    except TruelineError as error:
        Path(result).write_text(f"refused: {error}")
    except BaseException:
        Path(result).write_text(traceback.format_exc())
        raise


class Place:
    """A model, data and a cache of its own, and runs on them."""

    def __init__(self, folder, model, data):
        self.folder, self.model, self.data = folder, model, data

    def start(self, arm, name, *, point=None, environment=None, **changes):
        given = {"model": str(self.model), "data": [str(self.data)], "output": str(self.folder / name)}
        result = self.folder / f"{name}.result"
        result.unlink(missing_ok=True)
        settings = {"TRUELINE_CACHE": str(self.folder / f"{name}-cache"), **(environment or {})}
        process = FORK.Process(target=job, args=({**given, **ARMS[arm], **changes}, str(result), point, settings))
        process.start()
        process.join(timeout=240)
        return process.exitcode, result.read_text() if result.exists() else ""

    def run(self, arm, name, **changes):
        """A run that must finish; returns its folder."""
        code, status = self.start(arm, name, **changes)
        assert (code, status) == (0, "finished"), status
        return self.folder / name

    def kill(self, arm, name, point, **changes):
        """A run that must die at this fail-point."""
        code, status = self.start(arm, name, point=point, **changes)
        assert code == -signal.SIGKILL, f"'{point}' was not reached: {status}"
        return self.folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    words = ["the cat", "a dog", "on the mat", "sat", "and the", "ran to", "my house", "so far"]
    rows = [
        {
            "prompt": f"{words[i % 8]} {i}:",
            "chosen": f" {words[(i * 3) % 8]} sat",
            "rejected": f" {words[(i * 5 + 1) % 8]} x{i}",
        }
        for i in range(30)
    ]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Place(folder, model_folder(folder / "model"), data)


@pytest.fixture(scope="module")
def uninterrupted(place):
    return {arm: place.run(arm, f"{arm}-whole") for arm in ARMS}


def content(run):
    """Everything of a run that may not depend on where it was cut: path -> bytes."""
    ours = run / "trueline"
    names = ["metrics", "stream", "evals", "samples", "alarms", "opponent"]
    files = [ours / f"{name}.jsonl" for name in names if (ours / f"{name}.jsonl").exists()]
    files += [f for f in sorted(ours.glob("checkpoints/step-*/*"))] + sorted(run.glob("*.safetensors"))
    return {str(f.relative_to(run)): f.read_bytes() for f in files}


def assert_same(run, other):
    left, right = content(run), content(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []
    assert any("optimizer" in name for name in left) and left["trueline/metrics.jsonl"].count(b"\n") == 6


# Arm, fail-point, and the checkpoint that the resume must go on from.
KILLS = [
    ("offline", "scorecache.build.middle", None),
    ("offline", "metrics.line.middle", 0),
    ("offline", "metrics.line.middle:4", 3),  # step 3 is the best so far
    ("offline", "checkpoint.weights.middle", None),
    ("offline", "checkpoint.weights.middle:4", 2),
    ("offline", "checkpoint.rename.before:3", 2),
    ("offline", "checkpoint.rename.after:3", 3),
    ("online", "sampling.middle:10", None),
    ("online", "sampling.middle:45", 2),
    ("online", "stream.line.middle:10", 2),
    ("online", "metrics.line.middle:5", 4),
    ("online", "checkpoint.weights.middle:4", 2),
    ("online", "checkpoint.rename.before:2", 2),
    ("online", "checkpoint.rename.after:2", 4),
]


@pytest.mark.parametrize(("arm", "point", "step"), KILLS)
def test_killed_at_any_failpoint_and_resumed_equals_the_uninterrupted_run(place, uninterrupted, arm, point, step):
    name = f"{arm}-{point.replace(':', '-')}"
    run = place.kill(arm, name, point)
    newest = checkpoint.newest(run / "trueline" / "checkpoints")
    assert (None if newest is None else newest.name) == (None if step is None else f"step-{step}")
    assert_same(place.run(arm, name, resume=True), uninterrupted[arm])


def test_a_run_killed_again_and_again_still_equals_the_uninterrupted_run(place, uninterrupted):
    place.kill("online", "often", "sampling.middle:30")
    for point in ("metrics.line.middle:3", "stream.line.middle:5", "checkpoint.rename.before"):
        place.kill("online", "often", point, resume=True)
    assert_same(place.run("online", "often", resume=True), uninterrupted["online"])


def test_sigterm_finishes_the_step_saves_it_and_the_resume_equals_the_uninterrupted_run(place, uninterrupted):
    code, status = place.start("online", "stopped", environment={"STOP_AT_CALL": "6"})
    assert (code, status) == (0, "interrupted")
    ours = place.folder / "stopped" / "trueline"
    reached = read(ours / "metrics.jsonl")[-1]["step"]
    assert 0 < reached < 6 and checkpoint.newest(ours / "checkpoints").name == f"step-{reached}"
    assert json.loads((ours / "summary.json").read_text())["status"] == "interrupted"
    run = place.run("online", "stopped", resume=True)
    left, right = content(run), content(uninterrupted["online"])
    assert {k: v for k, v in left.items() if k in right} == right
    assert all(f"step-{reached}/" in name for name in left.keys() - right.keys())


def test_the_environment_variable_kills_the_command_line_and_resume_goes_on(place, uninterrupted):
    config = json.loads((uninterrupted["offline"] / "trueline" / "config.json").read_text())
    recipe = place.folder / "recipe.yaml"
    recipe.write_text(json.dumps({**config, "output": str(place.folder / "cli")}))  # JSON is YAML

    def command(*flags, **environment):
        clean = {k: v for k, v in os.environ.items() if k != failpoints.VARIABLE}
        clean |= {"OMP_NUM_THREADS": "1", "TRUELINE_CACHE": str(place.folder / "cli-cache"), **environment}
        arguments = [sys.executable, "-m", "trueline", "align", str(recipe), *flags]
        return subprocess.run(arguments, env=clean, capture_output=True, text=True, timeout=300)

    killed = command(**{failpoints.VARIABLE: "metrics.line.middle:4"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = command("--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(place.folder / "cli", uninterrupted["offline"])


def test_a_used_run_folder_is_refused_unless_resumed_or_overwritten(place):
    place.kill("offline", "used", "metrics.line.middle:4")
    before = content(place.folder / "used")
    assert "already holds a run" in place.start("offline", "used")[1]
    assert content(place.folder / "used") == before
    run = place.run("offline", "used", overwrite=True, steps=2)
    assert [row["step"] for row in read(run / "trueline" / "metrics.jsonl")] == [1, 2]
    assert checkpoint.steps(run / "trueline" / "checkpoints") == [0, 2]  # step 0: the first "best"


def test_resuming_where_no_run_is_says_so(place):
    assert "no run to resume" in place.start("offline", "never", resume=True)[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"method_options": {"objectives.dpo": {"beta": 0.2}}}, "beta"), ({"objective": "ipo"}, "objective")],
)
def test_a_changed_objective_on_resume_is_an_error_unless_accepted(place, changes, named):
    name = f"changed-{named}"
    place.kill("offline", name, "metrics.line.middle:4")
    journal = place.folder / name / "trueline" / "metrics.jsonl"
    before = read(journal)
    status = place.start("offline", name, resume=True, **changes)[1]
    assert status.startswith("refused:") and named in status and "accept-changes" in status
    assert read(journal) == before and len(before) == 3
    run = place.run("offline", name, resume=True, accept_changes=True, **changes)
    assert read(run / "trueline" / "metrics.jsonl")[:3] == before


def test_changed_data_in_the_same_file_on_resume_is_an_error_unless_accepted(place):
    data = place.folder / "growing.jsonl"
    data.write_bytes(place.data.read_bytes())
    other = Place(place.folder, place.model, data)
    other.kill("offline", "grown", "metrics.line.middle:4")
    data.write_text(data.read_text().replace("my house", "our house"))
    status = other.start("offline", "grown", resume=True)[1]
    assert status.startswith("refused:") and "data changed" in status
    other.run("offline", "grown", resume=True, accept_changes=True)


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_still_comes_out_the_same(place, uninterrupted):
    run = place.kill("online", "damaged", "metrics.line.middle:5")
    file = run / "trueline" / "checkpoints" / "step-4" / "optimizer-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert_same(place.run("online", "damaged", resume=True), uninterrupted["online"])
