"""Attention over the flat layout: split + merge = concatenated keys = a dense mask, in value and gradient."""

from types import SimpleNamespace

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tests.tiny import RAGGED, tiny_groups
from trueline.engine import attention
from trueline.engine.attention import concatenated, over_layout
from trueline.engine.layout import Layout
from trueline.engine.precision import products
from trueline.errors import TruelineError

SCALE = 0.4


def _tensors(layout, dtype=torch.float64, heads=4, kv_heads=2, d=8, d_value=8, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(h, size):
        return (1.5 * torch.randn(1, h, layout.shared_tokens, size, generator=g)).to(dtype).requires_grad_()

    return draw(heads, d), draw(kv_heads, d), draw(kv_heads, d_value)


def _dense(q, k, v, layout, window=None, softcap=None, sinks=None):
    """The definition: a [T x T] mask, one softmax."""
    repeats = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(repeats, 1).transpose(2, 3) * SCALE
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~layout.mask(window), float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    return scores.softmax(-1)[..., : k.shape[2]] @ v.repeat_interleave(repeats, 1)


def _same(ours, truth, inputs, tolerance):
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(3)).to(truth)
    assert (ours - truth).abs().max() <= tolerance
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((truth * weight).sum(), inputs),
        strict=True,
    ):
        assert (a - b).abs().max() <= 10 * tolerance


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_split_and_merge_equals_the_dense_mask(kv_heads, dtype, tolerance):
    layout = Layout.of(tiny_groups(RAGGED))
    q, k, v = _tensors(layout, dtype, kv_heads=kv_heads)
    ours = over_layout(q, k, v, layout.segments, SCALE)
    assert ours.grad_fn.name().startswith("_SplitMerge")
    _same(ours, _dense(q, k, v, layout), (q, k, v), tolerance)


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_concatenated_keys_equal_the_dense_mask(window, softcap, with_sinks):
    layout = Layout.of(tiny_groups(RAGGED))
    q, k, v = _tensors(layout)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if with_sinks else None
    options = dict(window=window, softcap=softcap, sinks=sinks)
    ours = concatenated(q, k, v, layout.segments, SCALE, **options)
    inputs = (q, k, v, *([sinks] if with_sinks else []))
    _same(ours, _dense(q, k, v, layout, **options), inputs, 1e-12)


def test_a_window_shorter_than_a_group_takes_the_second_path_and_a_longer_one_the_first():
    layout = Layout.of(tiny_groups(RAGGED))
    q, k, v = _tensors(layout)
    longest = layout.longest
    first = over_layout(q, k, v, layout.segments, SCALE, window=longest)
    second = over_layout(q, k, v, layout.segments, SCALE, window=longest - 1)
    assert first.grad_fn.name().startswith("_SplitMerge")
    assert not second.grad_fn.name().startswith("_SplitMerge")
    _same(second, _dense(q, k, v, layout, window=longest - 1), (q, k, v), 1e-12)


def test_value_heads_of_another_size_are_served():
    layout = Layout.of(tiny_groups(RAGGED))
    q, k, v = _tensors(layout, d_value=5)
    _same(over_layout(q, k, v, layout.segments, SCALE), _dense(q, k, v, layout), (q, k, v), 1e-12)


def test_half_precision_values_beside_float_queries_are_cast():
    layout = Layout.of(tiny_groups(RAGGED))
    q, k, v = _tensors(layout, torch.float32)
    out = over_layout(q, k, v.bfloat16(), layout.segments, SCALE)
    assert out.dtype == torch.bfloat16
    assert (out.float() - _dense(q, k, v, layout)).abs().max() < 0.1


@pytest.mark.parametrize("window", [None, 3])
def test_fast_products_stay_out_of_attention_in_both_directions(window):
    layout = Layout.of(tiny_groups(RAGGED))
    q, k, v = _tensors(layout, torch.float32, d=64, d_value=64)
    found = []
    for precision in ("exact", "fast"):
        with products(precision):
            out = over_layout(q, k, v, layout.segments, SCALE, window=window)
            found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for exact, fast in zip(*found, strict=True):
        assert torch.allclose(exact, fast, rtol=1e-5, atol=1e-5)


def test_the_name_has_no_mask_builder_so_models_build_none():
    assert attention.NAME not in ALL_MASK_ATTENTION_FUNCTIONS


def _call(**keywords):
    layout = Layout.of(tiny_groups([(2, [2, 3])]))
    q, k, v = _tensors(layout)
    return attention.attention(torch.nn.Module(), q, k, v, **{"layout": layout, **keywords})


@pytest.mark.parametrize(
    "keywords",
    [
        {"attention_mask": torch.ones(1)},
        {"dropout": 0.1},
        {"is_causal": False},
        {"cu_seq_lens_q": torch.tensor([0, 3])},
        {"position_bias": torch.zeros(1)},
        {"output_attentions": True},
        {"layout": None},
    ],
)
def test_what_attention_does_not_implement_is_refused(keywords):
    with pytest.raises(TruelineError):
        _call(**keywords)


def test_neutral_keywords_pass_and_every_call_is_counted():
    with attention.count_calls() as counter:
        _call(
            dropout=0.0, sliding_window=None, output_attentions=False, position_ids=torch.zeros(1), cu_seq_lens_q=None
        )
        _call()
    assert counter.calls == 2


def test_a_module_that_is_not_causal_is_refused():
    layout = Layout.of(tiny_groups([(2, [2, 3])]))
    module = torch.nn.Module()
    module.is_causal = False
    with pytest.raises(TruelineError, match="not causal"):
        attention.attention(module, *_tensors(layout), layout=layout)


def test_queries_that_are_not_the_layout_row_are_refused():
    short, long = Layout.of(tiny_groups([(2, [2])])), Layout.of(tiny_groups([(2, [3])]))
    with pytest.raises(TruelineError, match="4 tokens"):
        attention.attention(torch.nn.Module(), *_tensors(long), layout=short)


def test_a_decoding_state_gets_everything_and_its_result_is_returned():
    seen = {}

    def attend(module, query, key, value, **options):
        seen.update(options, shapes=(query.shape, key.shape))
        return query.transpose(1, 2)

    q, k, v = (torch.randn(3, h, 1, 8) for h in (4, 2, 2))
    out, weights = attention.attention(
        torch.nn.Module(),
        q,
        k,
        v,
        scaling=0.5,
        sliding_window=8,
        softcap=2.0,
        s_aux=None,
        decode=SimpleNamespace(attend=attend),
    )
    assert torch.equal(out, q.transpose(1, 2)) and weights is None
    assert (seen["scaling"], seen["sliding_window"], seen["softcap"], seen["s_aux"]) == (0.5, 8, 2.0, None)
