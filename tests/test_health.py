"""What is watched inside a model: equal to a full SVD, blind to sign and scale, quick, in time before a planted explosion."""

import importlib
import json
import statistics
import time

import pytest
import torch
from torch import nn

from tests.model_folders import model_folder
from tests.tiny import tiny_config, tiny_groups, tiny_lora, tiny_model
from trueline.alarms import Alarms
from trueline.engine.layout import Layout
from trueline.engine.policy import Policy
from trueline.health import Alignment, Health, _products, growth_agreement, spectral_alignment, top_singular

pytestmark = pytest.mark.slow


def weight(seed=0, rows=40, columns=30, gap=1.3):
    """A matrix whose largest singular value is `gap` times the second."""
    torch.manual_seed(seed)
    u, s, vh = torch.linalg.svd(torch.randn(rows, columns, dtype=torch.float64), full_matrices=False)
    s[0] = gap * s[1]
    return u @ torch.diag(s) @ vh


def test_iterations_find_the_top_singular_triple_of_a_full_svd():
    w = weight()
    u, sigma, v = top_singular(lambda x: w @ x, lambda y: w.T @ y, 30, like=w, iterations=40)
    full_u, full_s, full_vh = torch.linalg.svd(w)
    assert sigma == pytest.approx(float(full_s[0]), rel=1e-6)
    assert abs(float(v @ full_vh[0])) == pytest.approx(1.0, abs=1e-4)
    assert abs(float(u @ full_u[:, 0])) == pytest.approx(1.0, abs=1e-4)
    assert float(u @ w @ v) == pytest.approx(sigma, rel=1e-6)  # the pair shares its sign
    assert float(v[v.abs().argmax()]) > 0
    few = top_singular(lambda x: w @ x, lambda y: w.T @ y, 30, like=w)[2]  # as many as a run takes
    assert abs(float(few @ full_vh[0])) > 0.999


def test_diversity_is_near_one_for_gaussian_inputs_and_zero_for_inputs_on_one_side():
    w = weight()
    v = torch.linalg.svd(w)[2][0]
    noise = torch.randn(4000, 30, dtype=torch.float64)
    assert spectral_alignment(w, noise).diversity > 0.93
    shifted = spectral_alignment(w, 0.1 * noise + 5 * v)
    assert (shifted.diversity, abs(shifted.mean)) == (0.0, pytest.approx(1.0, abs=0.05))
    other = torch.linalg.svd(w)[2][1]
    assert spectral_alignment(w, 0.1 * noise + 5 * other).diversity > 0.93  # orthogonal to v_1
    mixed = torch.cat([v.expand(3, -1), -v.expand(1, -1), torch.zeros(5, 30, dtype=torch.float64)])
    assert spectral_alignment(w, mixed).diversity == 0.5  # three to one; zeros have no side


def test_diversity_does_not_change_with_the_sign_of_v_or_any_scale():
    w, x = weight(), torch.randn(64, 30, dtype=torch.float64) + 0.3
    plain = spectral_alignment(w, x)
    assert spectral_alignment(7 * w, 0.01 * x).diversity == plain.diversity
    flipped = Alignment()
    flipped.add(x, -top_singular(lambda a: w @ a, lambda b: w.T @ b, 30, like=w)[2])
    assert (flipped.diversity, flipped.mean) == (plain.diversity, pytest.approx(-plain.mean))


def test_sigma_changes_as_the_first_order_formula_says_and_agreement_has_its_sign():
    w, x = weight(), torch.randn(12, 30, dtype=torch.float64)
    delta = torch.randn(12, 40, dtype=torch.float64)
    u, sigma, v = top_singular(lambda a: w @ a, lambda b: w.T @ b, 30, like=w, iterations=60)
    gradient, eta = delta.T @ x, 1e-6
    change = float(torch.linalg.svdvals(w - eta * gradient)[0]) - sigma
    assert change == pytest.approx(-eta * float((delta @ u) @ (x @ v)), rel=1e-3)
    assert growth_agreement(u, v, delta, x) * change > 0
    assert growth_agreement(u, v, -u.expand(3, -1), v.expand(3, -1)) == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_products_are_those_of_the_layer_with_its_adapter(family):
    model = tiny_lora(tiny_model(family))
    health = Health(model)
    assert health.watched and all(hasattr(m, "lora_A") for m in health.watched.values())
    for module in health.watched.values():
        forward, backward, inputs, _ = _products(module)
        x = torch.randn(5, inputs)
        with torch.no_grad():
            bias = module(torch.zeros(1, inputs))
            assert torch.allclose(forward(x.T).T, module(x) - bias, atol=1e-4)
        y = torch.randn(forward(x.T).shape[0], 3)
        assert torch.allclose((forward(x.T) * y[:, :1]).sum(), (x.T * backward(y)[:, :1]).sum(), rtol=1e-3)


def test_only_passes_with_gradient_count_and_only_every_tenth_step():
    policy = Policy(tiny_model(), reference="none", max_length=64)
    health = Health(policy.model, tokens=10_000)
    layout = Layout.of(tiny_groups([(11, [5, 9]), (6, [3, 4])]))
    with health.watching(3):
        policy(layout)
    assert health.statistics() == {}
    with health.watching(20), torch.no_grad():
        policy(layout)
    assert health.statistics() == {}
    with health.watching(20):
        policy(layout)
    found = health.statistics()
    assert len([n for n in found if n.startswith("spectral/diversity/")]) == 14  # 7 matrices in each of 2 blocks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in policy.model.modules())


def test_padding_is_left_out_and_what_is_seen_is_what_plain_calls_say():
    groups = tiny_groups([(11, [5]), (2, [3])])
    layout = Layout.of(groups)
    found = {}
    for mode in ("shared", "padded"):
        policy = Policy(tiny_model(), reference="none", max_length=64)
        policy._backbone.set_mode(mode)
        health = Health(policy.model, tokens=10_000)
        with health.watching(0):
            policy(layout)
        assert {a.count for a in health._found.values()} == {21}
        found[mode] = health.statistics()
    assert found["padded"].keys() == found["shared"].keys()
    for name, value in found["shared"].items():
        assert value == pytest.approx(found["padded"][name], abs=1e-4), name
    rows = [g.prompt_ids + g.responses[0].ids for g in groups]
    with torch.no_grad():
        logp = torch.cat([tiny_model()(torch.tensor([r])).logits[0] for r in rows]).log_softmax(-1)
    assert found["shared"]["entropy/tokens"][0] == pytest.approx(float(-(logp.exp() * logp).sum(-1).mean()), abs=1e-4)


# ---- a planted explosion ---------------------------------------------------------------------------------------------


def train(rate, *, steps=220, hidden=32, seed=0):
    """A tiny model on a noisy Markov chain, watched every second step: (losses, gradient norms, alarms raised)."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    shape = dict(vocab_size=64, hidden_size=hidden, intermediate_size=2 * hidden, num_key_value_heads=4)
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **shape))
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    draw = torch.Generator().manual_seed(1)
    table = torch.softmax(6 * torch.randn(64, 64, generator=draw), -1).cumsum(-1).clamp_(max=1.0)
    table[:, -1] = 1.0
    health, alarms = Health(model, every=2), Alarms()
    losses, norms, raised = [], [], []
    for step in range(steps):
        ids = torch.randint(64, (16, 1), generator=draw)
        for at in range(23):
            ids = torch.cat([ids, torch.searchsorted(table[ids[:, at]], torch.rand(16, 1, generator=draw))], 1)
        with health.watching(step):
            loss = model(ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
        losses.append(float(loss.detach()))
        seen = {name: statistics.fmean(values) for name, values in health.statistics().items()}
        metrics = {"step": step + 1, "loss": losses[-1], "grad_norm": norms[-1], **seen}
        raised += alarms.on_step(step + 1, metrics)
        optimiser.param_groups[0]["lr"] = rate(step)
        optimiser.step()
    return losses, norms, raised


def exploding(step):
    return 2e-3 if step < 120 else 2e-3 * 1.06 ** (step - 120)


def explosion(losses):
    """The first step whose loss is twice the smallest before it."""
    return next(i + 1 for i, loss in enumerate(losses) if i > 120 and loss > 2 * min(losses[:i]))


@pytest.mark.parametrize("seed", [0])
def test_diversity_collapses_before_a_planted_explosion_and_nothing_rings_in_health(seed):
    losses, _, raised = train(exploding, seed=seed)
    at = explosion(losses)
    alarm = next(a for a in raised if a.name == "spectral_collapse")
    assert 120 < alarm.step < at - 10
    assert "lower the learning rate" in alarm.message.lower()
    losses, _, raised = train(lambda step: 2e-3, seed=seed, steps=160)
    assert raised == [] and losses[-1] < 0.5 * losses[0]


def test_no_gradient_norm_tells_two_widths_in_health_from_explosion():
    """Why the rule on gradients compares a run with itself: the larger model's healthy norm is the smaller's warning."""
    _, wide, _ = train(lambda step: 2e-3, hidden=64, steps=60)
    losses, narrow, _ = train(exploding, hidden=32)
    before = narrow[125 : explosion(losses) - 8]
    assert max(wide) > statistics.median(before)


# ---- in a run --------------------------------------------------------------------------------------------------------


def test_watching_costs_less_than_three_percent():
    """Ten steps of forward and backward with one look against the same without, the smallest of five each."""
    from transformers import AutoModelForCausalLM

    shape = dict(vocab_size=256, hidden_size=128, intermediate_size=384, num_hidden_layers=4)
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **shape))
    health, ids = Health(model), torch.randint(3, 256, (8, 128))

    def seconds(watched):
        started = time.process_time()
        with health.watching(0 if watched else 1):
            loss = model(ids, labels=ids).loss
        loss.backward()
        health.statistics()
        return time.process_time() - started

    plain, look = (min(seconds(w) for _ in range(5)) for w in (False, True))
    assert (look - plain) / (10 * plain) < 0.03


def test_a_watched_run_writes_its_numbers_and_the_same_weights(tmp_path, monkeypatch):
    module = importlib.import_module("trueline.align")  # the package's `align` is the function
    folder = model_folder(tmp_path / "m")
    rows = [{"prompt": f"the cat {i}", "chosen": f" sat {i}", "rejected": f" ran on {i}"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    class Watched(module._Alignment):
        def _step(self, step, *rest):
            health = Health(self.policy.model, every=2)
            with health.watching(step):
                result, update = super()._step(step, *rest)
            result.statistics.update(health.statistics())
            return result, update

    def run(name):
        options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "max_length": 64, "eval_steps": None}
        return module.align(model=str(folder), data=[str(tmp_path / "pairs.jsonl")], objective="dpo", output=str(tmp_path / name), **options)  # fmt: skip

    plain = run("plain")
    monkeypatch.setattr(module, "_Alignment", Watched)
    watched = run("watched")
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in (tmp_path / "watched" / "trueline" / "metrics.jsonl").open()]
    assert [any(n.startswith("spectral/diversity/") for n in line) for line in lines] == [True, False, True]
    assert lines[0]["entropy/tokens"] > 0
    summary = json.loads((tmp_path / "watched" / "trueline" / "summary.json").read_text())
    assert {"spectral_collapse", "gradient_growth", "token_entropy"} <= set(summary["alarms_watched"])
