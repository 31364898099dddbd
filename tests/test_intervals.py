"""Intervals hold the truth as often as they claim, and refuse what they cannot know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trueline.errors import TruelineError
from trueline.intervals import bootstrap_mean, paired_difference, two_level_difference, two_level_mean, wilson


def test_wilson_agrees_with_scipy():
    for successes, n in ((0, 5), (3, 10), (250, 500), (40, 40)):
        expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
        found = wilson(successes, n)
        assert found.low == pytest.approx(expected.low, abs=1e-12)
        assert found.high == pytest.approx(expected.high, abs=1e-12)
        assert found.value == successes / n


def test_wilson_covers_a_known_rate_93_to_97_percent_of_the_time():
    rng = np.random.default_rng(1)
    for rate, n in ((0.5, 256), (0.8, 256), (0.1, 128)):
        drawn = rng.binomial(n, rate, size=1000)
        held = [wilson(int(k), n).low <= rate <= wilson(int(k), n).high for k in drawn]
        assert 0.93 <= np.mean(held) <= 0.97, (rate, n, np.mean(held))


@pytest.mark.slow
def test_bootstrap_covers_a_known_rate_93_to_97_percent_of_the_time():
    rng = np.random.default_rng(2)
    held = []
    for i in range(1000):
        found = bootstrap_mean(rng.random(120) < 0.3, resamples=600, seed=i, bounds=(0, 1))
        held.append(found.low <= 0.3 <= found.high)
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.slow
def test_resampling_prompts_whole_covers_where_resampling_rows_does_not():
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(60), 4)
    whole, rows = [], []
    for i in range(1000):
        values = rng.normal(size=60)[prompts] + 0.3 * rng.normal(size=240)
        a = bootstrap_mean(values, prompts.tolist(), resamples=400, seed=i)
        b = bootstrap_mean(values, resamples=400, seed=i)
        whole.append(a.low <= 0 <= a.high)
        rows.append(b.low <= 0 <= b.high)
    assert 0.92 <= np.mean(whole) <= 0.97
    assert np.mean(rows) < 0.8


def test_interval_is_close_to_the_textbook_one_for_a_normal_mean():
    values = np.random.default_rng(4).normal(5, 2, size=400)
    found = bootstrap_mean(values, resamples=8000)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert found.n == 400


def test_clusters_of_unequal_size_weigh_by_their_values_and_count_as_units():
    found = bootstrap_mean([1.0, 1.0, 1.0, 0.0, 0.5], ["a", "a", "a", "b", "c"])
    assert found.value == pytest.approx(3.5 / 5)
    assert found.n == 3


def test_a_share_of_one_still_has_an_interval():
    found = bootstrap_mean([1.0] * 20, bounds=(0.0, 1.0))
    assert found.high == 1.0
    assert found.low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="wilson").low, abs=1e-12)


def test_a_constant_unbounded_value_has_no_width():
    found = bootstrap_mean([0.0] * 5)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_values_equal_up_to_rounding_have_no_width():
    a = np.linspace(0.1, 0.9, 40)
    found = paired_difference(a + 0.3, a)
    assert (found.low, found.high) == pytest.approx((0.3, 0.3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -3.0, 1e6]), min_size=2, max_size=12))
def test_every_interval_is_finite_and_ordered(values):
    found = bootstrap_mean(values, resamples=200)
    assert found.low <= found.high
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9


def test_pairing_removes_what_varies_between_prompts():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 10, size=300)
    a, b = hard + rng.normal(0.5, 1, size=300), hard + rng.normal(0, 1, size=300)
    paired, one = paired_difference(a, b), bootstrap_mean(a)
    assert paired.high - paired.low < 0.35 < 1.5 < one.high - one.low
    assert paired.low < 0.5 < paired.high


@pytest.mark.slow
def test_two_level_intervals_cover_at_five_seeds_where_prompts_alone_do_not():
    rng = np.random.default_rng(6)
    two, prompts_only = [], []
    for i in range(1000):
        values = rng.normal(size=(5, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(5, 40))
        a = two_level_mean(values, resamples=300, seed=i)
        b = bootstrap_mean(values.mean(0), resamples=300, seed=i)
        two.append(a.low <= 0 <= a.high)
        prompts_only.append(b.low <= 0 <= b.high)
    assert 0.93 <= np.mean(two) <= 0.98, np.mean(two)
    assert np.mean(prompts_only) < 0.75


def test_two_level_standard_error_counts_seeds_and_prompts():
    rng = np.random.default_rng(7)
    values = 3 * rng.normal(size=(8, 1)) + 2 * rng.normal(size=(1, 50))
    found = two_level_mean(values, resamples=20_000)
    seeds, prompts = values.mean(1).var(ddof=1) / 8, values.mean(0).var(ddof=1) / 50
    half = stats.t.ppf(0.975, 7) * np.sqrt(seeds + prompts)  # additive effects: the two-way variance of the mean
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_two_level_difference_is_paired_on_both_levels():
    rng = np.random.default_rng(8)
    common = 5 * rng.normal(size=(5, 1)) + 5 * rng.normal(size=(1, 64))
    found = two_level_difference(common + 0.2, common + 0.01 * rng.normal(size=(5, 64)))
    assert found.low == pytest.approx(0.2, abs=0.02)
    assert found.high == pytest.approx(0.2, abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(9).normal(size=50)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap_mean([1.0, float("nan"), 2.0]), "number 1"),
        (lambda: bootstrap_mean([]), "non-empty"),
        (lambda: bootstrap_mean([1.0]), "at least two"),
        (lambda: bootstrap_mean([1.0, 2.0], ["a"]), "2 values and 1 prompts"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 and 1"),
        (lambda: two_level_mean([[1.0, 2.0]]), "this seed only"),
        (lambda: two_level_difference(np.zeros((2, 3)), np.zeros((2, 2))), "one shape"),
        (lambda: wilson(3, 2), "3 of 2"),
    ],
)
def test_what_cannot_have_an_interval_is_refused(call, says):
    with pytest.raises(TruelineError, match=says):
        call()
