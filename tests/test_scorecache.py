"""The score cache: keyed by content and scorer, durable by the batch, checked when it is opened."""

import copy
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trueline.engine import failpoints
from trueline.engine.scorecache import Filled, ScoreCache, scorer_key
from trueline.errors import TruelineError
from trueline.groups import Group, Response


def response(*ids, mask=None):
    return Response(ids=list(ids), mask=mask or [True] * len(ids))


def some_groups(n=6):
    """Pairs with two counted tokens, and one masked token in the second response."""
    return [
        Group("p", [response(n, 1), response(n, 2, 3, mask=[True, False, True])], [9, n], origin=f"data.jsonl:{n + 1}")
        for n in range(n)
    ]


class Scorer:
    """A pure function of the tokens that keeps the groups it was asked for."""

    def __init__(self, offset=0.0, wide=False):
        self.asked, self.offset, self.wide = [], offset, wide

    def __call__(self, groups):
        self.asked.append(groups)
        return [[self.row(g, r) for r in g.responses] for g in groups]

    def row(self, group, r):
        values = [-(sum(group.prompt_ids) + i) / 7 + self.offset for i, m in zip(r.ids, r.mask, strict=True) if m]
        return values if self.wide else np.array(values, dtype=np.float32).tolist()

    @property
    def responses(self):
        return sum(len(g.responses) for call in self.asked for g in call)


def filled(groups):
    return [[r.reference_logp for r in g.responses] for g in groups]


def test_every_response_gets_one_float_a_counted_token_and_the_second_time_nothing_is_computed(tmp_path):
    groups, scorer = some_groups(), Scorer()
    assert ScoreCache(tmp_path, "key").fill(groups, scorer, batch=4) == Filled(hits=0, computed=12, rechecked=0)
    assert [len(r.reference_logp) for r in groups[0].responses] == [2, 2]
    assert len(scorer.asked) == 2

    again, idle = some_groups(), Scorer()
    assert ScoreCache(tmp_path, "key").fill(again, idle, recheck=0) == Filled(hits=12, computed=0, rechecked=0)
    assert filled(again) == filled(groups) == Scorer()(some_groups()) and not idle.asked


@pytest.mark.parametrize("wide", [False, True])
def test_float32_and_float64_scores_come_back_with_every_bit(tmp_path, wide):
    cache = ScoreCache(tmp_path, "key")
    cache.fill(some_groups(), Scorer(wide=wide))
    groups = some_groups()
    ScoreCache(tmp_path, "key").fill(groups, Scorer(wide=wide))
    assert filled(groups) == Scorer(wide=wide)(some_groups())


def test_only_missing_responses_are_scored_and_equal_rows_once(tmp_path):
    cache = ScoreCache(tmp_path, "key")
    cache.fill([Group("p", [response(1, 2)], [9])], Scorer())
    scorer = Scorer()
    groups = [Group("p", [response(1, 2), response(5)], [9]), Group("p", [response(5)], [9])]
    assert cache.fill(groups, scorer).computed == 1
    assert [[r.ids for r in g.responses] for g in scorer.asked[0]] == [[[5]]]
    assert (
        groups[0].responses[1].reference_logp
        == groups[1].responses[0].reference_logp
        == scorer.row(groups[0], groups[0].responses[1])
    )


def test_the_mask_and_the_prompt_belong_to_the_key(tmp_path):
    rows = [
        Group("p", [response(1, 2)], [9]),
        Group("p", [response(1, 2, mask=[True, False])], [9]),
        Group("p", [response(1, 2)], [8]),
    ]
    assert ScoreCache(tmp_path, "key").fill(rows, Scorer()).computed == 3


def test_a_response_without_counted_tokens_has_an_empty_score(tmp_path):
    for _ in range(2):
        groups = [Group("p", [response(1, 2, mask=[False, False]), response(3)], [9])]
        ScoreCache(tmp_path, "key").fill(groups, Scorer())
        assert groups[0].responses[0].reference_logp == [] and len(groups[0].responses[1].reference_logp) == 1


def test_another_scorer_key_sees_nothing_of_the_first(tmp_path):
    ScoreCache(tmp_path, "one").fill(some_groups(), Scorer())
    groups = some_groups()
    assert ScoreCache(tmp_path, "two").fill(groups, Scorer(offset=1.0)).hits == 0
    assert filled(groups) == Scorer(offset=1.0)(some_groups())


def test_a_few_rows_are_scored_again_alone_when_a_cache_is_opened(tmp_path):
    ScoreCache(tmp_path, "key").fill(some_groups(), Scorer())
    scorer, cache = Scorer(offset=5e-5), ScoreCache(tmp_path, "key")
    assert cache.fill(some_groups(), scorer, recheck=3).rechecked == 3
    assert [[len(g.responses) for g in call] for call in scorer.asked] == [[1], [1], [1]]
    assert scorer.asked[0][0].origin == "data.jsonl:1" and scorer.asked[2][0].origin == "data.jsonl:6"
    assert cache.fill(some_groups(), scorer).rechecked == 0


def test_a_cached_score_that_is_not_the_reference_s_is_an_error_that_names_the_row(tmp_path):
    ScoreCache(tmp_path, "key").fill(some_groups(), Scorer())
    with pytest.raises(TruelineError, match=r"data\.jsonl:1, response 0.*differ by 0\.0003"):
        ScoreCache(tmp_path, "key").fill(some_groups(), Scorer(offset=3e-4))
    ScoreCache(tmp_path, "key", tolerance=1e-2).fill(some_groups(), Scorer(offset=3e-4))


def test_a_damaged_shard_is_thrown_away_with_a_warning_and_computed_again(tmp_path):
    ScoreCache(tmp_path, "key").fill(some_groups(), Scorer(), batch=2)
    shard = sorted((tmp_path / "key").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    groups, scorer = some_groups(), Scorer()
    with pytest.warns(UserWarning, match="damaged"):
        cache = ScoreCache(tmp_path, "key")
    assert cache.fill(groups, scorer, recheck=0).computed == 4
    assert filled(groups) == Scorer()(some_groups())
    ScoreCache(tmp_path, "key").fill(some_groups(), scorer := Scorer(), recheck=0)
    assert not scorer.asked


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda groups: [], "for 0 groups, expected 6"),
        (lambda groups: [[[-1.0, -1.0]]] * 6, r"1 scores for row data\.jsonl:1, expected 2"),
        (lambda groups: [[[-1.0], [-1.0, -1.0]]] * 6, r"1 log-probs for row data\.jsonl:1, response 0.*its 2 counted"),
        (lambda groups: [[[-1.0, float("nan")], [-1.0, -1.0]]] * 6, r"data\.jsonl:1, response 0.*not finite"),
        (lambda groups: [[[-1.0, -1.0], [-1.0, float("-inf")]]] * 6, r"data\.jsonl:1, response 1.*\(-inf\)"),
    ],
)
def test_a_scorer_that_breaks_its_promise_is_named_and_nothing_is_cached(tmp_path, broken, message):
    cache = ScoreCache(tmp_path, "key")
    with pytest.raises(TruelineError, match=message):
        cache.fill(some_groups(), broken)
    assert len(cache) == 0 and not list((tmp_path / "key").iterdir())


def test_groups_without_tokens_are_refused_by_row(tmp_path):
    with pytest.raises(TruelineError, match=r"row x:1, response 0, has no tokens"):
        ScoreCache(tmp_path, "key").fill([Group("p", [Response("text")], origin="x:1")], Scorer())


BUILD = """
import sys
from trueline.engine.scorecache import ScoreCache
from trueline.groups import Group, Response

def score(groups):
    print(*(g.origin for g in groups), flush=True)
    return [[[-r.ids[0] / 7, -1 / 3] for r in g.responses] for g in groups]

def response(*ids):
    return Response(ids=list(ids), mask=[True] * len(ids))

groups = [Group("p", [response(n, 1), response(n, 2)], [9, n], origin=str(n)) for n in range(6)]
ScoreCache(sys.argv[1], "key").fill(groups, score, batch=2, recheck=0)
"""


@pytest.mark.slow
def test_a_kill_while_the_cache_is_built_loses_one_batch_and_the_rest_is_cut_as_before(tmp_path):
    def build(folder, point=None):
        environment = {k: v for k, v in os.environ.items() if k != failpoints.VARIABLE}
        environment |= {failpoints.VARIABLE: point} if point else {}
        command = [sys.executable, "-c", BUILD, str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    whole = build(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert build(tmp_path / "cut", "scorecache.build.middle:2").returncode == -9
    folder = tmp_path / "cut" / "key"
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors", ".tmp"]
    resumed = build(tmp_path / "cut")
    assert whole.stdout.splitlines() == ["0 1", "2 3", "4 5"] and resumed.stdout.splitlines() == ["2 3", "4 5"]
    files = [{p.name: p.read_bytes() for p in (tmp_path / run / "key").iterdir()} for run in ("whole", "cut")]
    assert files[0] == files[1] and len(files[0]) == 3


def test_the_half_written_shard_of_a_process_that_still_runs_is_left_alone(tmp_path):
    (tmp_path / "key").mkdir()
    mine = tmp_path / "key" / f"{os.getpid()}.tmp"
    mine.write_bytes(b"half")
    ScoreCache(tmp_path, "key")
    assert mine.exists()


# --- the scorer's key ------------------------------------------------------------------------------------------------


def tiny(**changes):
    torch.manual_seed(0)
    config = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(**{**config, "num_key_value_heads": 1, **changes})).eval()


def key(model, **changes):
    return scorer_key(model, **{"precision": "exact", "layout_mode": "shared", **changes})


def test_equal_models_have_equal_keys_and_training_mode_does_not_matter():
    assert key(tiny()) == key(tiny().train()) and len(key(tiny())) == 32


def test_one_changed_bit_of_one_weight_mints_a_new_key():
    model, changed = tiny(), tiny()
    with torch.no_grad():
        weight = changed.model.layers[0].mlp.down_proj.weight
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(1.0))
    assert key(model) != key(changed)


def test_what_else_changes_scores_changes_the_key():
    other_buffer = tiny()
    other_buffer.model.rotary_emb.inv_freq[0] *= 2
    eager = tiny()
    eager.config._attn_implementation = "eager"
    keys = {
        "plain": key(tiny()),
        "precision": key(tiny(), precision="fast"),
        "layout": key(tiny(), layout_mode="padded"),
        "setting": key(tiny(), temperature=0.7),
        "dtype": key(tiny().double()),
        "configuration": key(tiny(rms_norm_eps=1e-5)),
        "buffer": key(other_buffer),
        "attention": key(eager),
    }
    assert len(set(keys.values())) == len(keys)


def test_the_folder_a_model_came_from_does_not_change_its_key(tmp_path):
    tiny().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    models = [LlamaForCausalLM.from_pretrained(tmp_path / name).eval() for name in "ab"]
    assert key(models[0]) == key(models[1])


def test_an_adapter_counts_when_it_is_on_and_not_when_it_is_off():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj", "lm_head"], modules_to_save=["model.norm"])
    model = get_peft_model(tiny(), config)
    on, off = key(model), key(model, adapter_off=True)
    assert on != off
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 1
    assert key(trained) != on
    assert key(trained, adapter_off=True) == off
    with torch.no_grad():
        trained.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight[0, 0] += 1
    assert key(trained, adapter_off=True) != off


def test_a_key_does_not_depend_on_the_order_in_which_a_set_gives_its_items():
    from peft import LoraConfig, get_peft_model

    class Forwards(set):
        def __iter__(self):
            return iter(sorted(super().__iter__()))

    class Backwards(set):
        def __iter__(self):
            return iter(sorted(super().__iter__(), reverse=True))

    models = [get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "v_proj"])) for _ in range(2)]
    for model, kind in zip(models, (Forwards, Backwards), strict=True):
        model.peft_config["default"].target_modules = kind(["q_proj", "v_proj"])
        model.load_state_dict(models[0].state_dict())
    assert key(models[0]) == key(models[1])
