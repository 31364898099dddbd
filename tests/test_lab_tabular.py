"""The enumerated world is exact: sums, optimum and soft values agree with each other and with brute force."""

import math

import numpy as np
import pytest

from trueline.errors import TruelineError
from trueline.lab.tabular import EOS, tabular
from trueline.randomness import derive

SEEDS = range(5)


def test_there_are_121_sequences_whose_probabilities_sum_to_one():
    for seed in SEEDS:
        world = tabular(seed)
        assert len(world.sequences) == len(set(world.sequences)) == len(world.logits) == 121
        assert abs(np.exp(world.log_pi0_Y).sum() - 1) < 1e-12
        assert all(y[-1] == EOS and EOS not in y[:-1] and len(y) <= 5 for y in world.sequences)


def test_the_last_token_is_forced():
    logp = tabular(0).next_logp((0, 1, 2, 0))
    assert logp.tolist() == [-math.inf, -math.inf, -math.inf, 0.0]


def test_gold_is_the_formula():
    world, rng = tabular(3), np.random.default_rng(derive(3, "tabular"))
    for _ in range(121):
        rng.standard_normal(4)
    w, e = rng.standard_normal(3), rng.standard_normal(121)
    y = (0, 0, 1, EOS)
    place = world.sequences.index(y)
    assert world.reward_Y[place] == pytest.approx(math.tanh(2 * w[0] + w[1]) - 0.5 - 0.1 + 0.5 * e[place])


def test_the_optimum_is_the_maximiser():
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        world, beta = tabular(seed), 0.3
        best = world.optimum(beta)
        value = world.expected_reward(best) - beta * world.kl(best)
        assert value == pytest.approx(world.soft_value((), beta), abs=1e-12)
        for _ in range(20):
            other = best + 0.3 * rng.standard_normal(121)
            other -= np.log(np.exp(other).sum())
            assert world.expected_reward(other) - beta * world.kl(other) < value


def test_token_by_token_the_optimum_is_the_same_distribution():
    world, beta = tabular(1), 0.5
    steps = [sum(world.optimal_next_logp(y[:t], beta)[y[t]] for t in range(len(y))) for y in world.sequences]
    assert np.allclose(steps, world.optimum(beta), atol=1e-12)


def test_win_rates_are_complements_and_half_against_oneself():
    world = tabular(2)
    best = world.optimum(0.3)
    assert world.win_rate(best, best) == pytest.approx(0.5)
    assert world.win_rate(best) + world.win_rate(world.log_pi0_Y, best) == pytest.approx(1.0)


def test_a_sharper_optimum_wins_more_at_more_kl():
    ranges = {1.0: ((0.1, 0.8), (0.55, 0.85)), 0.3: ((0.8, 2.2), (0.8, 0.97)), 0.1: ((1.8, 6.0), (0.92, 1.0))}
    for seed in SEEDS:
        world = tabular(seed)
        kls = [world.kl(world.optimum(beta)) for beta in ranges]
        wins = [world.win_rate(world.optimum(beta)) for beta in ranges]
        assert kls == sorted(kls)
        assert wins == sorted(wins)
        for (kl, win), (kl_range, win_range) in zip(zip(kls, wins, strict=True), ranges.values(), strict=True):
            assert kl_range[0] <= kl <= kl_range[1], (seed, kl)
            assert win_range[0] <= win <= win_range[1], (seed, win)


def test_what_is_not_a_prefix_is_refused():
    with pytest.raises(TruelineError, match="not a prefix"):
        tabular(0).next_logp((0, 7))
    with pytest.raises(TruelineError, match="starts with"):
        tabular(0).soft_value((EOS, 0), 1.0)
