"""The bench: operations counted as by hand, ratios the right way round, peers on equal terms, rows that run when tiny."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, growth, page, rows, runner, sharing, workload
from benchmarks.flops import Counter
from benchmarks.meter import Meter
from benchmarks.peers import trl_dpo, trl_grpo
from tests.tiny import tiny_model
from trueline.engine.layout import Layout
from trueline.engine.policy import Policy
from trueline.groups import Group, Response

RESULT = {"units": 8.0, "seconds": 2.0, "peak_gb": 2.0, "imports_gb": 0.5, "parameters": 0}


def test_a_product_its_gradients_and_an_in_place_product_are_counted_as_by_hand():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    with Counter() as counter:
        (a @ b).sum().backward()
    assert counter.flops == 3 * (2 * 3 * 5 * 7)
    out = torch.zeros(3, 7)
    with torch.no_grad(), Counter() as counter:
        torch.mm(a, b, out=out)
        out.addmm_(a, b)
        torch.bmm(a[None], b[None])
        a.mv(b[:, 0])
    assert counter.flops == 3 * (2 * 3 * 5 * 7) + 2 * 3 * 5


def test_causal_attention_counts_half_its_square_forward_and_backward():
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    counts = []
    for causal in (False, True):
        with Counter() as counter:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()
        counts.append(counter.flops)
    products = 2 * 2 * 16 * 16 * 8  # of one of the seven: two forward, five backward with the scores again
    assert counts == [7 * products, 7 * products // 2]


def test_a_product_that_is_not_known_is_an_error_and_not_a_smaller_count():
    with pytest.raises(NotImplementedError, match="addbmm looks like a product"), Counter():
        torch.addbmm(torch.zeros(3, 7), torch.randn(2, 3, 5), torch.randn(2, 5, 7))


@pytest.mark.parametrize("share", [False, True])
def test_the_count_of_a_scored_group_is_the_bill_of_the_engine_notes(share: bool):
    """Body 2 N S, head 2 V D rows, attention 4 D pairs of tokens a layer: forward, no gradient."""
    model = tiny_model("llama", tie_word_embeddings=True)
    policy = Policy(model, max_length=64, layout="auto")
    prompt, responses = [3] * 12, [[4] * 6, [5] * 6]
    made = [Response(ids=r, mask=[True] * 6) for r in responses]
    groups = [Group("", made, prompt_ids=prompt)] if share else [Group("", [r], prompt_ids=prompt) for r in made]
    layout = Layout.of(groups)
    with torch.no_grad(), Counter() as counter:
        policy(layout)
    matrices = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2)
    tokens = 12 + 2 * 6 if share else 2 * 18
    pairs = 12**2 / 2 + 2 * (6 * 12 + 6**2 / 2) if share else 2 * 18**2 / 2
    config = model.config
    bill = 2 * matrices * tokens + 2 * 97 * 32 * 12 + 4 * 32 * config.num_hidden_layers * pairs
    assert counter.flops == pytest.approx(bill, rel=1e-6)


def test_the_meter_adds_up_regions_and_counts_only_inside_them():
    meter = Meter("count")
    a = torch.randn(4, 4)
    for _ in range(2):
        a @ a
        with meter.region():
            a @ a
    assert meter.flops == 2 * 2 * 4**3 and meter.seconds > 0
    profiled = Meter("profile")
    with profiled.region():
        a @ a
    assert "aten::" in profiled.table


def test_speed_and_memory_are_ours_over_the_peers_and_less_is_met_from_below():
    peer, ours = {**RESULT, "seconds": 10.0, "peak_gb": 8.0}, RESULT
    assert rows.speed(peer, ours) == pytest.approx(5.0)
    assert rows.memory(peer, ours) == pytest.approx(0.25)
    faster, smaller = rows.BY_NAME["dpo_live"], rows.BY_NAME["dpo_live_memory"]
    assert faster.met(5.0) and not faster.met(4.9) and not faster.met(5.5, faster.aim)
    assert smaller.met(0.35) and not smaller.met(0.36)


def test_what_exceeds_imports_weights_and_optimiser_takes_off_four_fp32_copies():
    side = {**RESULT, "parameters": 2**26, "peak_gb": 3.0, "imports_gb": 0.5}  # 2^26 x 4 copies x 4 bytes are 1 GiB
    assert rows.excess_gb(side) == pytest.approx(1.5)
    assert rows.excess({**side, "peak_gb": 7.5}, side) == pytest.approx(0.25)


def test_growth_is_of_further_groups_so_that_fixed_costs_do_not_hide_it():
    small, middle, large = ({"units": n, "prepare": 5.0 + 2e-4 * n} for n in (100, 10_000, 1_000_000))
    assert rows.prepare_growth(small, middle, large) == pytest.approx(1.0)
    large["prepare"] *= 2
    assert rows.prepare_growth(small, middle, large) == pytest.approx(2.0, rel=0.05)


def test_rounds_are_paired_and_a_list_of_rounds_is_taken_as_it_is():
    measured = {
        "trl_fp32": [{**RESULT, "seconds": s} for s in (10.0, 20.0)],
        "ours_fp32": [{**RESULT, "seconds": s, "gemm_rate": 100.0} for s in (2.0, 5.0)],
        "ours_sharing": [{"efficiency": [0.9, 0.95]}],
    }
    assert runner.row_values(rows.BY_NAME["dpo_live"], measured, {}) == [5.0, 4.0]
    assert runner.row_values(rows.BY_NAME["sharing"], measured, {}) == [0.9, 0.95]
    counts = {"ours_fp32": {"flops": 120.0, "units": 8.0}}
    assert runner.row_values(rows.BY_NAME["gemm_share"], measured, counts) == pytest.approx([0.6, 0.24])


def test_every_side_of_a_row_is_in_one_family_and_every_family_is_used():
    families = {side: number for number, family in enumerate(rows.FAMILIES) for side in family}
    assert set(families) == set(rows.SIDES) == {side for row in rows.ROWS for side in row.sides}
    for row in rows.ROWS:
        assert len({families[side] for side in row.sides}) == 1, row.name


def test_the_peers_train_on_the_same_terms():
    import benchmarks.ours as ours

    for name, settings in trl_dpo.SETTINGS.items():
        assert settings["per_device_train_batch_size"] == workload.BATCH and settings["beta"] == 0.1, name
        assert settings["learning_rate"] == ours.COMMON["learning_rate"]
        assert settings["max_grad_norm"] == ours.COMMON["max_grad_norm"]
    assert not trl_dpo.SETTINGS["fp32"]["bf16"] and not trl_dpo.SETTINGS["tuned"]["bf16"]
    assert not trl_grpo.SETTINGS["bf16"] and trl_grpo.SETTINGS["beta"] == ours.KL_WEIGHT
    assert "bf16" not in trl_dpo.SETTINGS["shipped"] and "gradient_checkpointing" not in trl_dpo.SETTINGS["shipped"]
    for row in rows.ROWS:  # the switch on one side is the switch on the other
        if row.peer and row.name not in ("dpo_best", "dpo_best_fp32"):
            peer, own = rows.SIDES[row.peer].settings, rows.SIDES[row.ours].settings
            assert bool(peer.get("switch")) == (own.get("precision") == "fast"), row.name


def test_sharing_counts_its_bound_and_both_ways_score_the_same_rows():
    assert sharing.bound(0.5, 2, 256) == pytest.approx(2 * 256 / (128 + 2 * 128))
    shared, apart = sharing.groups_of(0.5, 4, 32, tokens=100)
    assert len(shared) == 1 and len(apart) == 4
    layouts = [Layout.of(groups) for groups in (shared, apart)]
    assert layouts[0].segments[0].shared_end == 16 and len(layouts[1].ids_T) == 128
    policy = Policy(tiny_model("llama", vocab_size=sharing.VOCABULARY), max_length=32)
    logp, expected = (policy(layout).logp_N for layout in layouts)
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=0)


def test_made_up_groups_are_all_different(tmp_path: Path):
    growth.write_groups(tmp_path / "g.jsonl", 50)
    lines = (tmp_path / "g.jsonl").read_text().splitlines()
    assert len(set(lines)) == 50
    assert len({json.loads(line)["prompt"] for line in lines}) == 50


def test_the_made_up_words_are_one_token_each_when_the_folder_is_opened(tmp_path: Path):
    from transformers import AutoTokenizer

    growth.write_model(tmp_path / "tiny")
    gpu.prepare(tmp_path, gpu.SHAPES["tiny"], "cpu")
    unknown = 1
    ids = AutoTokenizer.from_pretrained(tmp_path / "tiny")("row 1 2 w13 w499")["input_ids"]
    assert len(ids) == 5 and unknown not in ids
    pair = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    shape = gpu.SHAPES["tiny"]
    assert [len(tokenizer(pair[k])["input_ids"]) for k in ("prompt", "chosen")] == [shape.prompt, shape.response - 1]
    assert 0 not in tokenizer(pair["prompt"])["input_ids"]  # the end token, which stands for unknown words, too


def _entry(**changes: object) -> dict[str, object]:
    sides = {"trl_fp32": {**RESULT, "seconds": 10.0}, "ours_fp32": RESULT}
    entry = {"ratio_median": 5.0, "ratio_min": 4.5, "ratio_max": 5.5, "target": 5.0, "met": True, "rounds": 3}
    return {**entry, "sides": sides, "flop_ratio": 3.0, "measured": "a machine", **changes}


def test_the_section_replaces_itself_and_rows_that_were_not_measured_stay(tmp_path: Path):
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    doc = tmp_path / "docs" / "benchmarks.md"
    doc.write_text("# Page\n\nBy hand.\n")
    page.write({"dpo_live": _entry()}, tmp_path)
    page.write({"dpo_live_memory": _entry(ratio_median=0.5, met=False)}, tmp_path)
    page.write({"dpo_live": _entry(ratio_median=6.25)}, tmp_path)
    text = doc.read_text()
    assert text.startswith("# Page\n\nBy hand.\n") and text.count(page.START) == text.count(page.END) == 1
    assert "**6.25×** (4.50×–5.50×) | 3.00× | ≥ 5.00× | ≥ 6.00× | aim |" in text and "**5.00×**" not in text
    assert "Missed: peak memory of it" in text
    results = json.loads((tmp_path / "benchmarks" / "results.json").read_text())
    assert list(results) == ["dpo_live", "dpo_live_memory"]
    assert {"ratio_median", "ratio_min", "ratio_max", "target", "met"} <= set(results["dpo_live"])


def test_rows_are_chosen_by_name_and_a_wrong_name_lists_them():
    assert [r.name for r in runner.chosen_rows(["scoring", "dpo_live"])] == ["dpo_live", "scoring"]
    assert len(runner.chosen_rows([])) == len(rows.ROWS)
    with pytest.raises(SystemExit, match=r"no row speed.*dpo_live"):
        runner.chosen_rows(["speed"])


def test_a_side_that_fails_stops_the_bench_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(rows.SIDES, "generate", rows.Side("benchmarks.nowhere:run"))
    bench = runner.Bench(workload.SMOKE, rounds=1, lanes=1, say=lambda _: None)

    def child(side: str, mode: str, core: int | None) -> dict[str, float]:
        if side == "generate":
            raise RuntimeError("The side 'generate' failed (time):\nnowhere")
        return {**RESULT}

    monkeypatch.setattr(bench, "_child", child)
    with pytest.raises(RuntimeError, match="nowhere"):
        bench.run(runner.chosen_rows(["sampling"]), tmp_path)


def test_sides_take_turns_and_a_missed_row_gets_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    bench = runner.Bench(workload.SMOKE, rounds=3, lanes=1, say=lambda _: None)

    def child(side: str, mode: str, core: int | None) -> dict[str, object]:
        calls.append((side, mode))
        seconds = 3.0 if side == "padded_loop" else 2.0
        return {**RESULT, "seconds": seconds, "flops": 100.0 if side == "padded_loop" else 80.0, "profile": "| mm |"}

    monkeypatch.setattr(bench, "_child", child)
    monkeypatch.setattr(runner, "COUNTS", tmp_path / "operations.json")
    entry = bench.run([replace(rows.BY_NAME["scoring"], must=1.6)], tmp_path)["scoring"]
    times = [side for side, mode in calls if mode == "time"]
    assert times == [
        "prepare",
        *["padded_loop", "ours_scoring"],
        *["ours_scoring", "padded_loop"],
        *["padded_loop", "ours_scoring"],
    ]
    assert entry["ratio_median"] == 1.5 and entry["flop_ratio"] == 1.25 and not entry["met"]
    assert entry["profile"] == "| mm |" and not (tmp_path / "operations.json").exists()  # smoke writes nothing


def test_utilisation_of_a_step_follows_the_engine_notes():
    shape = gpu.SHAPES["tiny"]
    model = tiny_model("qwen2", hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    assert shape.body == sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2)
    apart, shared = (gpu.model_flops(shape, "dpo", shared=s) for s in (False, True))
    tokens = (2 * 2 * 18, 2 * (12 + 2 * 6))
    pairs = (2 * 2 * 18**2 / 2, 2 * (12**2 / 2 + 2 * (6 * 12 + 6**2 / 2)))
    for found, t, p in zip((apart, shared), tokens, pairs, strict=True):
        assert found == 4 * (2 * shape.body * t + 4 * 32 * 2 * p + 2 * 300 * 32 * 2 * 2 * 6)
    assert gpu.unshared_tokens(shape, "grpo") == 2 * 2 * 18


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(rows.SIDES) - {s for s in rows.SIDES if s.startswith("trl_")}))
def test_every_side_but_trls_runs_when_tiny(name: str, prepared: Path):
    pytest.importorskip("trl")  # their settings are read by ours
    from importlib import import_module

    side = rows.SIDES[name]
    module, function = side.call.split(":")
    result = getattr(import_module(module), function)(prepared, workload.SMOKE, Meter(), **side.settings)
    assert result["units"] > 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    workload.prepare(folder, workload.SMOKE)
    return folder


@pytest.mark.slow
def test_the_padded_loop_and_ours_give_the_same_scores(prepared: Path):
    from benchmarks.ours import scoring
    from benchmarks.peers.scoring import run

    theirs, own = (call(prepared, workload.SMOKE, Meter()) for call in (run, scoring))
    assert own["logp"] == pytest.approx(theirs["logp"], abs=1e-2) and own["ranking"] == theirs["ranking"]


@pytest.mark.slow
@pytest.mark.parametrize("method", gpu.METHODS)
@pytest.mark.parametrize("variant", ["shared", "padded", "unchunked"])
def test_the_gpu_bench_runs_on_a_cpu_when_tiny(method: str, variant: str):
    cell = gpu.measure("tiny", method, variant, "cpu")
    assert cell["tokens_per_second"] > 0 and 0 < cell["utilisation_laid_out"] <= cell["utilisation"]
    assert cell["layout"] == ("padded" if variant == "padded" else "shared")
    assert "mean nothing" in cell["card"] and "tiny" in gpu.table([cell])
