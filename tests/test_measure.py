"""Measures give the number of their definition, ties included."""

import math

import pytest

from trueline.errors import TruelineError
from trueline.measure.contract import Reading
from trueline.measure.kl import kl
from trueline.measure.ranking_accuracy import ranking_accuracy
from trueline.measure.reward_accuracy import reward_accuracy
from trueline.measure.win_rate import outcomes, win_rate


def test_win_rate_compares_every_sample_with_every_opponent_and_halves_ties():
    assert outcomes([[2.0], [0.0, 3.0]], [[1.0, 2.0, 3.0, 0.0], [0.0, 1.0]]) == [2.5 / 4, (0.5 + 0 + 1 + 1) / 4]
    reading = win_rate([[2.0], [0.0]], [[1.0, 2.0], [0.0, 1.0]])
    assert reading.value == pytest.approx((0.75 + 0.25) / 2)
    assert reading.n == 2
    assert reading.unit == "share"


def test_win_rate_of_swapped_sides_is_the_complement():
    a, b = [[1.0, 2.0], [0.5], [3.0]], [[2.0], [0.5, 0.1], [4.0]]
    assert win_rate(a, b).value + win_rate(b, a).value == pytest.approx(1.0)


def test_winning_always_is_not_certain_from_ten_prompts():
    reading = win_rate([[1.0]] * 10, [[0.0]] * 10)
    assert reading.value == 1.0
    assert reading.low == pytest.approx(0.722, abs=1e-3)  # Wilson, 10 of 10


def test_reward_accuracy_counts_a_tie_as_wrong_and_ranking_accuracy_as_right():
    chosen, rejected = [1.0, 0.0, -1.0, 2.0], [0.0, 0.0, 1.0, 1.0]
    assert reward_accuracy(chosen, rejected).value == 0.5
    assert ranking_accuracy(chosen, rejected).value == 0.75
    assert reward_accuracy(chosen, rejected).name == "reward_accuracy"


def test_pairs_of_one_prompt_are_one_unit():
    chosen, rejected = [1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    reading = reward_accuracy(chosen, rejected, ["a", "a", "b", "c"])
    assert reading.value == 0.75
    assert reading.n == 3


def test_kl_is_the_mean_over_responses_in_nats():
    reading = kl([1.0, 3.0, 2.0], ["a", "b", "c"])
    assert (reading.value, reading.unit, reading.name) == (2.0, "nats", "kl")
    assert reading.low < 2.0 < reading.high
    start = kl([0.0, 0.0])
    assert (start.value, start.low, start.high) == (0.0, 0.0, 0.0)


def test_a_reading_of_one_prompt_has_a_value_and_no_interval():
    reading = Reading.of_mean("length", [3.0, 5.0], unit="tokens", clusters=["a", "a"])
    assert (reading.value, reading.low, reading.high, reading.n) == (4.0, None, None, 1)


def test_a_reading_writes_everything_but_its_name():
    row = kl([1.0, 2.0, 4.0]).renamed("kl/other").to_json()
    assert sorted(row) == ["high", "low", "n", "scope", "unit", "value"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: win_rate([[1.0]], [[1.0], [2.0]]), "1 and 2"),
        (lambda: win_rate([[1.0], []], [[1.0], [2.0]]), "Prompt 1"),
        (lambda: win_rate([[1.0], [math.nan]], [[1.0], [2.0]]), "Prompt 1"),
        (lambda: win_rate([[math.inf]], [[math.inf]]), "Prompt 0"),
        (lambda: reward_accuracy([], []), "at least one pair"),
        (lambda: reward_accuracy([1.0, math.nan], [0.0, 0.0]), "chosen score of pair 1"),
        (lambda: ranking_accuracy([1.0], [0.0, 0.0]), "1 and 2"),
        (lambda: kl([0.1, -0.5]), "cannot be negative"),
        (lambda: kl([0.1, math.nan]), "not finite"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(call, says):
    with pytest.raises(TruelineError, match=says):
        call()
