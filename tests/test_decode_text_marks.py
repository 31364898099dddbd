"""Watermarks: the laws they draw from, their detectors, and alignment resampling over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.tiny import tiny_config
from trueline.decoding import DecodeEngine, Request
from trueline.decoding.exact import law
from trueline.decoding.models import TableModel
from trueline.decoding.rewards import TableReward
from trueline.decoding.watermark import GreenList, GumbelMark, uniforms_of, watermark
from trueline.engine.draw import Law
from trueline.errors import TruelineError

V = 50


def flat(vocabulary: int = V) -> TableModel:
    """Every token equally likely, always."""
    return TableModel(lambda ids: torch.zeros(vocabulary, dtype=torch.float64), vocabulary)


def texts(method: str, options: dict[str, Any], *, count: int = 1, length: int = 200, **given: Any) -> list[list[int]]:
    engine = DecodeEngine(flat(), **given.pop("engine", {}))
    requests = [
        Request([i % V, 1, 2, 3], method, options, max_new_tokens=length, seed=i, **given) for i in range(count)
    ]
    return [result[0].ids for result in engine.run(requests)]


# -- KGW ---------------------------------------------------------------------------------------------------------------


def test_green_lists_are_those_of_transformers_and_its_detector_reads_our_text() -> None:
    from transformers import WatermarkDetector, WatermarkingConfig
    from transformers.generation.logits_process import WatermarkLogitsProcessor

    theirs = WatermarkLogitsProcessor(V, "cpu", greenlist_ratio=0.25, bias=2.0)
    ours = GreenList(V, 0.25, 2.0, 1, 15485863)
    for token in range(V):
        expected = set(theirs._get_greenlist_ids(torch.tensor([token])).tolist())
        assert set(ours.green((token,)).nonzero()[:, 0].tolist()) == expected
    (ids,) = texts("kgw", {"delta": 3.0})
    detector = WatermarkDetector(tiny_config("llama", vocab_size=V), "cpu", WatermarkingConfig(bias=3.0))
    said = detector(torch.tensor([ids]), return_dict=True)
    found = ours.detect(ids, unique=False)
    assert said.num_tokens_scored[0] == found.tokens and said.num_green_tokens[0] == found.score
    exact = (found.score - found.tokens * 12 / 50) / math.sqrt(
        found.tokens * 0.24 * 0.76
    )  # 12 of 50, not the quarter asked for
    assert found.z == pytest.approx(exact, abs=1e-12)


def test_several_context_tokens_all_count() -> None:
    """In transformers the width has no effect with a left hash."""
    mark = GreenList(V, 0.5, 2.0, 2, 1)
    assert not torch.equal(mark.green((1, 7)), mark.green((2, 7))) and not torch.equal(
        mark.green((1, 7)), mark.green((7, 1))
    )


def test_green_logits_rise_by_delta_and_nothing_else_moves() -> None:
    mark = GreenList(V, 0.25, 1.5, 1, 3)
    logits = torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = mark.shape([4, 9], logits) - logits
    assert torch.allclose(moved, mark.green((9,)).double() * 1.5, atol=1e-12)
    assert torch.equal(GreenList(V, 0.25, 1.5, 3, 3).shape([4, 9], logits), logits)  # too few tokens to seed it


def test_delta_0_is_the_unmarked_draw() -> None:
    assert texts("kgw", {"delta": 0.0}, count=3, length=20) == texts("plain", {}, count=3, length=20)


def test_z_is_standard_normal_on_unmarked_text_and_p_is_exact() -> None:
    rng = np.random.default_rng(0)
    found = [
        GreenList(V, 0.25, 2.0, 1, int(key)).detect(rng.integers(0, V, 80).tolist())
        for key in rng.integers(1, 2**40, 150)
    ]
    z = np.array([d.z for d in found])
    assert abs(z.mean()) < 0.25 and 0.85 < z.std() < 1.15
    one = found[0]
    assert one.p == pytest.approx(stats.binom.sf(one.score - 1, one.tokens, 12 / 50), abs=1e-12)
    assert 0.35 < np.mean([d.p < 0.5 for d in found]) < 0.6


@pytest.mark.parametrize("method", ["kgw", "gumbel"])
def test_z_grows_with_the_root_of_the_length(method: str) -> None:
    options = {"delta": 2.0} if method == "kgw" else {}
    mark = watermark(method, V, options)
    made = texts(method, options, count=3, length=160)
    z = {n: np.mean([mark.detect(ids[:n]).z for ids in made]) for n in (40, 160)}
    assert z[40] > 2.5 and z[160] / z[40] == pytest.approx(2.0, rel=0.25)


def test_repeats_are_scored_once() -> None:
    for method in ("kgw", "gumbel"):
        mark = watermark(method, V, {"context": 1})
        once, again = [3, 7, 3], [3, 7] * 40 + [3]
        assert mark.detect(again) == mark.detect(once) and mark.detect(once).tokens == 2
        assert abs(mark.detect(again, unique=False).z) > 4 * abs(mark.detect(once).z)


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.1, 1.2, 0.001, math.nan])
def test_a_gamma_that_marks_nothing_is_refused(gamma: float) -> None:
    with pytest.raises(TruelineError, match=f"gamma is {gamma} of {V} tokens"):
        texts("kgw", {"gamma": gamma}) if gamma == gamma else GreenList(V, gamma, 2.0, 1, 1)


def test_a_detector_refuses_what_it_cannot_read() -> None:
    mark = watermark("kgw", V, {})
    with pytest.raises(TruelineError, match="1 tokens are too few"):
        mark.detect([3])
    with pytest.raises(TruelineError, match="Token id 50 is beyond the 50"):
        mark.detect([3, 50])
    with pytest.raises(TruelineError, match="kgw has no option 'gama'"):
        watermark("kgw", V, {"gama": 0.5})


# -- Gumbel ------------------------------------------------------------------------------------------------------------

LAW = np.array([0.6, 0.3, 0.1])


def draws(randomised: bool, keys: int) -> np.ndarray:
    """Frequency of each token over keys, in the last of which lies the only chance."""
    uniforms = np.random.default_rng(1).random(keys)
    logp = torch.from_numpy(np.log(LAW))
    counts = np.zeros(3)
    for key in range(keys):
        token = GumbelMark(3, 1, key, randomised).draw([0], logp, uniforms[key])
        counts[int(token if token is not None else -1)] += 1
    return counts / keys


def test_the_argmax_is_drawn_from_the_law_itself() -> None:
    assert np.abs(draws(False, 4_000) - LAW).max() < 0.025


def test_the_randomised_law_is_the_known_distortion() -> None:
    """Exactly E[u^(1/p) / sum]: (.5695, .3163, .1143) for (.6, .3, .1); a wrong exponent gives other numbers."""
    u = np.random.default_rng(0).random((200_000, 3))
    powers = u ** (1 / LAW)
    expected = (powers / powers.sum(1, keepdims=True)).mean(0)
    assert np.abs(expected - [0.5695, 0.3163, 0.1143]).max() < 0.002
    assert np.abs(draws(True, 4_000) - expected).max() < 0.02


def test_numbers_are_uniform_and_independent() -> None:
    u = uniforms_of(np.uint64(12345), np.arange(50_000, dtype=np.uint64))
    assert stats.kstest(u, "uniform").pvalue > 0.01 and u.min() > 0 and u.max() < 1
    other = uniforms_of(np.uint64(12346), np.arange(50_000, dtype=np.uint64))
    assert abs(np.corrcoef(u, other)[0, 1]) < 0.02 and abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02


def test_small_probabilities_do_not_underflow() -> None:
    logp = torch.tensor([-1e-12, -60.0, -80.0], dtype=torch.float64)
    keys = GumbelMark(3, 1, 1, True).keys([0], logp.numpy())
    assert np.isfinite(keys).all()
    assert GumbelMark(3, 1, 1, False).draw([0], torch.tensor([-math.inf, 0.0, -math.inf]), 0.3) == 1


def test_the_score_of_unmarked_text_is_gamma() -> None:
    rng = np.random.default_rng(2)
    found = [GumbelMark(V, 4, int(key), False).detect(rng.integers(0, V, 104).tolist()) for key in range(150)]
    z = np.array([d.z for d in found])
    assert abs(z.mean()) < 0.25 and 0.87 < z.std() < 1.15  # the public detector's spread is sqrt 6 / pi = 0.78
    assert stats.kstest([d.p for d in found], "uniform").pvalue > 0.01
    one = found[0]
    assert one.z == pytest.approx((one.score - 100) / 10, abs=1e-12) and one.p == pytest.approx(
        stats.gamma.sf(one.score, 100)
    )


def test_the_mark_leans_on_the_law_that_is_drawn_from() -> None:
    """Top-k leaves two tokens: the marked draw stays inside them."""
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    engine = DecodeEngine(TableModel(lambda ids: logits, 4))
    found = engine.run([Request([1], "gumbel", {"context": 1}, max_new_tokens=40, law=Law(1.0, top_k=2))])[0][0]
    assert set(found.ids) <= {0, 1}


def test_gumbel_is_refused_where_it_would_leave_no_mark() -> None:
    with pytest.raises(TruelineError, match="at temperature 0 there is none"):
        texts("gumbel", {}, law=Law(0.0))
    with pytest.raises(TruelineError, match="gumbel marks draws, and args chooses"):
        texts("gumbel+args", {}, engine={"rewards": {"r": TableReward(len)}})
    assert len(texts("kgw", {}, law=Law(0.0), length=5)[0]) == 5  # marked logits serve greedy decoding too


# -- alignment resampling ----------------------------------------------------------------------------------------------


def resampled(
    mark: dict[str, Any], n: int, reward: Any, *, method: str = "kgw", count: int = 1, length: int = 12
) -> list[Any]:
    engine = DecodeEngine(flat(), rewards={"r": TableReward(reward, prefix=False)})
    options = {method: mark, "alignment_resampling": {"n": n}}
    asked = [
        Request([5], f"{method}+alignment_resampling", options, max_new_tokens=length, seed=i) for i in range(count)
    ]
    return [result[0] for result in engine.run(asked)]


def test_it_is_best_of_n_on_the_marked_proposal() -> None:
    engine = DecodeEngine(flat(), rewards={"r": TableReward(sum, prefix=False)})
    request = Request([5], "kgw+best_of_n", {"best_of_n": {"n": 4}}, max_new_tokens=12, seed=3)
    best = engine.run([request])[0][0]
    ours = resampled({}, 4, sum, count=4)[3]
    assert ours.ids == best.ids and ours.reward == max(ours.details["candidates"])


def test_a_constant_reward_gives_the_first_sample_and_says_so() -> None:
    found = resampled({}, 4, lambda ids: 1.0)[0]
    assert found.ids == resampled({}, 1, lambda ids: 1.0)[0].ids or found.details["fallback"]
    assert found.details == {"candidates": [1.0] * 4, "fallback": "all candidates score the same"}


def test_the_first_sample_is_returned_where_none_can_be_scored() -> None:
    def broken(ids: tuple[int, ...]) -> float:
        raise ValueError("no")

    found = resampled({}, 3, broken)[0]
    assert found.details == {"candidates": [None] * 3, "fallback": "no candidate could be scored"}
    constant = resampled({}, 3, lambda ids: 0.0)[0]
    assert found.ids == constant.ids and found.reward is None  # candidate 0 of both


def test_samples_that_cannot_differ_are_refused() -> None:
    with pytest.raises(TruelineError, match="gives 4 equal samples"):
        resampled({}, 4, sum, method="gumbel")
    with pytest.raises(TruelineError, match="needs a watermark"):
        engine = DecodeEngine(flat(), rewards={"r": TableReward(sum)})
        engine.run([Request([5], "alignment_resampling", {})])
    spread = resampled({"randomised": True, "context": 1}, 4, sum, method="gumbel", count=3)
    assert any(len(set(found.details["candidates"])) > 1 for found in spread)


def test_the_exact_law_is_best_of_n_of_the_marked_law_and_delta_0_of_the_unmarked_one() -> None:
    """Three responses of one token: P(y) = F(y)^n - F-(y)^n of the marked probabilities, in order of reward."""
    logp = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    rewards = {(0,): 0.0, (1,): 1.0, (2,): 2.0}
    engine = DecodeEngine(
        TableModel(lambda ids: logp, 3), rewards={"r": TableReward(rewards.__getitem__, prefix=False)}
    )
    for delta, n in ((1.5, 1), (1.5, 3), (0.0, 2)):
        green = GreenList(3, 0.5, delta, 1, 15485863).green((1,)).double()
        assert green.sum() == 1  # int(1.5)
        p = (logp + delta * green).softmax(-1).numpy()
        options = {"kgw": {"gamma": 0.5, "delta": delta}, "alignment_resampling": {"n": n}}
        found = law(engine, Request([1], "kgw+alignment_resampling", options, max_new_tokens=1))
        below = np.concatenate([[0.0], np.cumsum(p)])
        for (token,), logp_found in found.items():
            assert math.exp(logp_found) == pytest.approx(below[token + 1] ** n - below[token] ** n, abs=1e-12)


def test_resampling_wins_back_the_reward_that_a_mark_costs() -> None:
    """A refusal token that the green list leaves out: its rate falls with delta, and two samples bring it back above the unmarked one."""
    key = next(k for k in range(1, 99) if not GreenList(3, 0.5, 0.0, 1, k).green((1,))[2])
    logp = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64).log()
    engine = DecodeEngine(
        TableModel(lambda ids: logp, 3), rewards={"r": TableReward(lambda ids: float(ids[0] == 2), prefix=False)}
    )

    def rate(delta: float, n: int) -> float:
        options = {"kgw": {"gamma": 0.5, "delta": delta, "key": key}, "alignment_resampling": {"n": n}}
        return math.exp(law(engine, Request([1], "kgw+alignment_resampling", options, max_new_tokens=1))[(2,)])

    assert rate(0.0, 1) == pytest.approx(0.3)
    assert rate(1.0, 1) < rate(0.5, 1) < 0.3 < rate(1.0, 2)


def test_two_samples_gain_sigma_over_root_pi_as_the_bound_says() -> None:
    """1,000 equally likely responses with normal scores as rewards, n = 2: sigma / sqrt pi, where the paper's bound is an equality."""
    scores = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    below = np.arange(1001) / 1000
    gain = float(scores @ (below[1:] ** 2 - below[:-1] ** 2))  # the law of the test above
    assert gain == pytest.approx(1 / math.sqrt(math.pi), abs=2e-3)
    assert math.sqrt(math.log(2)) / math.sqrt(math.pi * math.log(2)) == pytest.approx(1 / math.sqrt(math.pi))


def test_resampling_leaves_detection_alone_only_if_the_reward_does_not_know_the_mark() -> None:
    """Texts of 60 tokens from the marked law, four a prompt: z of the one that is chosen."""
    mark = GreenList(V, 0.25, 1.0, 1, 15485863)
    green_VV = np.stack([mark.green((token,)).numpy() for token in range(V)])
    edges_VV = np.cumsum(np.exp(green_VV) / np.exp(green_VV).sum(1, keepdims=True), axis=1)
    rng = np.random.default_rng(0)
    made = np.zeros((80, 4, 61), dtype=int)
    for place in range(60):
        made[..., place + 1] = (rng.random((80, 4, 1)) > edges_VV[made[..., place]]).sum(-1).clip(max=V - 1)
    z = np.array([[mark.detect(ids.tolist()).z for ids in four] for four in made])
    alone = z[:, 0].mean()
    assert alone > 2
    assert z[np.arange(80), rng.integers(0, 4, 80)].mean() == pytest.approx(alone, abs=0.45)  # a reward of its own
    assert (
        z.max(1).mean() > alone + 0.7 and z.min(1).mean() < alone - 0.7
    )  # one that rises or falls with the green count
