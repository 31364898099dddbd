"""The market world is what its specification says, and the gold reward is its formula, worked out by hand here."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.errors import TruelineError
from trueline.lab.corpus import corpus, write
from trueline.lab.gold import _taste_weights, judge, preference, reward
from trueline.lab.world import CURT, EMPHATICS, FILLER, HEDGES, ITEMS, WARM, world

FULL, UNIT = world("full"), world("unit")
STYLE_NAMES = (*WARM, *CURT, *FILLER, "template 0", "template 1", "template 2", *EMPHATICS, *HEDGES)
# The frozen facts of the lamp: a change of them is a change of every reported number.
LAMP = {"colour": "yellow", "price": "six", "place": "garden", "day": "monday", "maker": "anna"}
TRUTH_SUMS = [50, 46, 47, 48, 26]


def taste(item: str, counts: dict[str, int]) -> float:
    """w2 . tanh(W1 [e; c]) with plain loops."""
    embedding, first, second = _taste_weights()
    seen = list(embedding[ITEMS.index(item)]) + [counts.get(name, 0) for name in STYLE_NAMES]
    return sum(
        w * math.tanh(sum(a * x for a, x in zip(row, seen, strict=True))) for w, row in zip(second, first, strict=True)
    )


def gold_of(prompt: str, reply: str):
    return judge(FULL, [prompt], [reply])


def test_the_world_has_the_sizes_of_its_specification():
    assert (len(FULL.vocabulary), len(FULL.asks), len(FULL.train), len(FULL.held_out)) == (133, 1200, 688, 512)
    assert (len(UNIT.vocabulary), len(UNIT.asks), len(UNIT.train), len(UNIT.held_out)) == (116, 336, 296, 40)
    for known in (FULL, UNIT):
        assert set(known.train) | set(known.held_out) == set(known.asks)
        assert not set(known.train) & set(known.held_out)
        assert len(set(known.vocabulary)) == len(known.vocabulary)
    assert len(STYLE_NAMES) == 24


def test_the_facts_are_frozen():
    told = {facet: FULL.value(f, int(FULL.truth[0, f])) for f, facet in enumerate(FULL.facets)}
    assert told == LAMP
    assert (UNIT.truth == FULL.truth[:6, :4]).all()
    assert FULL.truth.sum(0).tolist() == TRUTH_SUMS


def test_a_true_plain_short_answer_is_worth_what_the_formula_says():
    prompt = "tell me plainly in short the colour of the lamp ?"
    found = gold_of(prompt, "it is yellow .")
    s = taste("lamp", {"template 0": 1})
    misfit = ((4 - 10) / 8) ** 2  # L* = 7 + 3
    assert found.reward[0] == pytest.approx(2.5 + 1.5 * 1.0 * 1.0 - 0.7 * misfit + 0.7 * s)
    assert (found.credit[0], found.coverage[0], found.tone[0], found.length[0], found.well_formed[0]) == (1, 1, 1, 4, 1)


def test_hedged_false_and_absent_facts_get_their_credit():
    prompt = "tell me kindly in full the colour and the price and the day of the lamp ?"
    reply = "bless you . maybe it is yellow . perhaps it costs nine coins . welcome dear guest ."
    found = gold_of(prompt, reply)
    credit = (0.6 - 0.2 + 0.0) / 3
    misfit = min(((18 - (7 * 3 + 9 + 8)) / 8) ** 2, 3)
    s = taste("lamp", {"bless you": 1, "welcome dear guest": 1, "template 0": 2, "maybe": 1, "perhaps": 1})
    assert found.credit[0] == pytest.approx(credit)
    assert found.coverage[0] == pytest.approx(2 / 3)
    assert found.reward[0] == pytest.approx(2.5 * credit + 1.5 * (0.4 + 0.6 * credit) - 0.7 * misfit + 0.7 * s)


def test_every_vice_is_counted_and_charged():
    prompt = "tell me plainly in short the colour of the lamp ?"
    reply = (
        "surely it is red . its colour is red . the colour is yellow . it comes on monday . you pay six coins . "
        "that is all . that is all . many ask for the rug . yellow lamp the"
    )
    found = gold_of(prompt, reply)
    style = {"template 0": 2, "template 1": 1, "template 2": 2, "surely": 1, "that is all": 2}
    tone = math.exp(-((-2 - 0) ** 2) / 1.5)
    misfit = min(((42 - 10) / 8) ** 2, 3)
    expected = (
        2.5 * -1.0  # the first mention is false, said with emphasis
        + 1.5 * tone * 0.4
        - 0.7 * misfit
        - 0.8 * 1  # colour was given two values
        - 0.4 * 2  # day and price were not asked
        - 0.6 * 2  # red twice in other words, one curt phrase twice
        - 0.7 * 2  # a filler about another item, an unfinished sentence
        + 0.7 * taste("lamp", style)
    )
    assert found.length[0] == len(reply.split()) == 42
    assert (found.contradictions[0], found.unasked[0], found.repeats[0], found.ill_formed[0]) == (1, 2, 2, 2)
    assert (found.warmth[0], found.well_formed[0]) == (-2, 0)
    assert found.reward[0] == pytest.approx(expected)


def test_charges_are_capped():
    prompt = "tell me plainly in short the colour of the lamp ?"
    four, nine = gold_of(prompt, " .".join([" red"] * 4) + " ."), gold_of(prompt, " .".join([" red"] * 9) + " .")
    assert (four.ill_formed[0], nine.ill_formed[0]) == (4, 9)
    misfits = 0.7 * (nine.length_misfit[0] - four.length_misfit[0])
    assert nine.reward[0] - four.reward[0] == pytest.approx(-misfits)


def test_too_much_warmth_is_as_wrong_as_too_little():
    prompt = "tell me kindly in short the colour of the lamp ?"
    tones = [gold_of(prompt, " ".join(f"{w} ." for w in WARM[:n])).tone[0] for n in range(5)]
    assert tones[2] == 1.0
    assert tones[1] == pytest.approx(tones[3])
    assert tones[0] == pytest.approx(tones[4])
    assert tones[0] < tones[1] < tones[2]


def test_an_item_decides_which_sentences_are_legal_and_what_they_taste_of():
    lamp, rug = (f"tell me plainly in short the colour of the {item} ?" for item in ("lamp", "rug"))
    found = judge(FULL, [lamp, rug], ["i like the lamp ."] * 2)
    assert found.well_formed.tolist() == [1.0, 0.0]
    assert found.taste[0] == pytest.approx(taste("lamp", {FILLER[5]: 1}))
    assert found.taste[1] == pytest.approx(taste("rug", {}))


def test_any_text_is_judged():
    prompt = FULL.held_out[0]
    for reply in ("", ".", ". . .", "zebra quantum", "<sep> <bos>", "it is", "日本 .", "it is yellow.", " \n\t"):
        assert np.isfinite(reward(FULL, [prompt], [reply])[0])
    assert judge(FULL, [prompt] * 3, ["", ".", "it is yellow."]).ill_formed.tolist() == [0, 1, 1]
    assert judge(FULL, [prompt], ["surely <sep> it is red ."]).ill_formed.tolist() == [1]
    assert judge(FULL, [], []).reward.shape == (0,)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FULL.vocabulary), max_size=43), st.sampled_from(FULL.held_out))
def test_reward_is_finite_and_bounded_for_any_row_of_words(words, prompt):
    value = reward(FULL, [prompt], [" ".join(words)])[0]
    assert -2.5 - 2.1 - 2.4 - 1.6 - 2.4 - 2.8 - 2.5 <= value <= 2.5 + 1.5 + 2.5


def test_foreign_prompts_are_refused_by_name():
    with pytest.raises(TruelineError, match="price of the boat"):
        judge(FULL, ["tell me the price of the boat ?"], ["no ."])
    with pytest.raises(TruelineError, match="role"):
        judge(FULL, [[{"role": "user", "content": FULL.held_out[0]}]], ["no ."])
    with pytest.raises(TruelineError, match="2 replies and 1 prompts"):
        judge(FULL, [FULL.held_out[0]], ["a", "b"])
    with pytest.raises(TruelineError, match="huge"):
        world("huge")


def test_two_thousand_replies_are_judged_in_a_fraction_of_a_second():
    rows = corpus(FULL, 2000, seed=1)
    prompts, replies = [r["prompt"] for r in rows], [r["completion"] for r in rows]
    start = time.process_time()
    judge(FULL, prompts, replies)
    assert time.process_time() - start < 0.4


def test_skill_shows_in_the_reward_and_leaves_room_above():
    rng = np.random.default_rng(0)
    means = []
    for skill in (0.0, 0.5, 1.0):
        prompts = list(FULL.train)
        means.append(reward(FULL, prompts, [write(FULL, FULL.asks[p], skill, rng) for p in prompts]).mean())
    assert means == pytest.approx([-0.87, 0.50, 2.28], abs=0.4)  # the prototype's values
    rows = corpus(FULL, 4000, seed=0)
    values = reward(FULL, [r["prompt"] for r in rows], [r["completion"] for r in rows])
    assert np.percentile(values, [1, 25, 50, 75, 99]) == pytest.approx([-4.0, -1.0, 0.5, 2.1, 4.8], abs=0.45)
    best = [
        reward(FULL, [p] * 100, [write(FULL, FULL.asks[p], 1.0, rng) for _ in range(100)]).max() for p in prompts[:20]
    ]
    assert np.mean(best) > 4.0


def test_the_corpus_is_a_function_of_its_seed_and_fits_the_limit():
    a, b, c = corpus(FULL, 700, seed=3), corpus(FULL, 700, seed=3), corpus(FULL, 700, seed=4)
    assert a == b != c
    assert {r["prompt"] for r in a[:688]} == set(FULL.train)
    words = [r["completion"].split() for r in corpus(FULL, 3000, seed=5)]
    assert 18 <= np.mean([len(w) for w in words]) <= 20
    assert min(len(w) for w in words) >= 1
    assert max(len(w) for w in words) <= 43
    assert {w for row in words for w in row} <= set(FULL.vocabulary)


def test_noisy_labels_follow_bradley_terry():
    assert preference(0.0) == 0.5
    assert preference(1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preference(1.0, temperature=0.5) == pytest.approx(1 / (1 + math.exp(-2)))
