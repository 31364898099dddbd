"""Several processes give the run of one: same weights, one writer, one error; and FSDP2 spreads what it says it does.

Ranks are real processes with gloo between them, forked from one server that has the imports done, and started through the
environment variables of torchrun; one test each goes through torchrun and accelerate themselves. Adam's epsilon is large
here, so that an update is in proportion to its gradient: at 1e-8 rounding of a vanishing gradient moves a weight by the
whole learning rate.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import traceback
from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model_folders import model_folder
from trueline.engine import checkpoint, failpoints
from trueline.engine.journal import read
from trueline.engine.parallel import World, local
from trueline.errors import TruelineError
from trueline.launch import Launch, read_launch

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("forkserver")
IMPORTED = ("trueline.align", "trueline.report.build", "peft", "transformers.models.llama.modeling_llama")
FORK.set_forkserver_preload([*IMPORTED, "tests.test_multi_process"])

COMMON = {
    "objective": "dpo",
    "steps": 3,
    "batch_size": 5,
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-2,
    "weight_decay": 0.1,
    "max_length": 96,
    "max_response_length": 10,
    "token_budget": 96,
}
LORA = {"adapter": "lora"}
ONLINE = {"source": "policy", "samples": 3, "feedback": ["rule:tests.test_multi_process:many_vowels"]}
EVALUATED = {"eval_steps": 3, "eval_fraction": 0.3, "eval_prompts": 3, "eval_opponent_samples": 2}


def many_vowels(completions, **columns):
    """The judge. Where the environment says so, it fails, dies or asks for a stop on the named rank."""
    what, _, rank = os.environ.get("ACCIDENT", ":-").partition(":")
    if rank == os.environ.get("RANK") or (rank == "any" and what):
        if what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "raise":
            raise TruelineError("the judge has had enough")
    return [float(sum(text.count(v) for v in "aeiou ")) + len(text) / 100 for text in completions]


# -- processes ---------------------------------------------------------------------------------------------------------


def job(options, result, environment):
    """One rank. Its result says how it ended; its gradients before they were summed stand beside it."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    failpoints.arm(environment.get("POINT"))
    _accidents(environment)
    before = _keep_local_gradients()
    from trueline.align import align

    try:
        found = align(**options)
        Path(result).write_text(found.status)
    except SystemExit as error:
        Path(result).write_text(f"left: {error.code}")
        raise
    except TruelineError as error:
        Path(result).write_text(f"refused: {error}")
    except BaseException:
        Path(result).write_text(traceback.format_exc())
        raise
    if before:
        save_file({f"{step}": g for step, g in enumerate(before)}, f"{result}.gradients")


def _accidents(environment):
    """A rank that fails in the middle of scoring, or dies there."""
    what, _, rank = environment.get("ACCIDENT", ":-").partition(":")
    if what not in ("score", "die") or rank != environment.get("RANK"):
        return
    from trueline.engine import step

    def broken(*arguments, **keywords):
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TruelineError("row 7 cannot be scored")

    step.score = broken


def _keep_local_gradients():
    kept, summed = [], World.sum_gradients

    def keeping(self, parameters):
        parameters = list(parameters)
        own = [local(p.grad).flatten() for p in parameters if p.grad is not None]
        kept.append(torch.cat(own or [torch.zeros(1)]).clone())
        summed(self, parameters)

    World.sum_gradients = keeping
    return kept


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Place:
    """A model, data of very different lengths, and runs on them by any number of processes."""

    def __init__(self, folder):
        self.folder = folder
        self.model = model_folder(folder / "model", sharp=False)
        words = ["the cat", "a dog", "on the mat", "sat", "and the", "ran to", "my house", "so far"]
        rows = [
            {
                "prompt": f"{words[i % 8]} {i}:",
                "chosen": f" {words[(i * 3) % 8]}" * (1 + (i * i) % 4),
                "rejected": f" {words[(i * 5 + 1) % 8]} x{i}" * (1 + i % 2),
            }
            for i in range(24)
        ]
        self.data = folder / "pairs.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.whole = {}

    def start(self, name, ranks=2, environment=None, **options):
        """Exit codes and results of every rank of a run into the folder `name`."""
        given = {"model": str(self.model), "data": [str(self.data)], "output": str(self.folder / name)}
        port, started, results = str(free_port()), [], []
        for rank in range(ranks):
            results.append(self.folder / f"{name}-rank-{rank}")
            settings = {"TRUELINE_CACHE": str(self.folder / f"{name}-cache"), **(environment or {})}
            if ranks > 1:
                settings |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
                settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            results[-1].unlink(missing_ok=True)
            process = FORK.Process(target=job, args=({**given, **COMMON, **options}, str(results[-1]), settings))
            process.start()
            started.append(process)
        try:
            for process in started:
                process.join(timeout=120)
            assert all(p.exitcode is not None for p in started), "a rank hangs"
        finally:
            for process in started:
                process.kill()
        return [p.exitcode for p in started], [r.read_text() if r.exists() else "" for r in results]

    def run(self, name, ranks=2, status="finished", **options):
        codes, results = self.start(name, ranks, **options)
        assert (codes, results) == ([0] * ranks, [status] * ranks), "\n".join(results)
        return self.folder / name

    def by_one(self, **options):
        """The run of one process with these options."""
        key = json.dumps(options, sort_keys=True)
        if key not in self.whole:
            self.whole[key] = self.run(f"one-{len(self.whole)}", ranks=1, **options)
        return self.whole[key]

    def gradients(self, name, ranks=2):
        """Each rank's gradients before they were summed, by step."""
        return [load_file(f"{self.folder / name}-rank-{rank}.gradients") for rank in range(ranks)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("ranks"))


def weights(run):
    files = [f for f in run.glob("*.safetensors")]
    assert len(files) == 1, files
    return load_file(files[0])


def assert_same_weights(run, other, start=None, tolerance=2e-6):
    left, right = weights(run), weights(other)
    assert left.keys() == right.keys()
    moved = 0.0
    for name, tensor in right.items():
        moved = max(moved, float((tensor - start[name]).abs().max()) if start else float(tensor.abs().max()))
        assert torch.allclose(left[name], tensor, rtol=0, atol=tolerance), (name, (left[name] - tensor).abs().max())
    assert moved > 100 * tolerance, "nothing was learned"


def metrics(run):
    return read(run / "trueline" / "metrics.jsonl")


def assert_same_metrics(run, other, tolerance=1e-4):
    left, right = metrics(run), metrics(other)
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=tolerance, abs=1e-5), name


def test_shares_are_neighbours_that_hold_all_and_the_largest_is_as_small_as_it_can_be():
    draw = random.Random(0)
    for _ in range(200):
        weights, size = [draw.randint(1, 30) for _ in range(draw.randint(0, 7))], draw.randint(2, 4)
        found = World(size=size).shares(weights)
        assert [i for share in found for i in share] == list(range(len(weights))) and len(found) == size
        cuts = combinations_with_replacement(range(len(weights) + 1), size - 1)
        ways = ([*pairwise((0, *cut, len(weights)))] for cut in cuts)
        best = min(max(sum(weights[a:b]) for a, b in way) for way in ways)
        assert max(sum(weights[i] for i in share) for share in found) == best


# -- the run of one process --------------------------------------------------------------------------------------------

OBJECTIVES = {
    "dpo": {},
    "dpo, LoRA": LORA,
    "kto": {"objective": "kto"},
    "kto, LoRA": {"objective": "kto", **LORA},
    "bco": {"objective": "bco"},
    "aot": {"objective": "aot"},
    "sum": {"objective": "dpo:1,sft:0.3"},
    "bt": {"objective": "bt"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_with_unequal_shares_give_the_weights_of_one(place, name):
    options = OBJECTIVES[name]
    run = place.run(f"two {name}", **options)
    assert_same_weights(run, place.by_one(**options))
    assert_same_metrics(run, place.by_one(**options))
    ours, theirs = place.gradients(f"two {name}")
    for step in ours:
        assert not torch.allclose(ours[step], theirs[step], rtol=0.05, atol=1e-4), "the shares have equal gradients"


def test_three_processes_and_more_processes_than_groups_give_the_weights_of_one(place):
    assert_same_weights(place.run("three", ranks=3), place.by_one())
    options = {"batch_size": 2, "objective": "kto"}
    assert_same_weights(place.run("idle", ranks=3, **options), place.by_one(**options))


def test_every_process_samples_its_share_and_the_groups_readings_and_weights_are_those_of_one(place):
    options = {**ONLINE, **EVALUATED, "objective": "rloo"}
    run, one = place.run("online", **options), place.by_one(**options)
    ours, theirs = (read(r / "trueline" / "stream.jsonl") for r in (run, one))
    assert len(ours) == len(theirs) == 15
    for a, b in zip(ours, theirs, strict=True):
        assert [r["ids"] for r in a["responses"]] == [r["ids"] for r in b["responses"]]
        assert [r["reward"] for r in a["responses"]] == [r["reward"] for r in b["responses"]]
    assert_same_weights(run, one)
    for a, b in zip(read(run / "trueline/evals.jsonl"), read(one / "trueline/evals.jsonl"), strict=True):
        assert a["readings"].keys() == b["readings"].keys() and any("win_rate" in name for name in a["readings"])
        for name, reading in b["readings"].items():
            assert a["readings"][name]["value"] == pytest.approx(reading["value"], rel=1e-3, abs=1e-5), name


def test_the_reference_cache_is_filled_by_all_and_written_by_the_first(place):
    run = place.run("cached", reference_cache=True)
    assert_same_weights(run, place.by_one())
    shards = list((place.folder / "cached-cache").rglob("*.safetensors"))
    assert shards and not list((place.folder / "cached-cache").rglob("*.tmp"))


# -- one writer, one error ---------------------------------------------------------------------------------------------


def test_the_first_process_alone_writes_and_its_files_hold_each_step_once(place):
    run = place.run("writer", **ONLINE, save_steps=1)
    assert [m["step"] for m in metrics(run)] == [1, 2, 3]
    assert len(read(run / "trueline" / "stream.jsonl")) == 15
    assert checkpoint.steps(run / "trueline" / "checkpoints") == [1, 2, 3]
    assert json.loads((run / "trueline/summary.json").read_text())["processes"] == {"count": 2, "sharded": False}
    assert not list(run.rglob("*.tmp")) and not list(run.glob(".saving-*"))


@pytest.mark.parametrize("ranks", [(2, 1), (1, 3)])
def test_a_resume_with_another_number_of_processes_goes_on_to_the_same_weights(place, ranks):
    before, after = ranks
    name = f"resumed-{before}-{after}"
    options = {"steps": 4, "objective": "kto", "save_steps": 1}
    whole = place.by_one(**options)
    for step in (3, 4):
        place.run(name, ranks=before, **options) if step == 3 else None
    # Back to step 2, as if the run had been killed there.
    ours = place.folder / name / "trueline"
    for step in (3, 4):
        for file in sorted((ours / "checkpoints" / f"step-{step}").iterdir()):
            file.unlink()
        (ours / "checkpoints" / f"step-{step}").rmdir()
    run = place.run(name, ranks=after, resume=True, **options)
    assert [m["step"] for m in metrics(run)] == [1, 2, 3, 4]
    assert_same_weights(run, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_process_ends_all_with_its_message(place, rank):
    codes, results = place.start(f"broken-{rank}", environment={"ACCIDENT": f"score:{rank}"})
    assert "row 7 cannot be scored" in results[0], results
    assert results[1] == "left: 2" and codes[1] == 2
    if rank:
        assert results[0].startswith("refused: Rank 1 failed: ")


def test_a_judge_that_fails_ends_all(place):
    _, results = place.start("judge", environment={"ACCIDENT": "raise:0"}, **ONLINE)
    assert "the judge has had enough" in results[0] and results[1] == "left: 2", results


def test_a_process_that_is_killed_ends_all_and_a_resume_goes_on(place):
    options = {"save_steps": 1}
    codes, results = place.start("died", environment={"POINT": "metrics.line.middle:3"}, **options)
    assert codes[0] == -signal.SIGKILL and codes[1] != 0
    assert_same_weights(place.run("died", resume=True, **options), place.by_one(**options))
    codes, results = place.start("died-1", environment={"ACCIDENT": "die:1"}, **options)
    assert codes[1] == -signal.SIGKILL and results[0].startswith("refused: A process of the run is gone"), results


def test_a_signal_to_one_process_stops_all_after_the_same_step(place):
    codes, results = place.start("stopped", environment={"ACCIDENT": "stop:0"}, **ONLINE)
    assert (codes, results) == ([0, 0], ["interrupted", "interrupted"])
    assert [m["step"] for m in metrics(place.folder / "stopped")] == [1]
    assert_same_weights(place.run("stopped", resume=True, **ONLINE), place.by_one(**ONLINE))


def test_processes_that_read_different_files_are_refused(place):
    other = place.folder / "other.jsonl"
    other.write_text(place.data.read_text().replace("dog", "hog"))
    given = {"model": str(place.model), "output": str(place.folder / "differ"), **COMMON}
    port = str(free_port())
    results = [place.folder / f"differ-{rank}" for rank in range(2)]
    started = []
    for rank, data in enumerate((place.data, other)):
        settings = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(FORK.Process(target=job, args=({**given, "data": [str(data)]}, str(results[rank]), settings)))
        started[-1].start()
    for process in started:
        process.join(timeout=120)
    assert "Ranks 0 and 1 have different data or model" in results[0].read_text()


# -- sharded weights ---------------------------------------------------------------------------------------------------

SHARDED = {
    "dpo": {},
    "kto, LoRA": {"objective": "kto", **LORA},
    "bt": {"objective": "bt"},
    "tdpo": {"objective": "tdpo"},
    "checkpointed": {"gradient_checkpointing": True},
    "online": {**ONLINE, **EVALUATED, "objective": "rloo"},
}


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_give_the_weights_of_one_process(place, name):
    options = SHARDED[name]
    run = place.run(f"sharded {name}", shard=True, **options)
    assert_same_weights(run, place.by_one(**options))
    assert_same_metrics(run, place.by_one(**options), tolerance=1e-3)
    assert json.loads((run / "trueline/summary.json").read_text())["processes"] == {"count": 2, "sharded": True}


def test_a_sharded_run_resumes_on_one_process_and_one_on_sharded_ones(place):
    options = {"steps": 4, "save_steps": 2}
    whole = place.by_one(**options)
    for name, before, after in (("spread", (2, True), (1, False)), ("lone", (1, False), (2, True))):
        codes, results = place.start(
            name, before[0], shard=before[1], environment={"POINT": "metrics.line.middle:3"}, **options
        )
        assert codes[0] == -signal.SIGKILL, results
        place.run(name, after[0], shard=after[1], resume=True, **options)
        assert_same_weights(place.folder / name, whole)


def spread_report(model, environment, result):
    """On each rank: how many parameters are DTensors and how much memory they take before and after."""
    os.environ.update(environment)
    from transformers import AutoModelForCausalLM

    from trueline.engine.parallel import joined
    from trueline.engine.policy import Policy, frozen_copy
    from trueline.engine.sharding import bytes_on_this_rank, shard

    launch = read_launch(os.environ, shard=True)
    with joined(launch):
        loaded = AutoModelForCausalLM.from_pretrained(model)
        policy = Policy(loaded, reference=frozen_copy(loaded))
        before = bytes_on_this_rank(dict(policy.named_parameters()))
        shard(policy, launch)
        named = dict(policy.named_parameters())
        trained = policy.trained_parameters()
        adamw = torch.optim.AdamW(trained.values(), fused=True)
        for p in trained.values():
            p.grad = torch.zeros_like(p)
        adamw.step()
        moments = sum(local(s["exp_avg"]).nbytes for s in adamw.state.values())
        kinds = sorted({type(p).__name__ for p in named.values()})
        kinds += sorted({type(p.grad).__name__ for p in trained.values()})
        found = {"kinds": kinds, "before": before, "after": bytes_on_this_rank(named), "moments": moments}
        Path(result).write_text(json.dumps(found))


def test_every_parameter_is_a_dtensor_and_each_rank_holds_about_half_the_bytes(place):
    port, started = str(free_port()), []
    for rank in range(2):
        settings = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        result = str(place.folder / f"spread-{rank}")
        started.append(FORK.Process(target=spread_report, args=(str(place.model), settings, result)))
        started[-1].start()
    for process in started:
        process.join(timeout=120)
    for rank in range(2):
        found = json.loads((place.folder / f"spread-{rank}").read_text())
        assert found["kinds"] == ["DTensor", "DTensor"]
        assert 0.49 < found["after"] / found["before"] < 0.52
        assert 0.24 < found["moments"] / found["before"] < 0.26  # of the policy alone, and half of it here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "compo"}, "compo is not made for sharded weights"),
        ({**ONLINE, "reference_cache": True}, "reference_cache scores the data and not fresh samples"),
        ({**ONLINE, "feedback": ["ctrl:rule:tests.test_multi_process:many_vowels"]}, "ctrl samples the reference"),
    ],
)
def test_what_sharded_weights_do_not_allow_is_refused(place, options, message):
    _, results = place.start("refused", shard=True, **options)
    assert message in results[0] and results[1] == "left: 2", results


# -- launchers ---------------------------------------------------------------------------------------------------------

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
FSDP2 = {**TWO, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def test_what_a_launcher_asks_for_is_read():
    assert read_launch({}) is None
    assert read_launch(TWO) == Launch(1, 2, 1)
    assert read_launch(TWO, shard=True) == Launch(1, 2, 1, shard=True)
    asked = {**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    assert read_launch(asked) == Launch(1, 2, 1, shard=True, layers="LlamaDecoderLayer", reshard=False)


@pytest.mark.parametrize(
    ("environment", "shard", "message"),
    [
        ({}, True, "shard has no effect in one process"),
        ({"WORLD_SIZE": "2"}, False, "RANK is not set"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, False, "FSDP2 has no effect in one process"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"},
            False,
            "accelerate launch starts one process on a CPU",
        ),
        ({**FSDP2, "FSDP_VERSION": "1"}, False, "FSDP version 1"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, False, "offload"),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, False, "--gradient-checkpointing"),
        ({**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, False, "SIZE_BASED_WRAP"),
        ({**FSDP2, "FSDP_IGNORED_MODULES": "head"}, False, "ignored_modules"),
        ({**TWO, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, False, "DeepSpeed"),
        ({**TWO, "ACCELERATE_USE_MEGATRON_LM": "true"}, False, "Megatron"),
        ({**TWO, "ACCELERATE_MIXED_PRECISION": "bf16"}, False, "--precision fast"),
        ({**TWO, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, False, "dynamo_backend INDUCTOR"),
        ({**TWO, "PARALLELISM_CONFIG_TP_SIZE": "2"}, False, "Tensor"),
        ({**TWO, "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}, False, "dp_replicate_size 2"),
    ],
)
def test_a_request_that_nothing_would_carry_out_is_refused(environment, shard, message):
    with pytest.raises(TruelineError, match=message):
        read_launch(environment, shard=shard)


def command(place, name, launcher, *further):
    arguments = ["--model", str(place.model), "--data", str(place.data), "--output", str(place.folder / name)]
    for key, value in COMMON.items():
        arguments += [f"--{key.replace('_', '-')}", str(value)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    environment |= {"OMP_NUM_THREADS": "1", "TRUELINE_CACHE": str(place.folder / "cache")}
    port = str(free_port())
    return subprocess.run(
        [sys.executable, "-m", *launcher(port), "trueline", "align", *arguments, *further],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def torchrun(port):
    return ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "-m"]


def accelerate(*options):
    return lambda port: [
        "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", port, *options, "-m",
    ]  # fmt: skip


def test_torchrun_runs_the_command_line(place):
    done = command(place, "torchrun", torchrun)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(place.folder / "torchrun", place.by_one())
    assert done.stderr.count("Report: ") == 1
    again = command(place, "torchrun", torchrun)  # the folder is taken: one message, although both processes end
    assert again.returncode != 0 and again.stderr.count("already holds a run") == 1, again.stderr[-3000:]


@pytest.mark.parametrize("options", [("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")])
def test_accelerate_launch_runs_ddp_and_fsdp2(place, options):
    name = options[0].strip("-")
    done = command(place, name, accelerate(*options))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(place.folder / name, place.by_one())
    processes = json.loads((place.folder / name / "trueline/summary.json").read_text())["processes"]
    assert processes == {"count": 2, "sharded": "fsdp" in name}


def test_accelerate_on_a_cpu_that_would_train_in_one_process_is_refused(place):
    done = command(place, "inert", accelerate("--cpu"))
    assert done.returncode != 0 and "accelerate launch starts one process on a CPU" in done.stderr, done.stderr[-2000:]
