"""The one log-prob function: every form equals log-softmax, in value and gradient, for any chunk."""

import pytest
import torch
from torch import nn

from tests.tiny import tiny_lora, tiny_model
from trueline.engine.logprob import CHUNK_BYTES, Head, chunk_rows, kl_and_entropy, token_logp

N, D, V = 23, 12, 41


def _problem(dtype=torch.float64, bias=False, seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(D, V, bias=bias).to(dtype)
    hidden = (2 * torch.randn(N, D)).to(dtype).requires_grad_()
    return hidden, linear, torch.randint(V, (N,)), torch.randn(N, dtype=dtype)


def _plain(hidden, linear, target, scale=1.0, softcap=None, temperature=1.0):
    z = linear(hidden) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return (z / temperature).log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)


def _agree(ours, truth, weight, inputs, tolerance=1e-12):
    assert (ours - truth).abs().max() <= tolerance
    mine = torch.autograd.grad((ours * weight).sum(), inputs)
    theirs = torch.autograd.grad((truth * weight).sum(), inputs)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() <= 10 * tolerance


@pytest.mark.parametrize("chunk", [1, 7, 23, 64])
@pytest.mark.parametrize("options", [{}, {"scale": 0.25, "temperature": 0.7}, {"softcap": 3.0, "scale": 2.0}])
@pytest.mark.parametrize("bias", [False, True])
def test_a_trained_head_equals_log_softmax_in_value_and_gradient(chunk, options, bias):
    hidden, linear, target, weight = _problem(bias=bias)
    ours = token_logp(hidden, Head(linear, **options), target, chunk=chunk)
    _agree(ours, _plain(hidden, linear, target, **options), weight, (hidden, *linear.parameters()))


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_frozen_head_keeps_the_gradient_direction_and_agrees(chunk, scale):
    hidden, linear, target, weight = _problem()
    linear.requires_grad_(False)
    ours = token_logp(hidden, Head(linear, scale), target, chunk=chunk)
    kept = ours.grad_fn.saved_tensors if hasattr(ours.grad_fn, "saved_tensors") else ()
    assert [tuple(t.shape) for t in kept] == [(N, D)]  # the direction and nothing else: no recompute is possible
    _agree(ours, _plain(hidden, linear, target, scale), weight, (hidden,))


def test_a_trained_head_under_a_frozen_hidden_state_still_gets_its_gradient():
    hidden, linear, target, weight = _problem()
    hidden = hidden.detach()
    _agree(token_logp(hidden, Head(linear), target, chunk=5), _plain(hidden, linear, target), weight, (linear.weight,))


def test_lora_on_the_head_takes_the_general_path_and_its_adapter_gets_a_gradient():
    model = tiny_lora(tiny_model("llama", dtype=torch.float64), on_head=True)
    head = model.get_base_model().get_output_embeddings()
    hidden = torch.randn(N, 32, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(97, (N,)), torch.randn(N, dtype=torch.float64)
    assert not Head(head).plain
    adapters = [p for p in head.parameters() if p.requires_grad]
    assert len(adapters) == 2
    truth = head(hidden).log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)
    _agree(token_logp(hidden, Head(head), target, chunk=5), truth, weight, (hidden, *adapters))


def test_a_hook_on_the_head_is_not_bypassed():
    hidden, linear, target, _ = _problem()
    linear.register_forward_hook(lambda module, args, out: out * 3.0)
    assert torch.allclose(token_logp(hidden, Head(linear), target), _plain(hidden, linear, target))


@pytest.mark.parametrize("bias", [False, True])
def test_no_gradient_mode_gives_the_same_numbers_and_no_graph(bias):
    hidden, linear, target, _ = _problem(bias=bias)
    with torch.no_grad():
        ours = token_logp(hidden, Head(linear), target, chunk=5)
    assert not ours.requires_grad
    assert torch.allclose(ours, _plain(hidden, linear, target))


def test_half_precision_weights_are_scored_with_float_logits():
    hidden, linear, target, _ = _problem()
    hidden, linear = hidden.bfloat16().detach(), linear.bfloat16()
    truth = _plain(hidden.float(), lambda h: h @ linear.weight.float().t(), target)
    ours = token_logp(hidden, Head(linear), target)
    assert ours.dtype == torch.float32
    assert (ours - truth).abs().max() < 1e-5


def test_large_logits_do_not_overflow():
    hidden, linear, target, _ = _problem(torch.float32)
    ours = token_logp(hidden * 1e4, Head(linear), target)
    assert torch.isfinite(ours).all()
    assert (ours <= 1e-3).all()


def test_a_chunk_is_64_megabytes_of_logits_and_at_least_64_rows():
    assert chunk_rows(32_000) * 32_000 * 4 <= CHUNK_BYTES < (chunk_rows(32_000) + 1) * 32_000 * 4
    assert chunk_rows(10_000_000) == 64


def test_the_buffer_never_holds_all_logits():
    """Peak bytes of one allocation while scoring 4096 rows stay at a chunk, not at rows x words."""
    words, rows = 8000, 4096
    linear = nn.Linear(8, words, bias=False).requires_grad_(False)
    hidden, target = torch.randn(rows, 8), torch.randint(words, (rows,))
    with torch.profiler.profile(profile_memory=True) as profile:
        token_logp(hidden, Head(linear), target, chunk=64)
    largest = max(e.cpu_memory_usage for e in profile.events())
    assert largest < rows * words * 4 / 8


@pytest.mark.parametrize("chunk", [1, 6, 100])
def test_full_distribution_kl_and_entropy_equal_their_definitions(chunk):
    hidden, linear, _, _ = _problem(seed=1)
    reference_hidden, reference, _, _ = _problem(seed=2)
    own, other = Head(linear, softcap=4.0), Head(reference, temperature=2.0)
    kl, entropy = kl_and_entropy(hidden, own.logits, reference_hidden, other.logits, vocabulary=V, chunk=chunk)
    p = torch.distributions.Categorical(logits=own.logits(hidden))
    q = torch.distributions.Categorical(logits=other.logits(reference_hidden))
    assert torch.allclose(kl, torch.distributions.kl_divergence(p, q), atol=1e-12)
    assert torch.allclose(entropy, p.entropy(), atol=1e-12)
    assert not kl.requires_grad
