"""Alarms: each fires on the history it is for, in time and once, and stays quiet on healthy noise."""

import json
import math
import random

import pytest

from trueline.alarm_rules import RULES, Thresholds
from trueline.alarms import Alarms

pytestmark = pytest.mark.slow  # seconds together: `make test` runs them, `make quick` does not


def reading(value, spread=0.0):
    return {"value": value, "low": value - spread, "high": value + spread, "n": 64, "unit": "x"}


def healthy_step(step, noise):
    """A good preference run with sampled responses: margins grow, the chosen do not fall, everything is noisy."""
    grown = 1 - math.exp(-step / 60)
    first = step == 1
    return {
        "step": step,
        "loss": math.log(2) if first else 0.69 - 0.2 * grown + noise.gauss(0, 0.05),
        "learning_rate": 1e-5 * min(1, step / 10) * (1 - step / 500),
        "grad_norm": 2 + noise.random(),
        "rewards/margins": 0.0 if first else 1.0 * grown + noise.gauss(0, 0.3),
        "log_ratio/chosen": 0.0 if first else 0.5 * grown + noise.gauss(0, 2.0),
        "log_ratio/rejected": 0.0 if first else -9 * grown + noise.gauss(0, 2.0),
        "length/chosen": 40.0,
        "length/rejected": 40.0,
        "length/sampled": 30 + 6 * grown + noise.gauss(0, 3),
        "reward/mean": 1 + grown + noise.gauss(0, 0.3),
        "identical_samples": 0.1 * noise.random(),
        "kl/truncation": 0.0,
        "tokens": 1200,
        **({"moved": 0.97} if step % 50 == 3 else {}),
        **({} if step % 10 else inside(random.Random(step))),
    }


def inside(noise):
    """What is seen every tenth step in a healthy model: sign diversity of its layers, entropy."""
    return {
        "spectral/diversity/0.mlp": 0.8 + 0.1 * noise.random(),
        "spectral/mean/0.mlp": 0.05 * noise.random(),
        "entropy/tokens": 2 + 0.1 * noise.gauss(0, 1),
    }


def healthy_eval(step, noise):
    grown = 1 - math.exp(-step / 60)
    return {
        "reward_accuracy": reading(0.5 + 0.15 * grown + noise.gauss(0, 0.02), 0.05),
        "judge_accuracy/proxy": reading(0.8 + noise.gauss(0, 0.02), 0.05),
        "log_ratio_chosen": reading(0.5 * grown + (noise.gauss(0, 0.3) if step else 0), 0.6),
        "log_ratio_rejected": reading(-9 * grown + (noise.gauss(0, 0.3) if step else 0), 0.6),
        "eval_loss": reading(0.69 - 0.1 * grown + noise.gauss(0, 0.01), 0.03),
        "kl": reading(4 * grown + (noise.gauss(0, 0.05) if step else 0), 0.3),
        "entropy": reading(1.5 - 0.4 * grown + noise.gauss(0, 0.02), 0.05),
        "length": reading(30 + 6 * grown + noise.gauss(0, 1), 2),
        "reward/proxy": reading(1 + grown + noise.gauss(0, 0.1), 0.2),
        "reward/gold": reading(1 + 0.6 * grown + noise.gauss(0, 0.1), 0.2),
    }


def watching(**facts):
    told = {"kl_budget": 5.0, "initial_loss": math.log(2), "learning_rate": 1e-5, "training_judges": ["proxy"]}
    return Alarms(**{**told, **facts})


def play(alarms, steps, *, change_step=None, change_eval=None, every=20, seed=0):
    """Play a healthy history with planted changes: change(step, row) edits the row in place."""
    noise, raised = random.Random(seed), []
    for step in range(0, steps + 1):
        if step:
            metrics = healthy_step(step, noise)
            if change_step:
                change_step(step, metrics)
            raised += alarms.on_step(step, metrics)
        if step % every == 0:
            readings = healthy_eval(step, noise)
            if change_eval:
                change_eval(step, readings)
            raised += alarms.on_eval(step, readings)
    return raised


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_of_400_noisy_steps_raises_nothing_and_everything_watches(seed):
    alarms = watching()
    assert play(alarms, 400, seed=seed) == []
    assert list(alarms.watched) == [rule.name for rule in RULES]


def displaced(step, m):
    m["log_ratio/chosen"] -= 0.05 * (step - 1)


def displaced_eval(step, r):
    r["log_ratio_chosen"] = reading(-0.05 * step, 0.6)
    r["log_ratio_rejected"] = reading(-0.15 * step, 0.6)


def longer(step, m):
    m["length/sampled"] *= 1 + step / 100


def shorter(step, r):
    r["length"] = reading(30 / (1 + step / 50), 2)


def over_budget(step, r):
    r["kl"] = reading(0.1 * step, 0.3)


def over_optimised(step, r):
    r["reward/gold"] = reading(1 + 0.02 * min(step, 80 - step), 0.1)


def overfitted(step, m):
    m["loss"] -= 0.003 * (step - 1)


def overfitted_eval(step, r):
    r["eval_loss"] = reading(0.6 + 0.003 * step, 0.03)


def shared_reference(step, m):
    m["log_ratio/chosen"] = m["log_ratio/rejected"] = 0.0


def other_reference(step, m):
    if step == 1:
        m["log_ratio/chosen"], m["log_ratio/rejected"] = 0.2, -0.1


def offset_reference(step, r):
    r["kl"] = reading(r["kl"]["value"] + 0.1, 0.3)


def wrong_start(step, m):
    if step == 1:
        m["loss"] = 2 * math.log(2)


def collapsing(step, r):
    r["entropy"] = reading(1.5 * math.exp(-step / 40), 0.05)


def rounded_away(step, m):
    if "moved" in m:
        m["moved"] = 0.31


def exploded(step, m):
    if step == 7:
        m["loss"] = math.nan


def overflowed(step, m):
    if step == 7:
        m["grad_norm"] = math.inf


def weak(step, r):
    r["judge_accuracy/proxy"] = reading(0.58, 0.02)


def identical(step, m):
    m["identical_samples"] = min(1.0, step / 20)


def nothing_left(step, m):
    if step == 30:
        m.update({"tokens": 0, "ties": 3, "unjudged": 5})


def truncated(step, m):
    m["kl/truncation"] = 0.1


def corrected(step, m):
    m["kl/truncation"], m["importance/mean"] = 0.1, 0.9


def one_sided(step, m):
    if step > 100 and "spectral/diversity/0.mlp" in m:
        m["spectral/diversity/0.mlp"], m["spectral/mean/0.mlp"] = 0.0, 0.6


def growing(step, m):
    m["grad_norm"] *= 1.2 ** max(0, step - 50)


def settling(step, m):
    if step > 50 and "entropy/tokens" in m:
        m["entropy/tokens"] *= 0.3


# name of the alarm, what is planted into steps and readings, the step by which it must have fired
PLANTED = [
    ("displacement", displaced, None, 110),
    ("displacement", None, displaced_eval, 40),
    ("kl_budget", None, over_budget, 60),
    ("length_drift", longer, None, 90),
    ("length_drift", None, shorter, 40),
    ("over_optimisation", None, over_optimised, 100),
    ("overfitting", overfitted, overfitted_eval, 80),
    ("reference_identical", shared_reference, None, 5),
    ("reference_differs", other_reference, None, 1),
    ("reference_differs", wrong_start, None, 1),
    ("reference_differs", None, offset_reference, 0),
    ("entropy_collapse", None, collapsing, 40),
    ("weights_not_moving", rounded_away, None, 53),
    ("non_finite", exploded, None, 7),
    ("non_finite", overflowed, None, 7),
    ("weak_judge", None, weak, 80),
    ("identical_samples", identical, None, 12),
    ("nothing_to_learn", nothing_left, None, 30),
    ("truncated_draws", truncated, None, 1),
    ("spectral_collapse", one_sided, None, 130),
    ("gradient_growth", growing, None, 65),
    ("token_entropy", settling, None, 90),
]


@pytest.mark.parametrize(("name", "steps", "evals", "latest"), PLANTED)
@pytest.mark.parametrize("seed", range(3))
def test_each_alarm_fires_on_what_it_is_for_in_time_once_and_alone(name, steps, evals, latest, seed):
    raised = play(watching(), 160, change_step=steps, change_eval=evals, seed=seed)
    assert [a.name for a in raised] == [name]
    assert raised[0].step <= latest
    assert len(raised[0].message) > 100


def test_a_single_large_norm_is_no_growth():
    alarms = Alarms()
    for step in range(1, 80):
        assert alarms.on_step(step, {"grad_norm": 50.0 if step in (30, 33, 60) else 1.0}) == []
    raised = [a for step in range(80, 84) for a in alarms.on_step(step, {"grad_norm": 50.0})]
    assert [(a.name, a.step) for a in raised] == [("gradient_growth", 82)]


def test_every_rule_has_a_planted_history():
    assert {name for name, *_ in PLANTED} == {rule.name for rule in RULES}


def test_noise_without_a_trend_raises_nothing_in_long_runs():
    for seed in range(5):
        noise, alarms = random.Random(seed), Alarms()
        for step in range(1, 2001):
            row = {
                "log_ratio/chosen": noise.gauss(-0.5, 3) if step > 1 else 0.0,
                "log_ratio/rejected": noise.gauss(-0.5, 3) if step > 1 else 0.0,
                "rewards/margins": noise.gauss(0, 1),
                "length/sampled": noise.gauss(30, 12),
                "grad_norm": 1.0,
                "loss": noise.gauss(0.69, 0.1),
            }
            assert alarms.on_step(step, row) == []


def test_falling_chosen_without_growing_margins_is_not_displacement():
    def worse(step, m):
        displaced(step, m)
        m["rewards/margins"] -= 0.02 * step

    assert play(watching(), 160, change_step=worse) == []


def test_the_judge_trained_on_may_rise_while_it_alone_is_measured():
    def gold_only(step, r):
        del r["reward/proxy"]

    assert play(watching(training_judges=["gold"]), 160, change_eval=gold_only) == []


def test_the_training_reward_of_the_steps_stands_in_for_a_judge_that_no_evaluation_measures():
    def hidden_proxy(step, r):
        over_optimised(step, r)
        del r["reward/proxy"]

    raised = play(watching(), 160, change_eval=hidden_proxy)
    assert [a.name for a in raised] == ["over_optimisation"] and "training reward" in raised[0].message


def test_a_reference_that_was_chosen_elsewhere_may_differ_at_the_start():
    alarms = watching(starts_at_reference=False)
    assert play(alarms, 20, change_step=other_reference, change_eval=offset_reference) == []
    assert "reference_differs" not in alarms.watched


def test_truncated_draws_that_are_weighed_by_their_law_are_meant():
    assert not play(watching(), 60, change_step=corrected)


def test_small_moves_during_warm_up_are_meant():
    def warming(step, m):
        m["learning_rate"] = 1e-7
        rounded_away(step, m)

    assert play(watching(), 60, change_step=warming) == []


def test_readings_without_an_interval_prove_nothing_and_nan_is_no_reading():
    alarms = watching()
    for step in (0, 10, 20):
        readings = {
            "entropy": {"value": 1.0 / (1 + step), "low": None, "high": None},
            "kl": {"value": math.nan, "low": math.nan, "high": math.nan},
        }
        assert alarms.on_eval(step, readings) == []
    assert list(alarms.watched) == ["entropy_collapse"]


def test_only_rules_whose_numbers_appear_are_said_to_watch():
    alarms = Alarms()
    assert alarms.watched == {}
    alarms.on_step(1, {"loss": 1.0, "grad_norm": 1.0})
    assert list(alarms.watched) == ["non_finite", "gradient_growth"]


@pytest.mark.parametrize(("name", "steps", "evals", "latest"), PLANTED)
def test_a_run_cut_and_resumed_anywhere_raises_the_same_alarms(name, steps, evals, latest):
    whole = play(watching(), 100, change_step=steps, change_eval=evals)

    class Resumed:
        """Goes through JSON and a new object before every call."""

        def __init__(self):
            self.state = watching().state()

        def call(self, which, *arguments):
            alarms = watching()
            alarms.restore(json.loads(json.dumps(self.state)))
            raised = getattr(alarms, which)(*arguments)
            self.state = alarms.state()
            return raised

        def on_step(self, *arguments):
            return self.call("on_step", *arguments)

        def on_eval(self, *arguments):
            return self.call("on_eval", *arguments)

    assert play(Resumed(), 100, change_step=steps, change_eval=evals) == whole


def test_a_saved_state_does_not_change_when_the_run_goes_on():
    alarms = watching()
    play(alarms, 30)
    state = alarms.state()
    before = json.dumps(state)
    play(alarms, 30)
    assert json.dumps(state) == before


def test_thresholds_are_heeded():
    quiet = play(watching(thresholds=Thresholds(identical_samples=1.01)), 60, change_step=identical)
    assert quiet == []
