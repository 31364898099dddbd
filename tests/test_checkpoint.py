"""Checkpoints: the same bits back, whole or not there, damage found and named."""

import math
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from trueline.engine import checkpoint, failpoints
from trueline.errors import TruelineError

STATE = {"seed": 3, "best": -math.inf, "rate": 0.1 + 0.2, "names": ["a"], "inner": {"none": None, "yes": True}}


def weights(seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(size, size, generator=generator), "b": torch.randn(size, generator=generator)}


def same(left, right):
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and left[k].shape == right[k].shape and torch.equal(left[k], right[k])
        for k in left
    )


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_tensors_and_state_come_back_with_the_same_bits(tmp_path):
    odd = {
        "half": torch.tensor([1.5, -0.0, 3e-5], dtype=torch.bfloat16),
        "double": torch.tensor([[1 / 3]], dtype=torch.float64),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
    }
    path = checkpoint.save(tmp_path, 12, tensors={"model": odd, "optimizer": weights(), "none": {}}, state=STATE)
    assert path == tmp_path / "step-12"
    tensors, state = checkpoint.load(path)
    assert same(tensors["model"], odd) and same(tensors["optimizer"], weights()) and tensors["none"] == {}
    assert state == STATE and list(tensors["model"]) == list(odd)
    assert math.copysign(1, float(tensors["model"]["half"][1])) == -1


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path):
    table = torch.randn(500, 100)
    path = checkpoint.save(tmp_path, 1, tensors={"model": {"embed": table, "head": table}}, state={})
    assert sum(f.stat().st_size for f in path.glob("model-*")) < 1.2 * table.numel() * 4
    held = checkpoint.load(path)[0]["model"]
    assert held["embed"].data_ptr() == held["head"].data_ptr()
    assert torch.equal(held["head"], table)


def test_views_into_one_memory_are_stored_as_what_they_show(tmp_path):
    whole = torch.arange(12.0)
    views = {"whole": whole, "part": whole[4:8], "shaped": whole.view(3, 4)}
    assert same(checkpoint.load(checkpoint.save(tmp_path, 1, tensors={"m": views}, state={}))[0]["m"], views)


def test_large_groups_are_cut_into_shards_and_joined_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1000)
    many = {f"layer.{n}": torch.full((10, 10), float(n)) for n in range(7)}
    path = checkpoint.save(tmp_path, 1, tensors={"model": many}, state={})
    assert len(list(path.glob("model-*.safetensors"))) == 4
    assert same(checkpoint.load(path)[0]["model"], many)


@pytest.mark.parametrize("state", [{"t": (1, 2)}, {"inner": {3: "x"}}, {"tensor": torch.zeros(1)}])
def test_state_that_json_would_change_is_refused_and_nothing_is_written(tmp_path, state):
    with pytest.raises(TruelineError, match=r"state\["):
        checkpoint.save(tmp_path / "c", 1, tensors={}, state=state)
    assert not (tmp_path / "c").exists()


def test_every_flipped_byte_is_found_and_the_checkpoint_passed_over_by_name(tmp_path):
    checkpoint.save(tmp_path, 1, tensors={"model": weights(1)}, state=STATE)
    newer = checkpoint.save(tmp_path, 2, tensors={"model": weights(2)}, state=STATE)
    assert checkpoint.newest(tmp_path) == newer
    for file in sorted(newer.iterdir()):
        for offset in (0, file.stat().st_size // 2, file.stat().st_size - 1):
            flip(file, offset)
            with pytest.warns(UserWarning, match=r"damaged.*step-2"):
                assert checkpoint.newest(tmp_path) == tmp_path / "step-1"
            with pytest.raises(TruelineError, match="step-2"):
                checkpoint.load(newer)
            flip(file, offset)
    assert same(checkpoint.load(newer)[0]["model"], weights(2))


def test_a_manifest_that_is_still_json_but_says_something_else_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors={"model": weights(), "optimizer": weights()}, state={})
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"optimizer": {', '"optimiser": {'))
    with pytest.raises(TruelineError, match=r"manifest\.json was changed"):
        checkpoint.load(path)


@pytest.mark.parametrize("file", ["model-00001.safetensors", "state.json", "manifest.json"])
def test_a_missing_or_cut_file_is_named(tmp_path, file):
    path = checkpoint.save(tmp_path, 1, tensors={"model": weights()}, state={})
    data = (path / file).read_bytes()
    (path / file).write_bytes(data[:-1])
    with pytest.raises(TruelineError, match=file):
        checkpoint.load(path)
    (path / file).unlink()
    with pytest.raises(TruelineError, match=file):
        checkpoint.verify(path)


def test_no_checkpoint_is_none_but_only_damaged_ones_are_an_error(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None
    path = checkpoint.save(tmp_path, 1, tensors={"model": weights()}, state={})
    (path / "state.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(TruelineError, match=r"No checkpoint .* can be used"):
        checkpoint.newest(tmp_path)


def test_the_newest_goes_by_number_and_not_by_name(tmp_path):
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, step, tensors={}, state={"step": step})
    assert checkpoint.steps(tmp_path) == [9, 20, 100]
    assert checkpoint.load(checkpoint.newest(tmp_path))[1] == {"step": 100}


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    for seed in (1, 2):
        path = checkpoint.save(tmp_path, 5, tensors={"model": weights(seed)}, state={"seed": seed})
    tensors, state = checkpoint.load(path)
    assert same(tensors["model"], weights(2)) and state == {"seed": 2}
    assert os.listdir(tmp_path) == ["step-5"]


def test_pruning_keeps_the_newest_and_the_protected(tmp_path):
    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path, step, tensors={}, state={})
    assert checkpoint.prune(tmp_path, 2, protect={1}) == [2, 3]
    assert checkpoint.steps(tmp_path) == [1, 4, 5]
    assert checkpoint.prune(tmp_path, 3) == []
    with pytest.raises(TruelineError, match="at least one"):
        checkpoint.prune(tmp_path, 0)


def test_a_file_size_limit_while_saving_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path):
    old = checkpoint.save(tmp_path, 1, tensors={"model": weights(1, 100)}, state=STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(TruelineError, match=r"step-2: File too large.*Earlier checkpoints are untouched"):
            checkpoint.save(tmp_path, 2, tensors={"model": weights(2, 100)}, state=STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["step-1"]
    assert checkpoint.newest(tmp_path) == old
    assert same(checkpoint.load(old)[0]["model"], weights(1, 100))


def test_a_disk_that_fails_while_replacing_a_step_puts_the_old_one_back(tmp_path, monkeypatch):
    old = checkpoint.save(tmp_path, 1, tensors={"model": weights(1)}, state=STATE)
    rename = type(tmp_path).rename

    def failing(self, target):
        if self.name == "step-1.tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(TruelineError, match="Input/output error"):
        checkpoint.save(tmp_path, 1, tensors={"model": weights(2)}, state=STATE)
    assert same(checkpoint.load(old)[0]["model"], weights(1))


SAVER = """
import sys, torch
from trueline.engine import checkpoint
for step in (1, 2):
    tensors = {"model": {"w": torch.full((50, 50), float(step))}, "optimizer": {"m": torch.zeros(4)}}
    checkpoint.save(sys.argv[1], step, tensors=tensors, state={"step": step})
"""

# Fail-point -> the step that counts after the kill. A save writes two weight files, so the third hit is in step 2.
KILLS = {
    "checkpoint.weights.middle:3": 1,
    "checkpoint.weights.middle:4": 1,
    "checkpoint.rename.before:2": 1,
    "checkpoint.rename.after:2": 2,
    "checkpoint.weights.middle": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("point", KILLS)
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint_and_no_rubbish(tmp_path, point):
    environment = {**os.environ, failpoints.VARIABLE: point}
    done = subprocess.run([sys.executable, "-c", SAVER, str(tmp_path)], env=environment, timeout=60)
    assert done.returncode == -9
    left = checkpoint.newest(tmp_path)
    assert (None if left is None else checkpoint.load(left)[1]["step"]) == KILLS[point]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_a_process_killed_while_replacing_a_step_leaves_the_old_one(tmp_path):
    checkpoint.save(tmp_path, 1, tensors={"model": weights()}, state={"first": True})
    environment = {**os.environ, failpoints.VARIABLE: "checkpoint.rename.before"}
    assert subprocess.run([sys.executable, "-c", SAVER, str(tmp_path)], env=environment, timeout=60).returncode == -9
    assert checkpoint.load(checkpoint.newest(tmp_path))[1] == {"first": True}
    assert os.listdir(tmp_path) == ["step-1"]


# --- optimiser -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, reverse=False):
        super().__init__()
        torch.manual_seed(0)
        names = ["a", "b", "unused"]
        layers = {name: nn.Linear(4, 4) for name in names}
        for name in reversed(names) if reverse else names:
            self.add_module(name, layers[name])

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def train(net, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        net(torch.randn(3, 4, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": False}, {"amsgrad": True}])
def test_restored_adamw_continues_bit_for_bit_by_name_even_in_another_order(tmp_path, options):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, **options)
    train(net, optimizer, 3, seed=1)
    groups = {
        "model": net.state_dict(),
        "optimizer": checkpoint.flatten_optimizer(optimizer, dict(net.named_parameters())),
    }
    path = checkpoint.save(tmp_path, 3, tensors=groups, state={})
    assert not any(name.startswith("unused") for name in groups["optimizer"])

    tensors, _ = checkpoint.load(path)
    again = Net(reverse=True)
    again.load_state_dict(tensors["model"])
    resumed = torch.optim.AdamW(again.parameters(), lr=1e-2, **options)
    checkpoint.restore_optimizer(resumed, dict(again.named_parameters()), tensors["optimizer"])
    train(net, optimizer, 3, seed=2)
    train(again, resumed, 3, seed=2)
    assert same(dict(net.state_dict()), {k: again.state_dict()[k] for k in net.state_dict()})
    flat = [
        checkpoint.flatten_optimizer(o, dict(n.named_parameters())) for o, n in ((optimizer, net), (resumed, again))
    ]
    assert same(flat[0], {k: flat[1][k] for k in flat[0]})


def test_restoring_leaves_the_loaded_tensors_alone():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    train(net, optimizer, 1, seed=1)
    named = dict(net.named_parameters())
    flat = {k: v.clone() for k, v in checkpoint.flatten_optimizer(optimizer, named).items()}
    kept = {k: v.clone() for k, v in flat.items()}
    checkpoint.restore_optimizer(optimizer, named, flat)
    train(net, optimizer, 1, seed=2)
    assert same(flat, kept)


def test_optimiser_state_that_does_not_fit_is_refused_by_name():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    named = dict(net.named_parameters())
    with pytest.raises(TruelineError, match=r"'c\.weight', which is not trained"):
        checkpoint.restore_optimizer(optimizer, named, {"c.weight/exp_avg": torch.zeros(4, 4)})
    with pytest.raises(TruelineError, match=r"exp_avg of 'a\.weight'"):
        checkpoint.restore_optimizer(optimizer, named, {"a.weight/exp_avg": torch.zeros(4, 5)})
    with pytest.raises(TruelineError, match="no name"):
        checkpoint.flatten_optimizer(optimizer, {"a.weight": net.a.weight})


def test_a_copied_folder_still_verifies(tmp_path):
    path = checkpoint.save(tmp_path / "a", 1, tensors={"model": weights()}, state=STATE)
    shutil.copytree(path, tmp_path / "b" / "step-1")
    checkpoint.verify(tmp_path / "b" / "step-1")
