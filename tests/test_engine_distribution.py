"""Functions of full distributions: values by hand, chunks without effect, gradients in the policy alone."""

import math

import pytest
import torch

from tests.tiny import tiny_groups, tiny_model
from trueline.engine.distribution import DIVERGENCES, Divergence, evaluate
from trueline.engine.layout import Layout
from trueline.engine.policy import Policy, frozen_copy
from trueline.errors import TruelineError


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


OWN, OTHER = logs([0.5, 0.25, 0.25]), logs([0.2, 0.4, 0.4])


def test_the_two_kls_on_hand_computed_numbers():
    forward = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.4 / 0.25)
    reverse = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.25 / 0.4)
    assert DIVERGENCES["forward_kl"](OWN, OTHER).item() == pytest.approx(forward, rel=1e-12)
    assert DIVERGENCES["reverse_kl"](OWN, OTHER).item() == pytest.approx(reverse, rel=1e-12)


@pytest.mark.parametrize("mixing", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_the_mixture_of_the_two_kls_to_the_middle(mixing):
    own, other = OWN.exp().squeeze(), OTHER.exp().squeeze()
    middle = mixing * other + (1 - mixing) * own
    expected = mixing * (other * (other / middle).log()).sum() + (1 - mixing) * (own * (own / middle).log()).sum()
    assert DIVERGENCES["jensen_shannon"](OWN, OTHER, mixing=mixing).item() == pytest.approx(expected.item(), rel=1e-12)


def test_jensen_shannon_ends_in_the_two_kls():
    call = DIVERGENCES["jensen_shannon"]
    assert call(OWN, OTHER, mixing=0).item() == DIVERGENCES["forward_kl"](OWN, OTHER).item()
    assert call(OWN, OTHER, mixing=1).item() == DIVERGENCES["reverse_kl"](OWN, OTHER).item()


@pytest.fixture(scope="module")
def policy():
    model = tiny_model("llama", pad_token_id=0).double()
    reference = frozen_copy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    return Policy(model, reference=reference, teachers=[tiny_model("llama", seed=7, pad_token_id=0).double()])


def plain_logp(model, layout):
    """log-softmax at every counted token's prefix, from unpacked calls, [N, V]."""
    found = []
    for number, ids in enumerate(layout.full_rows()):
        own = layout.owner_N == number
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        found.append(logits[layout.positions_T[layout.predictor_N[own]]].log_softmax(-1))
    return torch.cat(found)


@pytest.mark.parametrize("against", ["reference", "teachers"])
def test_a_divergence_of_the_policy_is_that_of_plain_calls_in_value_and_gradient(policy, against):
    layout = Layout.of(tiny_groups([(4, [3, 5]), (3, [2, 6])]))
    found = policy(layout, divergences={"x": Divergence.bound("forward_kl", against, {})}).divergences["x"]
    other = policy.reference_model if against == "reference" else policy.teacher_models[0]
    weights = torch.arange(1.0, len(found) + 1, dtype=torch.float64)
    backbone = policy._reference_backbone if against == "reference" else policy._teachers[0]
    with policy.plain_attention(), backbone.plain_attention():
        own = plain_logp(policy.model, layout)
        expected = DIVERGENCES["forward_kl"](own, plain_logp(other.eval(), layout).detach())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    one = torch.autograd.grad((weights * found).sum(), list(policy.model.parameters()), allow_unused=True)
    two = torch.autograd.grad((weights * expected).sum(), list(policy.model.parameters()), allow_unused=True)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(b.abs().max()) + 1e-6)
    assert all(p.grad is None for p in other.parameters())


def test_the_reference_beside_a_divergence_is_scored_as_alone(policy, monkeypatch):
    layout = Layout.of(tiny_groups([(4, [3, 5]), (3, [2, 6])]))
    scores = policy(layout, divergences={"x": Divergence.bound("forward_kl", "reference", {})})
    alone = policy(layout, reference=True).logp_N
    monkeypatch.setattr(policy._reference_backbone, "states", lambda *_: pytest.fail("a second pass of the reference"))
    torch.testing.assert_close(policy.reference_logp(layout, scores), alone, rtol=0, atol=0)


def test_no_cut_into_chunks_changes_a_divergence(monkeypatch):
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    states, head = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    divergence = Divergence.bound("reverse_kl", "reference", {})

    def at(rows):
        monkeypatch.setattr("trueline.engine.distribution.chunk_rows", lambda vocabulary: rows)
        return evaluate(divergence, hidden, lambda h: h @ head, [(states, lambda h: h @ head)], vocabulary=7)

    torch.testing.assert_close(at(2), at(100), rtol=0, atol=1e-14)
    (cut,) = torch.autograd.grad(at(2).sum(), hidden)
    (whole,) = torch.autograd.grad(at(100).sum(), hidden)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-13)


def test_a_divergence_from_teachers_that_are_not_there_says_how_many_it_needs():
    divergence = Divergence(DIVERGENCES["forward_kl"], "teachers", (), 2)
    with pytest.raises(TruelineError, match="compares with 2 teachers; this run has 0"):
        evaluate(divergence, torch.zeros(1, 2), lambda h: h, [], vocabulary=2)
