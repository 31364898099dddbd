"""Every objective of the catalogue, found by itself: oracle, gradients, options, order, cuts, and two real steps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from tests.model_folders import model_folder
from tests.objective_batches import batch, copy, for_oracle, gradient, leaf, loss, number, take, value
from tests.oracles import objectives as oracle
from tests.tiny import tiny_groups, tiny_model
from trueline import catalogue
from trueline.engine.policy import Policy, frozen_copy
from trueline.engine.step import WeightedObjective, accumulate
from trueline.errors import TruelineError
from trueline.objectives.contract import DEMONSTRATIONS, PAIRS
from trueline.pairing import plan
from trueline.registry import load

ENTRIES = {e.name: e for e in catalogue.entries("objectives")}
every_objective = pytest.mark.parametrize("name", ENTRIES)

# An option that cannot be changed alone: the settings it needs, and those with it changed.
TOGETHER = {
    ("f_dpo", "divergence"): [({}, {"divergence": d}) for d in ("forward_kl", "js")]
    + [({}, {"divergence": "alpha", "alpha": 0.3})],
    ("f_dpo", "alpha"): [({"divergence": "alpha", "alpha": 0.3}, {"divergence": "alpha", "alpha": 0.7})],
}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def other_values(option: catalogue.Option) -> list[Any]:
    """Legal values of an option beside its default."""
    if isinstance(option.default, bool):
        return [not option.default]
    if option.type.startswith("Literal"):
        members = get_args(eval(option.type, {"Literal": Literal}))
        return [m for m in members if m != option.default]
    if isinstance(option.default, (int, float)):
        return [0.3] if option.name == "epsilon" else [1.5 * option.default + 0.25]
    raise NotImplementedError(f"Say in TOGETHER how to change {option.name}: {option.type} = {option.default!r}.")


def changes(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(settings before, settings after) for every option of an objective, one option at a time."""
    found = []
    for option in ENTRIES[name].options:
        alone = [({}, {option.name: v}) for v in other_values(option)] if (name, option.name) not in TOGETHER else []
        found += TOGETHER.get((name, option.name), alone)
    return found


def settings(name: str) -> list[dict[str, Any]]:
    """The defaults, and every changed setting."""
    return [{}, *(after for _, after in changes(name))]


def test_every_objective_has_an_oracle_of_its_name():
    assert [n for n in ENTRIES if not callable(getattr(oracle, n, None))] == []


@every_objective
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_equals_the_oracle_at_every_setting(name, seed):
    defaults, needs = load("objectives", name).options(), load("objectives", name).declared["needs"]
    scored = batch(seed)
    for chosen in settings(name):
        expected = getattr(oracle, name)(for_oracle(scored, needs), **{**defaults, **chosen})
        assert number(name, scored, **chosen) == pytest.approx(float(expected), rel=1e-11), chosen


@every_objective
def test_every_option_changes_the_loss(name):
    scored = batch(3)
    for before, after in changes(name):
        here, there = number(name, scored, **before), number(name, scored, **after)
        assert abs(here - there) > 1e-6 * max(1.0, abs(here)), (before, after)


@every_objective
def test_the_gradient_equals_finite_differences_at_every_setting(name):
    scored = batch(4, lengths=(2, 3, 1, 1, 4, 2))
    for chosen in settings(name):

        def of_scores(given, chosen=chosen):
            scalar = load("objectives", name).declared["head"] == "scalar"
            return value(name, copy(scored, **{"value_R" if scalar else "logp_N": given}), **chosen)

        assert torch.autograd.gradcheck(of_scores, (leaf(name, scored),)), chosen


@every_objective
def test_no_gradient_reaches_the_reference(name):
    scored = batch(5)
    reference = scored.reference_N.clone().requires_grad_()
    value(name, copy(scored, reference_N=reference)).backward()
    assert reference.grad is None
    assert leaf(name, scored).grad.abs().max() > 0


@every_objective
def test_a_reference_is_read_exactly_where_it_is_declared(name):
    scored = batch(6)
    if not load("objectives", name).declared["reference"]:
        assert number(name, copy(scored, reference_N=None)) == number(name, scored)
    else:
        moved = copy(scored, reference_N=scored.reference_N.flip(0))
        assert number(name, moved) != pytest.approx(number(name, scored), rel=1e-9)


@every_objective
def test_the_order_of_the_pairs_changes_nothing(name):
    scored, order = batch(7), [3, 0, 4, 1, 2]
    for chosen in settings(name):
        moved = take(scored, order)
        assert number(name, moved, **chosen) == pytest.approx(number(name, scored, **chosen), rel=1e-12)
        back = [order.index(i) for i in range(5)]
        there = take(copy(moved, **_gradient_in_place(name, moved, chosen)), back)
        torch.testing.assert_close(leaf(name, there).detach(), gradient(name, scored, **chosen), rtol=1e-10, atol=1e-13)


def _gradient_in_place(name, scored, chosen):
    """The batch's scores replaced by their gradient, so that `take` carries it along."""
    scalar = load("objectives", name).declared["head"] == "scalar"
    return {"value_R" if scalar else "logp_N": gradient(name, scored, **chosen)}


@every_objective
def test_rows_are_coupled_exactly_where_it_is_declared(name):
    """Uncoupled means that each term's sum is the sum over pairs taken alone: then any cut gives the same gradient."""
    scored = batch(8)
    for chosen in settings(name):
        whole = [t.values.sum().item() * t.weight for t in loss(name, scored, **chosen).terms]
        alone = [loss(name, scored, [i], **chosen) for i in range(len(scored.groups))]
        parts = [sum(a.terms[k].values.sum().item() * a.terms[k].weight for a in alone) for k in range(len(whole))]
        same = np.allclose(whole, parts, rtol=1e-11)
        assert same != load("objectives", name).declared["couples_rows"], chosen


@every_objective
def test_responses_outside_the_view_take_no_part(name):
    scored = batch(9)
    for chosen in settings(name):
        found = loss(name, scored, [0, 2], **chosen)
        alone = value(name, take(scored, [0, 2]), **chosen)
        assert found.reduce(found.counts()).item() == pytest.approx(alone.item(), rel=1e-12)


@every_objective
def test_a_micro_batch_without_a_pair_adds_nothing(name):
    """In a weighted sum a micro-batch may hold what only the other objective uses."""
    scored = batch(10)
    whole, empty = loss(name, scored), loss(name, scored, [])
    assert [t.unit for t in empty.terms] == [t.unit for t in whole.terms]
    assert empty.reduce(whole.counts()).item() == 0.0


@every_objective
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_loss_and_gradient_stay_finite_in_single_precision_far_from_the_reference(name, sign):
    torch.set_default_dtype(torch.float32)
    logp = torch.tensor([-1.0, -2000.0][:: int(sign)]).requires_grad_()
    far = batch(11, lengths=(1, 1))
    values = torch.tensor([sign, -sign]) * 500
    far = copy(far, logp_N=logp, reference_N=torch.tensor([-1000.0, -1000.0]), value_R=values.requires_grad_())
    for chosen in settings(name):
        assert torch.isfinite(value(name, far, **chosen)), chosen
        assert torch.isfinite(gradient(name, far, **chosen)).all(), chosen


@every_objective
def test_option_values_that_make_no_sense_are_refused_by_name(name):
    refused = {"beta": (0.0, -0.1), "tau": (0.0, -1.0), "epsilon": (-0.1, 0.5)}
    for option in ENTRIES[name].options:
        for bad in refused.get(option.name, ()):
            with pytest.raises(TruelineError, match=rf"{name}\.{option.name} is {bad}"):
                loss(name, batch(), **{option.name: bad})


# ---- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies():
    """A tiny float64 policy off its reference, by head."""

    def disturbed(head: str) -> Policy:
        model = tiny_model("llama", head=head, pad_token_id=0).double()
        reference = frozen_copy(model) if head == "lm" else "none"
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
        return Policy(model, reference=reference, head=head)

    return {head: disturbed(head) for head in ("lm", "scalar")}


def judged(shapes, seed=0):
    """Groups of two whose first response has the better rank and score."""
    made = tiny_groups(shapes, seed=seed)
    for i, group in enumerate(made):
        for rank, response in enumerate(group.responses):
            response.rank, response.reward = rank, 0.5 * i - rank
    return made


def step_gradient(policy, items, method, budget):
    """Loss and gradient of one optimiser step under this token budget."""
    policy.zero_grad()
    result = accumulate(policy, items, [WeightedObjective(method, method.options())], token_budget=budget)
    return result.loss, torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@every_objective
def test_no_cut_into_micro_batches_changes_loss_or_gradient(name, policies):
    method = load("objectives", name)
    policy, needs = policies[method.declared["head"]], method.declared["needs"]
    made = judged([(4, [3, 4]), (3, [6, 7]), (2, [5, 4])])
    items = plan(made, pairs=needs == PAIRS, demos=needs == DEMONSTRATIONS).items
    whole, whole_gradient = step_gradient(policy, items, method, 10_000)
    cut, cut_gradient = step_gradient(policy, items, method, 1)
    scale = float(whole_gradient.abs().max())
    assert cut == pytest.approx(whole, rel=1e-10) and scale > 1e-5
    torch.testing.assert_close(cut_gradient, whole_gradient, rtol=0, atol=1e-10 * max(scale, 1.0))
    if method.declared["couples_rows"]:  # or these rows would prove nothing
        alone = replace(method, declared={**method.declared, "couples_rows": False})
        assert (step_gradient(policy, items, alone, 1)[1] - whole_gradient).abs().max() > 1e-6 * scale


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight pairs whose responses carry scores, which every paired objective can use."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog"]
    rows = [
        {
            "prompt": f"{word} {i}:",
            "chosen": [{"role": "user", "content": f"{word} {i}:"}, {"role": "assistant", "content": f"good {word}"}],
            "rejected": [{"role": "user", "content": f"{word} {i}:"}, {"role": "assistant", "content": f"bad {i}"}],
            "score_chosen": 3.0 + i % 3,
            "score_rejected": 1.0,
        }
        for i, word in enumerate(words)
    ]
    file = tmp_path_factory.mktemp("objectives") / "scored.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("model") / "m"))


@pytest.mark.slow
@every_objective
def test_two_steps_of_a_run_give_finite_and_changed_weights(name, model, data, tmp_path):
    from safetensors.torch import load_file

    from trueline.align import align

    torch.set_default_dtype(torch.float32)
    done = align(
        model=model,
        data=[data],
        objective=name,
        output=str(tmp_path / "run"),
        steps=2,
        batch_size=4,
        learning_rate=1e-3,
        max_length=64,
    )
    assert done.status == "finished" and len(done.metrics) == 2
    assert all(np.isfinite(m["loss"]) and m["grad_norm"] > 0 for m in done.metrics)
    before, after = load_file(f"{model}/model.safetensors"), load_file(done.folder / "model.safetensors")
    shared = [k for k in before if k in after]
    assert all(torch.isfinite(v).all() for v in after.values())
    assert any(not torch.equal(before[k], after[k]) for k in shared)
    alarms = (done.folder / "trueline" / "alarms.jsonl").read_text().splitlines()
    assert not [a for a in alarms if json.loads(a)["name"] == "reference_differs"], alarms
