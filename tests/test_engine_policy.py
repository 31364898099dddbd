"""Policy: references, scalar heads, KL, dropout, and a probe that catches models it must not trust."""

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.tiny import (  # fmt: skip
    RAGGED,
    assert_same_gradients,
    enlarge,
    gradients,
    plain_logp,
    tiny_config,
    tiny_groups,
    tiny_lora,
    tiny_model,
)
from trueline.engine.backbone import Backbone
from trueline.engine.layout import Layout
from trueline.engine.policy import Policy, adapter_off, frozen_copy, starting_reference
from trueline.engine.precision import products
from trueline.engine.probe import probe_groups
from trueline.errors import TruelineError


@pytest.fixture
def layout():
    return Layout.of(tiny_groups(RAGGED))


def _disturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)


# -- References


def test_a_fresh_adapter_is_switched_off_for_the_reference(layout):
    model = tiny_model("llama")
    start = plain_logp(model, layout).detach()
    adapted = tiny_lora(model, fresh=True)
    assert starting_reference(adapted) == "adapter_off"
    policy = Policy(adapted, reference="adapter_off")
    _disturb(policy.model)
    assert (policy(layout).logp_N - start).abs().max() > 0.1
    scores = policy(layout, reference=True)
    assert (scores.logp_N - start).abs().max() < 1e-5
    assert not scores.logp_N.requires_grad


def test_a_pretrained_adapter_keeps_its_start_as_reference_and_shares_the_base(layout):
    adapted = tiny_lora(tiny_model("llama"), on_head=True, fresh=False)
    start = plain_logp(adapted, layout).detach()
    with torch.no_grad(), adapter_off(adapted):
        assert (plain_logp(adapted, layout) - start).abs().max() > 0.1  # adapter-off would be the wrong reference
    reference = starting_reference(adapted)
    assert isinstance(reference, torch.nn.Module)
    policy = Policy(adapted, reference=reference)
    _disturb(policy.model)
    assert (policy(layout, reference=True).logp_N - start).abs().max() < 1e-5
    assert (policy(layout).logp_N - start).abs().max() > 0.1
    ours, theirs = dict(adapted.named_parameters()), dict(reference.named_parameters())
    for name, parameter in ours.items():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) == ("lora" not in name), name


def test_a_frozen_copy_of_a_full_model_does_not_move_with_it(layout):
    model = tiny_model("mistral")
    start = plain_logp(model, layout).detach()
    policy = Policy(model, reference=frozen_copy(model))
    _disturb(policy.model)
    assert (policy(layout, reference=True).logp_N - start).abs().max() < 1e-5
    assert not any(p.requires_grad for p in policy.reference_model.parameters())
    assert {n.split(".")[0] for n, p in policy.named_parameters() if p.requires_grad} == {"model"}


def test_a_reference_of_another_family_is_probed_by_itself(layout):
    other = tiny_model("falcon_h1")
    policy = Policy(tiny_model("llama"), reference=copy.deepcopy(other))
    assert policy.mode == "shared"
    with torch.no_grad():
        assert (policy(layout, reference=True).logp_N - plain_logp(other, layout)).abs().max() < 1e-5


def test_scoring_the_reference_leaves_the_adapter_trainable_exactly_as_it_was(layout):
    adapted = tiny_lora(tiny_model("llama"), fresh=True)
    next(p for n, p in adapted.named_parameters() if "lora_A" in n).requires_grad_(False)
    before = {n: p.requires_grad for n, p in adapted.named_parameters()}
    policy = Policy(adapted, reference="adapter_off").train()
    loss = policy(layout).logp_N.sum()
    policy(layout, reference=True)
    loss.backward()
    assert {n: p.requires_grad for n, p in adapted.named_parameters()} == before
    assert all((p.grad is not None) == before[n] for n, p in adapted.named_parameters())


def test_references_that_cannot_be_are_refused(layout):
    model = tiny_model("llama")
    with pytest.raises(TruelineError, match="without a reference"):
        Policy(model)(layout, reference=True)
    with pytest.raises(TruelineError, match="no adapter"):
        Policy(model, reference="adapter_off")
    with pytest.raises(TruelineError, match="policy itself"):
        Policy(model, reference=model)


# -- Heads, KL, temperature


@pytest.mark.parametrize("layout_kind", ["auto", "padded"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gemma3_text"])
def test_a_scalar_head_reads_the_last_token_of_each_response(family, layout_kind, layout):
    model = tiny_model(family, head="scalar")
    plain = torch.cat([model(input_ids=ids[None]).logits[0] for ids in layout.full_rows()])
    policy = Policy(copy.deepcopy(model), head="scalar", layout=layout_kind).train()
    assert policy.mode == ("shared" if layout_kind == "auto" else "padded")
    scores = policy(layout)
    assert scores.logp_N is None
    assert (scores.value_R - plain).abs().max() < 1e-5
    ours, theirs = scores.value_R.sigmoid().sum(), plain.sigmoid().sum()
    assert_same_gradients(gradients(policy.model, ours), gradients(model, theirs), 5e-5)


def test_a_classifier_of_several_labels_is_no_reward_model():
    from transformers import AutoModelForSequenceClassification

    three = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=3))
    with pytest.raises(TruelineError, match="3 labels"):
        Policy(three, head="scalar")
    with pytest.raises(TruelineError, match="AutoModelForSequenceClassification"):
        Policy(tiny_model("llama"), head="scalar")


@pytest.mark.parametrize("reference", ["adapter_off", "model"])
def test_kl_and_entropy_are_those_of_the_full_distributions(reference, layout):
    base = tiny_model("gemma2")
    adapted = tiny_lora(copy.deepcopy(base), on_head=True)
    policy = Policy(copy.deepcopy(adapted), reference=base if reference == "model" else "adapter_off", temperature=0.8)
    kl, entropy = policy.kl(layout)
    fresh = tiny_model("gemma2")
    for r, ids in enumerate(layout.full_rows()):
        at = layout.positions_T[layout.predictor_N[layout.owner_N == r]]
        p = torch.distributions.Categorical(logits=adapted(input_ids=ids[None]).logits[0][at] / 0.8)
        q = torch.distributions.Categorical(logits=fresh(input_ids=ids[None]).logits[0][at] / 0.8)
        assert torch.allclose(kl[layout.owner_N == r], torch.distributions.kl_divergence(p, q), atol=2e-5)
        assert torch.allclose(entropy[layout.owner_N == r], p.entropy(), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_temperature_divides_the_final_logits(family, layout):
    model = tiny_model(family)
    policy = Policy(copy.deepcopy(model), temperature=0.6)
    assert (policy(layout).logp_N - plain_logp(model, layout, temperature=0.6)).abs().max() < 2e-5


# -- Dropout, precision, configurations


def test_dropout_is_off_in_training_unless_asked(layout):
    policy = Policy(tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5))
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    scored = policy.eval()(layout).logp_N
    assert torch.equal(policy.train()(layout).logp_N, scored)
    assert policy.training


def test_asked_for_dropout_is_on_for_the_policy_and_off_for_its_reference(layout):
    model = tiny_model("llama")
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        model, LoraConfig(lora_dropout=0.5, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    )
    policy = Policy(adapted, reference="adapter_off", dropout=True).train()
    torch.manual_seed(0)
    assert (policy(layout).logp_N - policy(layout).logp_N).abs().max() > 1e-3
    assert torch.equal(policy(layout, reference=True).logp_N, policy(layout, reference=True).logp_N)
    assert any(m.training for m in policy.model.modules())


def test_attention_dropout_that_was_asked_for_is_refused_by_the_shared_layout(layout):
    policy = Policy(tiny_model("llama", attention_dropout=0.1), dropout=True).train()
    with pytest.raises(TruelineError, match="dropout"):
        policy(layout)


def test_precision_is_set_for_the_products_of_a_call_and_restored(layout):
    seen = []
    policy = Policy(tiny_model("llama"), precision="fast")
    policy.model.lm_head.register_forward_hook(lambda *_: seen.append(torch.backends.mkldnn.matmul.fp32_precision))
    before = torch.backends.mkldnn.matmul.fp32_precision
    policy(layout)
    assert seen == ["bf16"]
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with products("fast"), products("exact"):
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    with pytest.raises(TruelineError, match="fp8"), products("fp8"):
        pass


def test_models_built_from_one_configuration_object_keep_their_own_attention(layout):
    config = tiny_config("llama")
    mine, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    policy = Policy(mine)
    assert policy.mode == "shared"
    other(input_ids=layout.ids_T[None])  # would raise if our attention had been switched on here
    assert config._attn_implementation != "trueline"


def test_two_policies_of_one_model_do_not_switch_each_other(layout):
    model = tiny_model("llama")
    shared = Policy(model)
    expected = shared(layout).logp_N
    padded = Policy(model, layout="padded")
    for policy in (padded, shared, padded, shared):
        assert (policy(layout).logp_N - expected).abs().max() < 1e-5
    assert (shared.mode, padded.mode) == ("shared", "padded")


def test_nothing_of_ours_is_saved_with_the_model(layout, tmp_path):
    policy = Policy(tiny_model("llama"))
    policy.model.save_pretrained(tmp_path)
    assert "trueline" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (plain_logp(again, layout) - policy(layout).logp_N).abs().max() < 1e-5


def test_plain_calls_work_inside_the_block_and_are_refused_outside(layout):
    policy = Policy(tiny_model("llama"))
    ids = layout.full_rows()[0][None]
    with policy.plain_attention():
        assert policy.model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    with pytest.raises(TruelineError, match="plain_attention"):
        policy.model(input_ids=ids)
    assert policy.mode == "shared"


def test_ids_outside_the_vocabulary_are_refused_with_the_reason():
    policy = Policy(tiny_model("llama"))
    with pytest.raises(TruelineError, match="500 is outside"):
        policy(Layout.of([*tiny_groups([(2, [3])]), _with_id(500)]))


def _with_id(token):
    (group,) = tiny_groups([(2, [3])])
    group.responses[0].ids[1] = token
    return group


# -- The probe


class _Deaf(torch.nn.Module):
    """An attention that never looks at the registered function: a running mean of what came before."""

    def forward(self, hidden_states, **_):
        steps = torch.arange(1, hidden_states.shape[1] + 1)[None, :, None]
        return hidden_states.cumsum(1) / steps, None


def _listening_elsewhere(model):
    """A layer that also mixes neighbours outside attention, as a convolution does."""
    layer = model.model.layers[0].mlp
    inner = layer.forward
    layer.forward = lambda h: inner(h + torch.nn.functional.pad(h, (0, 0, 1, 0))[:, :-1])
    return model


def test_an_attention_that_ignores_the_layout_is_caught_by_its_missing_calls(layout, capsys):
    model = tiny_model("llama")
    model.model.layers[1].self_attn = _Deaf()
    policy = Policy(copy.deepcopy(model))
    assert policy.mode == "padded"
    assert (policy.probe_result.attention_calls, policy.probe_result.layers) == (1, 2)
    assert "1 times in 2 layers" in capsys.readouterr().err
    assert (policy(layout).logp_N - plain_logp(model, layout)).abs().max() < 1e-5


def test_mixing_outside_attention_is_caught_by_the_scores(layout, capsys):
    policy = Policy(_listening_elsewhere(tiny_model("llama")))
    assert policy.mode == "padded"
    assert policy.probe_result.attention_calls == policy.probe_result.layers
    assert policy.probe_result.max_difference > 0.01
    assert f"{policy.probe_result.max_difference:.3g}" in capsys.readouterr().err
    plain = plain_logp(_listening_elsewhere(tiny_model("llama")), layout)
    assert (policy(layout).logp_N - plain).abs().max() < 1e-5


class _SecretScale(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.01
        return out


@pytest.mark.parametrize("layout_kind", ["auto", "padded"])
def test_an_unknown_transform_after_the_head_is_refused_with_the_number(layout_kind):
    model = _SecretScale(tiny_config("llama")).eval()
    enlarge(model)
    with pytest.raises(TruelineError, match=r"differ from model\(\.\.\.\) by 0\.\d+"):
        Policy(model, layout=layout_kind)


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2"])
def test_the_transform_after_the_head_is_found_by_numbers(family):
    head = Policy(tiny_model(family))._backbone.head
    expected = {"granite": (0.25, None), "cohere": (0.25, None), "gemma2": (1.0, 6.0)}[family]
    assert (head.scale, head.softcap) == expected


def test_weights_that_are_not_numbers_are_refused():
    model = tiny_model("llama")
    model.lm_head.weight.data[5] = math.nan
    with pytest.raises(TruelineError, match="nan"):
        Policy(model)


@pytest.mark.parametrize(("window", "longest"), [(8, 24), (40, 48), (4096, 24)])
def test_the_probe_is_longer_than_any_window_that_can_matter(window, longest):
    backbone = Backbone(tiny_model("mistral", sliding_window=window), "lm")
    assert Layout.of(probe_groups(backbone, max_length=1024)).longest == longest


def test_a_model_without_a_head_or_a_scorer_is_refused():
    from transformers import AutoModel

    with pytest.raises(TruelineError, match="no head"):
        Policy(AutoModel.from_config(tiny_config("llama")))


def test_rows_beyond_what_was_probed_are_refused_only_where_a_window_lies_between():
    (long,) = tiny_groups([(40, [4, 4])])
    Policy(tiny_model("llama"), max_length=20)(Layout.of([long]))
    policy = Policy(tiny_model("mistral", sliding_window=32), max_length=20)
    policy(Layout.of(tiny_groups([(20, [12, 3])])))
    with pytest.raises(TruelineError, match=r"44 tokens.*window or chunk of 32"):
        policy(Layout.of([long]))


@pytest.mark.parametrize("layout_kind", ["auto", "padded"])
def test_rows_that_would_change_the_rotary_frequencies_of_their_neighbours_are_refused(layout_kind):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama", max_position_embeddings=30, rope_parameters=rope)
    policy = Policy(copy.deepcopy(model), layout=layout_kind)
    alone, short = Layout.of(tiny_groups([(40, [4])])), Layout.of(tiny_groups(RAGGED))
    assert (policy(short).logp_N - plain_logp(model, short)).abs().max() < 1e-5
    assert (policy(alone).logp_N - plain_logp(model, alone)).abs().max() < 1e-5
    with pytest.raises(TruelineError, match="frequencies"):
        policy(Layout.of(tiny_groups([(40, [4]), *RAGGED])))


def test_half_precision_models_share_and_score_in_float32(layout):
    model = tiny_model("llama", dtype=torch.bfloat16)
    policy = Policy(copy.deepcopy(model))
    scores = policy(layout).logp_N
    assert policy.mode == "shared"
    assert scores.dtype == torch.float32
    assert (scores - plain_logp(model.float(), layout)).abs().max() < 0.3
