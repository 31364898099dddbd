"""The decode engine's surface: rewards and what they may be asked, refusals, stops, limits, cancelling, failures."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import tiny_model
from trueline.decoding import Budget, Capabilities, DecodeEngine, Request
from trueline.decoding import text_rewards as text
from trueline.decoding.models import TableModel
from trueline.decoding.rewards import Calibrated, ScalarReward, TableReward
from trueline.engine.draw import Law
from trueline.engine.policy import Policy
from trueline.errors import TruelineError

V = 12


class Letters:
    """A tokenizer of one character a token."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join("abcdefghijkl"[i] for i in ids)


def table(ids):
    return [math.sin(1.7 * v + 0.9 * ids[-1] + 0.3 * len(ids)) * 2 for v in range(V)]


def build(**more) -> DecodeEngine:
    given = dict(rewards={"last": TableReward(lambda ids: float(ids[-1]) if ids else 0.0)}, tokenizer=Letters()) | more
    return DecodeEngine(TableModel(table, V, 40), **given)


def request(method="plain", options=None, **more) -> Request:
    return Request([1], method, options or {}, **(dict(max_new_tokens=6, seed=5) | more))


def one(engine, *asked, **more):
    return engine.run([request(*asked, **more)])[0][0]


# -- refusals


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(method="argz"), "no decode method 'argz'.*args"),
        (dict(method="args", options={"kk": 3}), "has no option 'kk'.*'k'"),
        (dict(method="args", options={"k": 2.5}), "args.k is 2.5; expected a whole number"),
        (dict(method="args+best_of_n"), "names 2 searches"),
        (dict(method="dera+args", options={"k": 3}), "options has 'k'"),
        (dict(method="dera", options={"weight": 0.5}), "needs a second model as 'aligned'"),
        (dict(method="entropy_gate+best_of_n"), "A gate chooses between tokens"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(max_new_tokens=40), "more than the 40 positions of 'policy'"),
        (dict(eos_ids=(99,)), "End token 99 does not exist"),
        (dict(rewards={"lost": 1.0}), "no reward 'lost'"),
        (dict(scored=True, method="plain", rewards={}), "has no reward"),
        (dict(method="segment_beam", options={"n": 2, "beams": 3}), "1 <= beams <= n"),
    ],
)
def test_what_cannot_be_run_is_refused_when_it_is_opened(given, words):
    engine = build()
    with pytest.raises(TruelineError, match=words):
        engine.open(request(**given))
    assert not engine.busy and engine.held() == {"policy": 0}


def test_a_reward_of_finished_responses_is_refused_to_prefix_methods_unless_they_look_to_the_end():
    whole = build(rewards={"last": TableReward(lambda ids: float(ids[-1]), prefix=False)})
    for method in ("args", "cards", "segment_beam"):
        with pytest.raises(TruelineError, match="judges finished responses only"):
            whole.open(request(method))
    with pytest.raises(TruelineError, match="set lookahead=-1"):
        whole.open(request("deal", {"lookahead": 2}))
    seen = []
    judged = TableReward(lambda ids: seen.append(len(ids)) or float(ids[-1]), prefix=False)
    one(build(rewards={"last": judged}), "deal", {"lookahead": -1, "beams": 2, "k": 3})
    assert set(seen) == {6}
    one(whole, "best_of_n", {"n": 2})


# -- failing rewards


def test_a_candidate_whose_reward_fails_is_dropped_and_counted():
    def picky(ids):
        if ids[-1] % 2:
            raise ValueError("odd")
        return float("nan") if ids[-1] == 4 else float(ids[-1])

    found = one(build(rewards={"picky": TableReward(picky)}), "args", {"k": 0, "weight": 100.0})
    assert set(found.ids) == {10} and found.counters.failed == 6 * 7


def test_a_reward_that_fails_on_all_ends_its_request_and_no_other():
    def broken(ids):
        raise ValueError("out of order")

    engine = build(rewards={"broken": TableReward(broken), "last": TableReward(lambda ids: float(ids[-1]))})
    bad = engine.open(request("args", rewards={"broken": 1.0}))
    good = engine.open(request("args", rewards={"last": 1.0}))
    ends = {}
    while engine.busy:
        ends |= {e.number: e.finished for e in engine.step() if e.finished}
    assert ends[bad].finish == "error" and "out of order" in str(ends[bad].error)
    assert ends[good].finish == "length" and len(ends[good].ids) == 6
    assert engine.held() == {"policy": 0}


# -- ends


def test_a_stop_text_ends_a_line_across_tokens_and_is_cut_from_the_text():
    free = one(build(), law=Law(0.0))
    stop = free.text[2:4]
    found = one(build(), law=Law(0.0), stop=(stop,))
    cut = free.text.index(stop)
    assert (found.finish, found.stopped_by, found.text) == ("stop", stop, free.text[:cut])
    assert found.ids == free.ids[: cut + 2]
    best = one(build(), "best_of_n", {"n": 3}, stop=("a", "b", "c", "d"))
    assert best.finish == "stop" and not set(best.text) & set("abcd")


def test_events_are_what_the_results_hold():
    engine = build()
    numbers = [engine.open(request(m, n=2)) for m in ("plain", "args", "cards", "best_of_n")]
    told: dict = {}
    results = {}
    while engine.busy:
        for event in engine.step():
            part = told.setdefault((event.number, event.choice), ([], []))
            part[0].extend(event.ids)
            part[1].extend(event.base_logp)
            if event.finished:
                results[event.number, event.choice] = event.finished
    assert set(results) == {(n, c) for n in numbers for c in (0, 1)}
    assert all(told[key] == (r.ids, r.base_logp) for key, r in results.items())


def test_cancelling_frees_everything_at_once_and_leaves_the_others():
    engine = build(max_rows=4)
    first = engine.open(request("best_of_n", {"n": 4}))
    second = engine.open(request())
    assert engine.waiting == 1 and engine.rows == 4
    for _ in range(3):
        engine.step()
    events = engine.cancel(first)
    assert [e.finished.finish for e in events] == ["cancelled"] and engine.held() == {"policy": 0}
    assert engine.cancel(first) == []
    results = [e.finished for _ in range(9) for e in engine.step() if e.finished]
    assert [r.number for r in results] == [second] and not engine.busy


def test_a_budget_ends_a_choice_with_what_it_has_committed():
    found = one(build(), "args", {"k": 3}, budget=Budget(rm_calls=7))
    assert (found.finish, len(found.ids), found.counters.rm_calls) == ("budget", 3, 9)
    none = one(build(), "best_of_n", {"n": 3}, budget=Budget(lm_tf=7))
    assert (none.finish, none.ids) == ("budget", [])


def test_the_mask_hook_holds_in_every_unit_and_an_empty_one_is_an_error():
    def even(ids):
        return range(0, V, 2) if len(ids) < 3 else None

    for method in ("plain", "args", "best_of_n", "beam_search", "cards"):
        found = one(build(), method, allowed=even)
        assert all(token % 2 == 0 for token in found.ids[:3]), method
    with pytest.raises(TruelineError, match="allows no token after 2 new tokens"):
        one(build(), allowed=lambda ids: [] if len(ids) == 2 else None)


def test_alternatives_and_their_log_probs_are_those_of_the_law():
    engine = build()
    engine.open(request("args", {"k": 3}, top_logprobs=3, law=Law(0.7)))
    event = next(e for _ in range(4) for e in engine.step() if e.ids)
    logp = (torch.tensor(table([1]), dtype=torch.float64) / 0.7).log_softmax(-1).topk(3)
    assert [i for i, _ in event.top[0]] == logp.indices.tolist()
    assert [p for _, p in event.top[0]] == pytest.approx(logp.values.tolist())


# -- rewards


def test_rewards_are_summed_with_their_weights_and_reported_by_name():
    rewards = {"last": TableReward(lambda ids: float(ids[-1])), "sum": TableReward(lambda ids: float(sum(ids)))}
    found = one(build(rewards=rewards), "best_of_n", {"n": 3}, rewards={"last": 2.0, "sum": -0.5})
    assert found.rewards == {"last": float(found.ids[-1]), "sum": float(sum(found.ids))}
    assert found.reward == 2.0 * found.ids[-1] - 0.5 * sum(found.ids)
    assert one(build(), scored=True, rewards={"last": 1.0}).reward is not None


def test_a_calibrated_reward_is_the_share_of_samples_it_beats():
    reward = Calibrated(TableReward(lambda ids: float(ids[-1])), [2.0, 4.0, 4.0, 8.0])
    assert (reward.capabilities.low, reward.capabilities.high, reward.capabilities.unit) == (0.0, 1.0, "prefix")
    found = one(build(rewards={"c": reward}), "best_of_n", {"n": 4})
    last = found.ids[-1]
    assert found.reward == sum((r < last) + (r == last) / 2 for r in (2.0, 4.0, 4.0, 8.0)) / 4


def test_a_scalar_reward_says_what_it_can_do():
    reward = ScalarReward(Policy(tiny_model("llama", head="scalar"), head="scalar"))
    assert reward.capabilities == Capabilities("prefix", "ids", True)
    with pytest.raises(TruelineError, match="give it `encode`"):
        reward.score_text("p", ["a"], {})
    reward.encode = lambda prompt, response: ([5, 9], [7, 8])
    assert len(reward.score_text("p", ["a", "b"], {})) == 2 and reward.models[0].reader.held() == 0


@pytest.mark.parametrize(
    ("rule", "words", "tokens", "finished", "value"),
    [
        (text.keyword(["Cat", "dog"]), "a cat sat", 3, False, 0.5),
        (text.keyword(["cat"]), "concatenate", 1, True, 0.0),
        (text.regex(r"\d+"), "abc", 1, False, None),
        (text.regex(r"\d+"), "abc", 1, True, 0.0),
        (text.length(2, 4), "x", 1, False, None),
        (text.length(2, 4), "x", 1, True, 0.0),
        (text.length(2, 4), "x", 5, False, 0.0),
        (text.json_valid, '{"a": [1, tr', 4, False, None),
        (text.json_valid, '{"a": "half a str', 4, False, None),
        (text.json_valid, '{"a": 1}', 4, True, 1.0),
        (text.json_valid, '{"a": 1} and', 4, False, 0.0),
        (text.json_valid, "{a: 1", 4, False, 0.0),
        (text.json_valid, '{"a": 1', 4, True, 0.0),
        (text.json_valid, "[1, -", 4, False, None),
        (text.json_valid, "NaN", 1, True, 0.0),
    ],
)
def test_rules_know_what_is_satisfied_violated_and_undecided(rule, words, tokens, finished, value):
    assert rule(words, tokens, finished) == value


def test_undecided_text_is_worth_more_than_violated_and_less_than_satisfied():
    reward = text.text_reward("length:2-4")
    found = one(
        build(rewards={"short": reward}), "deal", {"beams": 1, "k": 0, "lookahead": 0, "weight": 50.0}, eos_ids=(3,)
    )
    assert 2 <= len(found.ids) - 1 <= 4 and found.finish == "stop"
    assert text.text_reward("lab") is None
    with pytest.raises(TruelineError, match="length:LOW-HIGH"):
        text.text_reward("length:5")


def test_keywords_are_found_with_lookahead_that_sees_whole_words_and_not_without():
    reward = text.RuleReward(text.keyword(["abca"]))

    def spelled(lookahead):
        options = {"beams": 4, "k": 0, "lookahead": lookahead, "weight": 30.0}
        # a -> b -> c -> a is likely once begun, and beginning it is not
        nexts = {0: 1, 1: 2, 2: 0}
        rows = TableModel(
            lambda ids: [4.0 if v == nexts.get(ids[-1]) else 2.0 if v == 11 else 0.0 for v in range(V)], V
        )
        engine = DecodeEngine(rows, rewards={"word": reward}, tokenizer=Letters())
        return engine.run([Request([11], "deal", options, max_new_tokens=4)])[0][0].text

    assert spelled(3) == "abca" and spelled(0) != "abca"


def test_a_feedback_of_trueline_judges_texts_with_its_columns():
    asked = []

    def judge(groups):
        for group in groups:
            asked.append((group.prompt, group.extras, group.responses[0].finish))
            group.responses[0].reward = float(group.responses[0].text.count(group.extras["letter"]))

    engine = build(rewards={"count": text.FeedbackReward(judge)})
    found = one(engine, "best_of_n", {"n": 3}, prompt="say b", columns={"letter": "b"})
    assert found.reward == found.text.count("b") and asked[0] == ("say b", {"letter": "b"}, "length")
    assert engine.rewards["count"].score_text("p", ["bb"], {"letter": "b"}) == [2.0]


def test_the_capabilities_say_what_runs_and_what_is_missing():
    said = build(rewards={}).capabilities()
    assert said["plain"]["runs"] and not said["args"]["runs"] and "reward" in said["args"]["why"]
    assert not said["transfer_q"]["runs"] and said["args"]["options"]["k"]["default"] == 10
