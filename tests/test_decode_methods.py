"""Decoding methods: equal to uncached loops, to each other where the papers' equations coincide, and to the cost model."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from tests.tiny import tiny_model
from trueline.decoding import DecodeEngine, Request, Result
from trueline.decoding.exact import law
from trueline.decoding.models import TableModel
from trueline.decoding.rewards import ImplicitReward, ScalarReward, TableReward
from trueline.engine.draw import Law
from trueline.engine.policy import Policy
from trueline.engine.sampler import sample
from trueline.lab.tabular import EOS, tabular

PROMPTS = [[5, 9, 4, 33, 8], [11, 3], [7, 60, 21, 18, 44, 90, 12, 3, 3, 17, 29, 31]]
T = 8
MARGIN = 1e-3


@functools.cache
def model(family: str = "llama", head: str = "lm", seed: int = 0) -> Policy:
    return Policy(tiny_model(family, head=head, seed=seed), head=head)  # type: ignore[arg-type]


@functools.cache
def engine(family: str = "llama") -> DecodeEngine:
    return DecodeEngine(
        model(family),
        rewards={
            "rm": ScalarReward(model(family, "scalar", 3)),
            "implicit": ImplicitReward(model(family, "lm", 5), model(family)),
        },
        models={
            "aligned": model(family, "lm", 5),
            "self": model(family),
            "draft": model(family, "lm", 6),
            "draft_reference": model(family, "lm", 7),
        },
    )


def decode(
    method: str, options: dict | None = None, *, on: DecodeEngine | None = None, prompt: int = 0, **more
) -> Result:
    given = dict(max_new_tokens=T, eos_ids=(), seed=3, rewards={"rm": 1.0}) | more
    return (on or engine()).run([Request(PROMPTS[prompt], method, options or {}, **given)])[0][0]


# -- against loops without caches


def logits_after(policy: Policy, ids: list[int]) -> torch.Tensor:
    with torch.no_grad(), policy.plain_attention():
        return policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3_text", "mistral"])
def test_args_is_its_uncached_loop_token_by_token(family):
    lm, rm, k, weight = model(family), model(family, "scalar", 3), 4, 1.5
    for prompt in (0, 2):
        found = decode("args", {"k": k, "weight": weight}, on=engine(family), prompt=prompt)
        ids = list(PROMPTS[prompt])
        for t, token in enumerate(found.ids):
            z_V = logits_after(lm, ids)
            top = z_V.topk(k)
            rewards = torch.stack([logits_after(rm, [*ids, int(v)]) for v in top.indices])
            scores = top.values + weight * rewards
            if scores.topk(2).values.diff().abs() > MARGIN:
                assert token == int(top.indices[scores.argmax()]), f"token {t}"
            assert found.base_logp[t] == pytest.approx(float(z_V.log_softmax(-1)[token]), abs=1e-4)
            ids.append(token)
        assert found.reward == pytest.approx(float(logits_after(rm, ids)), abs=1e-4)


def test_plain_draws_what_the_sampler_draws():
    drawn = sample(model(), PROMPTS, 2, max_new_tokens=T, temperature=0.8, top_p=0.9, top_k=30, eos_ids=[2], seed=7)
    requests = [
        Request(p, max_new_tokens=T, law=Law(0.8, 0.9, 30), eos_ids=(2,), seed=7, stream=i, n=2)
        for i, p in enumerate(PROMPTS)
    ]
    for mine, theirs in zip(engine().run(requests), drawn, strict=True):
        for result, other in zip(mine, theirs, strict=True):
            assert (result.ids, result.finish) == (other.ids, other.finish)
            assert result.behaviour_logp == pytest.approx(other.behaviour_logp, abs=1e-4)


EVERY = [
    ("args", {"k": 3, "tau": 0.7}),
    ("best_of_n", {"n": 3}),
    ("soft_best_of_n", {"n": 3}),
    ("item_rejection", {"threshold": 1.0, "retries": 3}),
    ("cards", {"quantile": 0.7, "samples": 3, "uncertain": 2.0, "shortest": 2, "retries": 2}),
    ("entropy_gate+args", {"entropy_gate": {"nats": 3.0}, "args": {"k": 3}}),
    ("dera+args", {"dera": {"weight": 0.5}, "args": {"k": 3}}),
    ("guidance+best_of_n", {"best_of_n": {"n": 2}}),
    ("transfer_q", {"k": 2, "lookahead": 2, "rollouts": 2, "tau": 1.0, "baseline": "implicit"}),
    ("controlled_decoding", {"k": 2, "lookahead": -1}),
    ("deal", {"k": 2, "beams": 2, "lookahead": 2}),
    ("segment_beam", {"n": 3, "beams": 2, "segment": 3}),
    ("beam_search", {"beams": 2}),
    ("speculative", {"draft": 3}),
]


def test_a_response_depends_neither_on_its_neighbours_nor_on_what_it_leaves_behind():
    methods = dict(max_new_tokens=5, eos_ids=(2,), rewards={"rm": 1.0})
    requests = [Request(PROMPTS[i % 2], m, o, seed=i, n=1 + i % 2, **methods) for i, (m, o) in enumerate(EVERY)]
    together = engine().run(requests)
    assert set(engine().held().values()) == {0}
    crowded = DecodeEngine(
        model(), rewards=engine().rewards, models={n: v.model for n, v in engine().models.items()}, max_rows=3
    )
    for request, results in zip(requests, together, strict=True):
        alone = crowded.run([request])[0]
        assert [r.ids for r in alone] == [r.ids for r in results], request.method
        assert all(len(r.ids) == len(r.base_logp) and all(map(math.isfinite, r.base_logp)) for r in alone), (
            request.method
        )


# -- near duplicates


def test_without_weight_or_choice_every_token_search_is_greedy_decoding():
    greedy = decode("plain", law=Law(0.0)).ids
    assert decode("args", {"weight": 0.0}).ids == greedy
    assert decode("args", {"k": 1, "weight": 9.0}).ids == greedy
    assert decode("beam_search", {"beams": 1}).ids == greedy
    assert decode("deal", {"beams": 1, "k": 0, "weight": 0.0, "lookahead": 0}).ids == greedy
    assert decode("dera", {"weight": 0.0}, law=Law(0.0)).ids == greedy
    assert decode("guidance", {"scale": 1.0}, law=Law(0.0)).ids == greedy
    assert decode("speculative", {"weight": 0.0}, law=Law(0.0)).ids == greedy
    assert decode("entropy_gate+args", {"entropy_gate": {"nats": 99.0}}, law=Law(0.0)).ids == greedy


def test_args_deal_transfer_q_and_controlled_decoding_coincide_where_their_equations_do():
    greedy = decode("args", {"k": 4, "weight": 1.5})
    assert decode("deal", {"beams": 1, "k": 4, "lookahead": 0, "weight": 1.5}).ids == greedy.ids
    for method in ("transfer_q", "controlled_decoding"):
        assert decode(method, {"k": 4, "lookahead": 0, "weight": 1.5}).ids == greedy.ids
        drawn = decode(method, {"k": 4, "lookahead": 0, "weight": 1.5, "tau": 1.0})
        assert drawn.ids == decode("args", {"k": 4, "weight": 1.5, "tau": 1.0}).ids
        assert drawn.ids != greedy.ids
    ahead = {"k": 3, "lookahead": 2, "rollouts": 2, "weight": 2.0}
    own = decode("transfer_q", ahead, models={"aligned": "self"})
    assert own.ids == decode("controlled_decoding", ahead).ids
    assert own.ids != decode("transfer_q", ahead).ids
    indirect = decode("transfer_q", {**ahead, "baseline": "rm"})
    assert indirect.ids == decode("transfer_q", ahead).ids  # r_baseline = r: every omega is 1


def test_one_segment_makes_cards_item_rejection_and_segment_beam_best_of_n():
    whole = {"uncertain": 99.0, "longest": T, "shortest": 1, "alpha": 1.0, "target": 1.0, "retries": 3}
    item = decode("item_rejection", {"threshold": 1.0, "retries": 3})
    segments = decode("cards", whole)
    assert (segments.ids, segments.kl) == (item.ids, pytest.approx(item.kl, abs=1e-4))
    best = decode("best_of_n", {"n": 4})
    assert decode("segment_beam", {"n": 4, "beams": 1, "segment": T}).ids == best.ids
    assert best.reward == pytest.approx(max(best.details["candidates"]))


def test_cards_with_a_target_below_every_reward_never_rejects_and_draws_segments_of_the_policy():
    found = decode("cards", {"target": -99.0, "alpha": 1.0, "uncertain": 0.0, "shortest": 1, "longest": 9})
    assert found.counters.retries == 0 and len(found.details["segments"]) == T  # tau_u = 0: token by token
    fixed = decode("cards", {"target": -99.0, "alpha": 1.0, "uncertain": 99.0, "shortest": 3, "longest": 3})
    assert [part["tokens"] for part in fixed.details["segments"]] == [3, 3, 2]


@pytest.mark.parametrize("eos", [(), (2, 17, 30, 41)])
def test_beam_search_finds_what_transformers_finds(eos):
    for prompt in PROMPTS:
        mine = engine().run([Request(prompt, "beam_search", {"beams": 3}, max_new_tokens=6, eos_ids=eos)])[0][0]
        with model().plain_attention():
            theirs = model().model.generate(
                torch.tensor([prompt]), num_beams=3, max_new_tokens=6, do_sample=False, length_penalty=0.0,
                eos_token_id=list(eos) or None, pad_token_id=0, early_stopping=False,
            )  # fmt: skip
        ids = theirs[0, len(prompt) :].tolist()
        stop = next((i + 1 for i, token in enumerate(ids) if token in eos), len(ids))
        assert mine.ids == ids[:stop]


def test_deal_without_weight_is_beam_search():
    options = {"beams": 3, "k": 6, "weight": 0.0, "lookahead": 0}
    assert decode("deal", options).ids == decode("beam_search", {"beams": 3}).ids


def test_adding_a_function_of_the_prefix_to_the_reward_changes_no_token_of_args():
    def of_last(ids: tuple[int, ...]) -> float:
        return math.sin(7.0 * ids[-1] + len(ids))

    plain = TableReward(of_last)
    shifted = TableReward(lambda ids: of_last(ids) + math.cos(3.0 * sum(ids[:-1])))
    found = [decode("args", {"weight": 2.0}, on=DecodeEngine(model(), rewards={"rm": r})).ids for r in (plain, shifted)]
    assert found[0] == found[1]


# -- exact laws on the tabular model (more of them in test_decode_laws.py)


def worlds(seed: int = 0) -> tuple[DecodeEngine, dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
    """A tabular engine with gold as the reward of whole responses, log pi0 and gold by response."""
    world = tabular(seed)
    gold = dict(zip(world.sequences, world.reward_Y.tolist(), strict=True))
    table = TableModel(lambda ids: world.next_logp(tuple(i for i in ids[1:] if i != EOS)), 4)
    reward = TableReward(lambda ids: gold[ids], prefix=False)
    soft = TableReward(lambda ids: gold[ids] if ids[-1] == EOS else world.soft_value(ids, 0.5))
    engine = DecodeEngine(table, rewards={"gold": reward, "soft": soft})
    return engine, dict(zip(world.sequences, world.log_pi0_Y.tolist(), strict=True)), gold


def table_request(method: str, options: dict | None = None, reward: str = "gold") -> Request:
    return Request([0], method, options or {}, max_new_tokens=5, eos_ids=(EOS,), rewards={reward: 1.0})


def test_the_exact_law_of_plain_is_the_model_and_of_args_on_soft_values_the_tilted_optimum():
    engine, base, gold = worlds()
    found = law(engine, table_request("plain"))
    assert max(abs(found[y] - base[y]) for y in base) < 1e-12
    tilted = law(engine, table_request("args", {"k": 0, "weight": 2.0, "tau": 1.0}, "soft"))
    weights = {y: base[y] + gold[y] / 0.5 for y in base}
    total = math.log(sum(map(math.exp, weights.values())))
    assert 0.5 * sum(abs(math.exp(tilted[y]) - math.exp(weights[y] - total)) for y in base) < 1e-12


def test_behaviour_logp_is_the_law_that_was_enumerated():
    engine, _, _ = worlds()
    request = table_request("args", {"k": 3, "weight": 1.0, "tau": 0.7}, "soft")
    found = law(engine, request)
    result = engine.run([request])[0][0]
    assert sum(result.behaviour_logp) == pytest.approx(found[tuple(result.ids)], abs=1e-12)
    assert result.kl == pytest.approx(sum(result.behaviour_logp) - sum(result.base_logp))


def one_token_world() -> tuple[DecodeEngine, torch.Tensor, list[float]]:
    """Three responses of one token: an engine, their probabilities and rewards."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    r = [0.2, 1.0, -0.4]
    return DecodeEngine(TableModel(lambda ids: p.log(), 3), rewards={"r": TableReward(lambda ids: r[ids[-1]])}), p, r


def test_whole_sample_methods_have_the_laws_of_their_equations():
    engine, p, r = one_token_world()

    def found(method: str, options: dict) -> list[float]:
        exact = law(engine, Request([0], method, options, max_new_tokens=1))
        return [math.exp(exact.get((y,), -math.inf)) for y in range(3)]

    below = [sum(float(p[z]) for z in range(3) if r[z] < r[y]) for y in range(3)]
    assert found("best_of_n", {"n": 3}) == pytest.approx(
        [(below[y] + float(p[y])) ** 3 - below[y] ** 3 for y in range(3)]
    )
    soft = [sum(float(p[y] * p[z]) * 2 / (1 + math.exp((r[z] - r[y]) / 0.5)) for z in range(3)) for y in range(3)]
    assert found("soft_best_of_n", {"n": 2, "beta": 0.5}) == pytest.approx(soft)
    accept = [math.exp(min(0.0, (r[y] - 0.5) / 0.7)) for y in range(3)]
    capped = [float(p[y]) * accept[y] for y in range(3)]  # the first draw; then the better of it and an untested second
    for y in range(3):
        for z in range(3):
            capped[y if r[y] >= r[z] else z] += float(p[y]) * (1 - accept[y]) * float(p[z])
    assert found("item_rejection", {"threshold": 0.5, "beta": 0.7, "retries": 1}) == pytest.approx(capped)


def test_the_threshold_of_cards_rises_from_the_prompt_towards_the_target():
    reward = TableReward(lambda ids: 0.25 * len(ids) - 1.0)  # of the prompt alone: -1
    engine = DecodeEngine(TableModel(lambda ids: [0.0, 0.1, 0.2], 3), rewards={"r": reward})
    options = {"target": 2.0, "alpha": 0.25, "uncertain": 99.0, "shortest": 3, "longest": 3, "retries": 0}
    found = engine.run([Request([0], "cards", options, max_new_tokens=8)])[0][0]
    start = 0.75 * -1.0 + 0.25 * 2.0
    assert found.details["start"] == start
    said = [(part["tokens"], part["threshold"], part["reward"]) for part in found.details["segments"]]
    assert said == [
        (n, pytest.approx(start + t * (2.0 - start) / 8), 0.25 * t - 1) for n, t in ((3, 3), (3, 6), (2, 8))
    ]


def test_speculative_tokens_follow_the_shifted_law_whatever_the_draft_is():
    rows = torch.tensor([[0.2, 1.0, -0.5], [0.9, -0.4, 0.3]], dtype=torch.float64)

    def of(shift: float) -> TableModel:
        return TableModel(lambda ids: rows[len(ids) % 2] * shift + ids[-1] * 0.3 * torch.tensor([1.0, -1.0, shift]), 3)

    base, draft, start = of(1.0), of(-1.5), of(0.5)
    engine = DecodeEngine(base, models={"draft": draft, "draft_reference": start})
    found = law(engine, Request([1], "speculative", {"draft": 2, "weight": 0.7}, max_new_tokens=3, eos_ids=()))
    for y, logp in found.items():
        expected = 0.0
        for t in range(3):
            ids = (1, *y[:t])
            z = [torch.as_tensor(m.reader.logits(ids)) for m in (base, draft, start)]
            shifted = z[0] + 0.7 * (z[1].log_softmax(-1) - z[2].log_softmax(-1))
            expected += float(shifted.log_softmax(-1)[y[t]])
        assert logp == pytest.approx(expected, abs=1e-6)
    assert len(found) == 27


# -- costs (spec A.3; the last token of a line is drawn and never read, so T - 1 of T tokens are)

P = len(PROMPTS[0])


def test_the_counters_are_those_of_the_cost_model():
    plain = decode("plain").counters
    assert (plain.lm_tf, plain.rm_tf, plain.depth) == (P + T - 1, 0, T)
    best = decode("best_of_n", {"n": 4}).counters
    assert (best.lm_tf, best.rm_tf, best.rm_calls, best.depth) == (P + 4 * (T - 1), P + 4 * T, 4, T + 1)
    assert best.discarded_tokens == 3 * T
    args = decode("args", {"k": 4}).counters
    assert (args.lm_tf, args.rm_tf, args.rm_calls, args.depth) == (P + T - 1, P + 4 * T, 4 * T, 2 * T)
    dera = decode("dera", {"weight": 0.5}).counters
    assert (dera.lm_tf, dera.depth) == (2 * (P + T - 1), T)
    easy = decode("cards", {"target": -99.0, "alpha": 1.0, "uncertain": 99.0, "longest": 4}).counters
    assert (easy.lm_tf, easy.rm_tf, easy.rm_calls) == (P + T - 1, P + T, 1 + T // 4)


def test_lookahead_costs_its_own_tokens_and_no_prefix():
    k, ahead, rollouts = 3, 2, 2
    found = decode("controlled_decoding", {"k": k, "lookahead": ahead, "rollouts": rollouts}, max_new_tokens=4)
    # a branch is read once; of a rollout all but its last token; rollouts end at the limit: 2, 2, 1, 0 tokens after the branch
    grown = [min(ahead, 4 - t - 1) for t in range(4)]
    reads = sum(k * (1 + rollouts * (n - 1)) for n in grown if n)
    assert found.counters.lm_tf == P + reads
    assert found.counters.rm_calls == sum(k * (rollouts if n else 1) for n in grown)
    assert found.counters.rm_tf == P + sum(k * (1 + rollouts * n) for n in grown)


def test_rejected_segments_cost_their_own_tokens_and_are_counted():
    found = decode("item_rejection", {"threshold": 99.0, "retries": 3})
    assert found.counters.retries == 3 and found.counters.discarded_tokens == 3 * T
    assert found.counters.lm_tf == P + 4 * (T - 1) and found.counters.rm_tf == P + 4 * T
    assert found.kl == pytest.approx(math.log(4) - 3 / 4, abs=1e-5)
