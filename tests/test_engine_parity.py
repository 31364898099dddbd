"""Scores and gradients: shared layout = padded rows = one plain `model(...)` call a response, for every family.

Float64 goes through exactly only where a family's code stays in it: gpt2. RMSNorm (llama, qwen, gemma, mistral, phi3,
olmo2, granite, gpt_oss) and cohere's norm compute in float32 whatever the model's type, so gradients of theirs
agree to float32. gemma2's eager softmax is float32 (its padded rows are NaN in float64) and gpt_oss's grouped product
has no float64: these two are tested in float32 only.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tests.tiny import (
    HYBRID,
    RAGGED,
    SHARED,
    assert_same_gradients,
    gradients,
    plain_logp,
    tiny_groups,
    tiny_lora,
    tiny_model,
)
from trueline.engine.layout import Layout, micro_batches
from trueline.engine.policy import Policy

FLOAT64 = tuple(f for f in SHARED if f not in ("gemma2", "gpt_oss"))
FLOAT64_GRADIENTS = ("gpt2",)
# The slow half repeats in further families what one quick case proves.
FEW = ("llama", "gpt2")


def _slow_but(families, quick):
    return [f if f in quick else pytest.param(f, marks=pytest.mark.slow) for f in families]


EIGHT = (9, [3, 1, 12, 2, 7, 4, 1, 5])


def _loss(logp_N, layout, statistic="sum"):
    """A non-linear loss a response, so that a wrong log-prob of one token moves the gradient of all."""
    total = logp_N.new_zeros(layout.rows).index_add(0, layout.owner_N, logp_N)
    value = total / layout.length_R if statistic == "mean" else total
    sign = torch.ones(layout.rows, dtype=value.dtype)
    sign[1::2] = -1.0
    return -logsigmoid(0.1 * sign * value).sum()


def _assert_parity(model, groups, *, logp=1e-5, gradient=5e-5, statistic="sum", mode="shared"):
    layout = Layout.of(groups)
    plain = plain_logp(model, layout)
    plain_gradients = gradients(model, _loss(plain, layout, statistic))
    for kind in ("auto", "padded"):
        policy = Policy(copy.deepcopy(model), layout=kind).train()
        assert policy.mode == (mode if kind == "auto" else "padded")
        ours = policy(layout).logp_N
        assert (ours - plain).abs().max() <= logp, kind
        assert_same_gradients(gradients(policy.model, _loss(ours, layout, statistic)), plain_gradients, gradient)


@pytest.mark.parametrize("family", SHARED)
def test_shared_equals_padded_equals_one_by_one_in_every_family(family):
    _assert_parity(tiny_model(family), tiny_groups(RAGGED))


@pytest.mark.parametrize("family", _slow_but(FLOAT64, FEW))
def test_float64_models_agree_to_1e_9(family):
    gradient = 1e-9 if family in FLOAT64_GRADIENTS else 5e-6
    _assert_parity(tiny_model(family, dtype=torch.float64), tiny_groups(RAGGED), logp=1e-9, gradient=gradient)


@pytest.mark.parametrize("family", HYBRID)
def test_a_recurrent_hybrid_falls_back_to_padded_rows_and_prints_the_number(family, capsys):
    _assert_parity(tiny_model(family), tiny_groups(RAGGED), mode="padded")
    result = Policy(tiny_model(family)).probe_result
    assert result.max_difference > 0.1
    assert f"differ from plain calls by {result.max_difference:.3g}" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(9, [6]), (9, [6, 4]), EIGHT, (1, [3, 2])])
@pytest.mark.parametrize("family", _slow_but(["llama", "mistral", "gpt_oss"], ["mistral"]))
def test_any_number_of_responses_alone_in_the_row(family, shape):
    _assert_parity(tiny_model(family), tiny_groups([shape]))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_the_mean_statistic_agrees_too(family):
    _assert_parity(tiny_model(family), tiny_groups(RAGGED), statistic="mean")


@pytest.mark.parametrize("on_head", [False, True])
@pytest.mark.parametrize("family", _slow_but(["llama", "gpt2", "gemma2", "mistral"], ["llama"]))
def test_lora_agrees_with_and_without_the_head(family, on_head):
    _assert_parity(tiny_lora(tiny_model(family), on_head=on_head), tiny_groups(RAGGED))


def test_a_frozen_head_gives_the_body_the_same_gradient():
    model = tiny_model("llama")
    model.lm_head.requires_grad_(False)
    _assert_parity(model, tiny_groups(RAGGED))


def test_tied_embeddings_collect_both_gradients():
    _assert_parity(tiny_model("qwen2", tie_word_embeddings=True), tiny_groups(RAGGED))


def test_tokens_that_do_not_count_condition_the_ones_that_do():
    groups = tiny_groups(RAGGED)
    for group in groups:
        for response in group.responses:
            response.mask = [i % 3 != 1 for i in range(len(response.ids))]
    _assert_parity(tiny_model("mistral"), groups)


def test_a_shared_uncounted_beginning_of_responses_changes_nothing():
    groups = tiny_groups([(5, [9, 12, 10])])
    for response in groups[0].responses:
        response.ids[:4] = groups[0].responses[0].ids[:4]
        response.mask[:4] = [False] * 4
    assert Layout.of(groups).segments[0].shared_end == 9
    _assert_parity(tiny_model("llama"), groups)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_gradient_checkpointing_recomputes_the_same_gradient(family):
    model = tiny_model(family)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    from trueline.engine.attention import count_calls

    _assert_parity(model, tiny_groups(RAGGED))
    policy, layout = Policy(model).train(), Layout.of(tiny_groups(RAGGED))
    with count_calls() as counter:
        policy(layout).logp_N.sum().backward()
    assert counter.calls == 2 * policy.probe_result.layers  # once forward, once recomputed: it really is on


SHAPES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=4
)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def once(request):
    model = tiny_model(request.param)
    return Policy(copy.deepcopy(model)), model


@given(shapes=SHAPES, seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_ragged_batch_with_any_loss_mask_agrees_in_value_and_gradient(once, shapes, seed, data):
    policy, model = once
    groups = tiny_groups(shapes, seed=seed)
    for group in groups:
        for response in group.responses:
            mask = data.draw(st.lists(st.booleans(), min_size=len(response.ids), max_size=len(response.ids)))
            response.mask = mask if any(mask) else [True] * len(mask)
    layout = Layout.of(groups)
    ours, plain = policy(layout).logp_N, plain_logp(model, layout)
    assert (ours - plain).abs().max() <= 1e-5
    mine, theirs = gradients(policy.model, _loss(ours, layout)), gradients(model, _loss(plain, layout))
    assert_same_gradients(mine, theirs, 1e-4)


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_any_cut_into_micro_batches_and_any_order_sum_to_the_same_gradient(layout):
    policy = Policy(tiny_model("gemma3_text"), layout=layout).train()
    groups = tiny_groups([*RAGGED, EIGHT, (3, [2, 2])])

    def gradient(order, budget):
        ordered = [groups[i] for i in order]
        total = 0
        for cut in micro_batches(ordered, budget):
            part = Layout.of([ordered[i] for i in cut])
            total = total + policy(part).logp_N.square().sum()
        return gradients(policy.model, total)

    whole = gradient(range(len(groups)), 10_000)
    for order, budget in [(range(len(groups)), 1), (range(len(groups)), 40), (range(len(groups) - 1, -1, -1), 60)]:
        assert_same_gradients(gradient(order, budget), whole, 5e-5)
