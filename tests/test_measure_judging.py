"""Measures of judges: planted biases are found, nothing is found where none was planted, definitions are met."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from scipy.special import expit, logit

from trueline.errors import TruelineError
from trueline.feedback import _verdict
from trueline.feedback._split_merge import (
    SplitMerge,
    length_cuts,
    parts,
    question,
    read,
    semantic_cuts,
    sentences,
)
from trueline.measure._agreement import cohen_kappa
from trueline.measure._audit import _position_slope, logistic_fit, merged
from trueline.measure.alignbench import LANGUAGE, REASONING, alignbench
from trueline.measure.judge_audit import judge_audit
from trueline.measure.krippendorff_alpha import krippendorff_alpha
from trueline.measure.metric_meta_evaluation import metric_meta_evaluation
from trueline.measure.portia import portia
from trueline.measure.system_correlation import system_correlation


def named(readings):
    return {r.name: r for r in readings}


def holds(reading, value):
    return reading.low <= value <= reading.high


def planted(n=500, *, position=0.0, verbosity=0.0, own=0.0, seed=0, sharpness=2.0):
    """Columns of a judge that goes by quality, by who stands first, by length (a doubling) and by its own hand.

    People prefer by quality alone; length and authorship have nothing to do with quality.
    """
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=n)
    length, other = (np.exp2(rng.normal(8, 1, size=n)).round() for _ in range(2))
    mine = rng.choice([1, -1, 0], size=n)
    human = (rng.random(n) < expit(sharpness * quality)).astype(float)
    pull = sharpness * (2 * human - 1) + verbosity * np.log2(length / other) + own * mine
    forward = (rng.random(n) < expit(pull + position)).astype(float)
    backward = (rng.random(n) < expit(-pull + position)).astype(float)
    author = [{1: "first", -1: "second", 0: "neither"}[m] for m in mine]
    return {"forward_P": forward, "backward_P": backward, "human_P": human, "length_P": length,
            "other_length_P": other, "own_P": author}  # fmt: skip


# ---- the audit -------------------------------------------------------------------------------------------------------


def test_a_planted_position_bias_is_found_and_both_orders_repair_it():
    found = named(judge_audit(**planted(position=1.0)))
    assert found["position_slope"].value == pytest.approx(1.0, abs=0.3) and found["position_slope"].low > 0.5
    assert found["first_share"].low > 0.55 and found["preference_for_first"].low > 0.7
    assert found["consistency"].high < 0.9
    fair = named(judge_audit(**planted()))
    assert abs(fair["position_slope"].value) < 0.25 and abs(fair["first_share"].value - 0.5) < 0.03
    assert fair["consistency"].value > found["consistency"].value
    # One order alone agrees less with people than both do where they decide.
    one_order = planted(position=3.0)
    swapped = merged(one_order["forward_P"], one_order["backward_P"])
    settled, wrong = swapped != 0.5, one_order["human_P"] != one_order["forward_P"]
    assert (swapped == one_order["human_P"])[settled].mean() > 1 - wrong.mean() + 0.1


@pytest.mark.parametrize(("sharpness", "bias"), [(0.0, 0.0), (0.5, 0.8), (3.0, 0.8)])
def test_the_position_slope_does_not_depend_on_how_far_apart_the_responses_are(sharpness, bias):
    held, values = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        pull = sharpness * rng.normal(size=800)
        forward, backward = (rng.random(800) < expit(s * pull + bias) for s in (1, -1))
        found = _position_slope(int((forward & backward).sum()), int((~forward & ~backward).sum()), "")
        held.append(holds(found, bias))
        values.append(found.value)
    assert 0.91 < np.mean(held) <= 0.99 and np.mean(values) == pytest.approx(bias, abs=0.03)


def test_position_readings_are_their_definitions():
    forward, backward = [1, 1, 1, 0, 0.5, 1, 0], [0, 1, 1, 0, 0.5, 0.5, 1]
    found = named(judge_audit(forward, backward))
    assert found["consistency"].value == pytest.approx(3 / 7)
    assert found["first_share"].value == pytest.approx((0.5 + 1 + 1 + 0 + 0.5 + 0.75 + 0.5) / 7)
    assert found["preference_for_first"].value == pytest.approx(2 / 4) and found["preference_for_first"].n == 4
    assert found["position_slope"].value == pytest.approx(logit(2.5 / 4) / 2)
    assert merged(np.array([1, 1, 0.8, 0.5]), np.array([0.5, 0, 0.4, 0.5])).tolist() == pytest.approx(
        [0.5, 1, 0.7, 0.5]
    )


def test_missing_verdicts_are_counted_and_nothing_else():
    nan = float("nan")
    found = named(judge_audit([1, nan, 0, 1], [0, 0, nan, 0], human_P=[1, 1, 1, nan]))
    assert found["no_verdict"].value == 0.5 and found["consistency"].value == 1.0
    assert found["agreement"].value == 1.0 and found["agreement"].n == 1


def test_a_planted_verbosity_bias_is_found_beside_quality_and_none_where_there_is_none():
    found = named(judge_audit(**planted(verbosity=0.7)))
    assert found["verbosity_slope"].low > 0.4 and found["longer_preferred_excess"].low > 0.03
    fair = named(judge_audit(**planted()))
    assert abs(fair["verbosity_slope"].value) < 0.2 and abs(fair["longer_preferred_excess"].value) < 0.04


def test_good_responses_that_are_long_are_no_verbosity_bias():
    rng = np.random.default_rng(1)
    human = rng.integers(2, size=1000).astype(float)
    doublings = rng.normal(size=1000) + 1.0 * (2 * human - 1)
    forward = (rng.random(1000) < expit(2 * (2 * human - 1))).astype(float)
    columns = {"length_P": 256 * 2**doublings, "other_length_P": [256.0] * 1000}
    held = named(judge_audit(forward, 1 - forward, human_P=human, **columns))
    assert abs(held["verbosity_slope"].value) < 0.2
    alone = named(judge_audit(forward, 1 - forward, **columns))
    assert alone["verbosity_slope_unadjusted"].low > 0.3 and "verbosity_slope" not in alone


def test_the_slope_on_length_is_the_maximum_likelihood_one():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x, share = rng.normal(size=(400, 2)), rng.choice([0.0, 0.5, 1.0], size=400)
    labels, weights = np.repeat([1, 0], 400), np.concatenate([share, 1 - share])
    model = LogisticRegression(C=1e8, fit_intercept=False, tol=1e-10)
    model.fit(np.concatenate([x, x])[weights > 0], labels[weights > 0], sample_weight=weights[weights > 0])
    assert logistic_fit(x, share) == pytest.approx(model.coef_[0], abs=1e-5)
    assert np.isnan(logistic_fit(np.array([[1.0], [-1.0]]), np.array([1.0, 0.0]))).all()


def test_a_planted_self_preference_is_found_as_the_difference_of_recalls():
    found = named(judge_audit(**planted(own=1.0)))
    assert found["self_preference"].low > 0.1
    assert holds(named(judge_audit(**planted()))["self_preference"], 0.0)
    exact = named(judge_audit(
        [1, 1, 0, 0.5, 1, 0], [0, 0, 1, 0.5, 0, 1], human_P=[1, 1, 1, 0, 0.5, 1],
        own_P=["first", "first", "second", "first", "first", "neither"],
    ))  # fmt: skip
    # Its own, rightly preferred: 1 and 1. Another's, rightly preferred: 0 and a tie, 1/2.
    assert exact["self_preference"].value == pytest.approx(1 - 0.25) and exact["self_preference"].n == 4


def test_dispersion_over_wordings_is_disagreement_deviation_and_icc():
    rows = [[1, 1, 0], [0.5, 0.5], [1, float("nan"), 1, 1], [0]]
    found = named(judge_audit([1] * 4, [0] * 4, reworded_P=rows))
    assert found["paraphrase_disagreement"].value == pytest.approx(np.mean([2 / 3, 0, 0]))
    assert found["paraphrase_disagreement"].n == 3
    assert found["paraphrase_deviation"].value == pytest.approx(np.sqrt(np.mean([1 / 3, 0, 0])))
    balanced = [[1, 0.5], [0, 0], [1, 1], [0.5, 0]]
    table = np.array(balanced, dtype=float)
    between = 2 * table.mean(axis=1).var(ddof=1)
    within = table.var(axis=1, ddof=1).mean()
    icc = named(judge_audit([1] * 4, [0] * 4, reworded_P=balanced))["paraphrase_reliability"].value
    assert icc == pytest.approx((between - within) / (between + within))


def test_a_judge_that_wavers_disperses_and_a_steady_one_does_not():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=200).astype(float)
    steady = named(judge_audit(truth, 1 - truth, reworded_P=np.repeat(truth[:, None], 4, axis=1).tolist()))
    assert steady["paraphrase_disagreement"].value == 0 and steady["paraphrase_reliability"].value == 1
    flips = np.where(rng.random((200, 4)) < 0.2, 1 - truth[:, None], truth[:, None])
    wavering = named(judge_audit(truth, 1 - truth, reworded_P=flips.tolist()))
    assert holds(wavering["paraphrase_disagreement"], 2 * 0.2 * 0.8)


def test_agreement_counts_ties_as_said():
    judge, human = [1, 1, 0.5, 0, 0.5, 1], [1, 0, 1, 0, 0.5, 0.5]
    found = named(judge_audit(judge, [1 - j for j in judge], human_P=human))
    assert found["agreement"].value == pytest.approx(3 / 6)
    assert found["agreement_without_ties"].value == pytest.approx(2 / 4)


def test_prompts_are_resampled_whole_in_every_reading():
    columns = planted(150, position=0.5, verbosity=0.5, own=0.5)
    copies = {k: np.repeat(v, 8).tolist() for k, v in columns.items()}
    prompt = np.repeat(np.arange(150), 8).tolist()
    once, whole = named(judge_audit(**columns)), named(judge_audit(**copies, clusters=prompt))
    for name in ("consistency", "verbosity_slope", "self_preference", "cohen_kappa", "agreement"):
        wide = (whole[name].high - whole[name].low) / (once[name].high - once[name].low)
        assert 0.75 < wide < 1.35, name


# ---- agreement beyond chance -----------------------------------------------------------------------------------------


def test_cohens_kappa_is_scikit_learns():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    a = rng.integers(3, size=100)
    b = np.where(rng.random(100) < 0.6, a, rng.integers(3, size=100))
    table = np.array([[((a == x) & (b == y)).sum() for y in range(3)] for x in range(3)])
    assert cohen_kappa(table) == pytest.approx(cohen_kappa_score(a, b))
    assert np.isnan(cohen_kappa(np.array([[0, 0], [0, 7]])))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_krippendorffs_alpha_is_the_librarys_with_values_missing(level):
    library = pytest.importorskip("krippendorff")
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, size=40)
    table = np.where(rng.random((4, 40)) < 0.6, truth, rng.integers(1, 6, size=(4, 40))).astype(float)
    table[rng.random((4, 40)) < 0.3] = np.nan
    rater, item = np.nonzero(~np.isnan(table))
    found = krippendorff_alpha(
        table[rater, item].tolist(), [f"i{i}" for i in item], [f"r{r}" for r in rater], level=level
    )
    assert found.value == pytest.approx(library.alpha(reliability_data=table, level_of_measurement=level))
    assert found.low < found.value < found.high


def test_krippendorffs_own_example():
    """Content Analysis, 4 observers and 12 units: nominal 0.743, ordinal 0.815, interval 0.849."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    cells = [(float(v), f"u{u}", f"o{o}") for o, row in enumerate(rows) for u, v in enumerate(row.split()) if v != "."]
    columns = list(zip(*cells, strict=True))
    for level, value in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        found = krippendorff_alpha(*columns, level=level, resamples=0)
        assert found.value == pytest.approx(value, abs=5e-4) and found.n == 11


# ---- PORTIA: cutting -------------------------------------------------------------------------------------------------

TEXTS = [
    "One. Two! Three? Four.",
    "Dear all,\n\nHere is code:\n```python\nx = 1. \ny = 2! z\n```\nIt runs. Well, it should.\n",
    "Steps:\n- First do. this.\n- Then that!\n  and more. of it\n\n1. one\n2. two\n\nDone. Bye.",
    "你好。今天天气不错！我们去吧？好的。",
    "  \n  ...leading. white space.  ",
    "No end at all",
    "```\nnever closed. really.",
    "",
    "Costs 3.5 units. \"Quoted.\" Then (bracketed.) end.\n\n\n---\n\nLast.",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_sentences_and_parts_concatenate_to_the_text_exactly(text):
    units = sentences(text)
    assert "".join(units) == text
    assert all(re.search(r"\w", u) for u in units) or len(units) <= 1
    for k in range(1, min(4, len(units)) + 1):
        cut = parts(units, length_cuts(units, k))
        assert "".join(cut) == text and len(cut) == k and all(cut)


def test_code_and_lists_stay_whole_and_sentences_part():
    units = sentences(TEXTS[1])
    assert units[-3:] == ["```python\nx = 1. \ny = 2! z\n```\n", "It runs. ", "Well, it should.\n"]
    listed = sentences(TEXTS[2])
    assert listed[0] == "Steps:\n" and listed[-2:] == ["Done. ", "Bye."]
    assert any("- First do. this.\n- Then that!\n  and more. of it\n" in u for u in listed)
    assert len(sentences(TEXTS[0])) == 4 and len(sentences(TEXTS[3])) == 4


def test_lengths_are_cut_at_the_nearest_sentence_end():
    units = ["a" * n for n in (10, 10, 10, 30, 10, 20)]  # ends 10 20 30 60 70 90, targets 30 and 60
    assert length_cuts(units, 3) == [3, 4] and length_cuts(units, 2) == [3]
    assert length_cuts(["a" * 100, "b", "c"], 3) == [1, 2]  # every part keeps a unit
    assert length_cuts(["aa", "aa", "aa"], 2) == [1]  # as near on both sides: the earlier


def brute_force(first, second, k, similarity):
    """The best sum over all cuts, and the first cut that reaches it in the order (a1, b1, a2, b2, ...)."""
    best, found = -1.0, None
    for ca in itertools.combinations(range(1, len(first)), k - 1):
        for cb in itertools.combinations(range(1, len(second)), k - 1):
            total = sum(similarity(a, b) for a, b in zip(parts(first, ca), parts(second, cb), strict=True))
            key = [x for pair in zip(ca, cb, strict=True) for x in pair]
            if total > best + 1e-9 or (total > best - 1e-9 and key < found[0]):
                best, found = max(best, total), (key, list(ca), list(cb))
    return found[1], found[2], best


def overlap(a, b):
    one, two = set(a.lower().split()), set(b.lower().split())
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("seed", range(12))
def test_dynamic_programming_finds_the_optimum_of_all_cuts_and_the_first_of_equal_ones(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(3, 7, size=2)
    first, second = (
        [" ".join(rng.choice(list("uvwxyz"), size=rng.integers(1, 5))) + " " for _ in range(size)] for size in (n, m)
    )
    for k in range(1, 4):
        wanted = brute_force(first, second, k, overlap)
        for similarity in (None, overlap):
            found = semantic_cuts(first, second, k, similarity)
            assert found[2] == pytest.approx(wanted[2]) and found[:2] == wanted[:2]


def test_equal_responses_reach_the_optimum_k_at_equal_cuts():
    units = ["red fox ", "blue hen ", "green cat ", "old dog ", "new cow "]
    for k in (1, 2, 3, 5):
        a, b, best = semantic_cuts(units, units, k)
        assert best == pytest.approx(k) and a == b == list(range(1, k))


def test_matching_sentences_are_put_together():
    first = ["Rent is dear in town. ", "Trams run all night. ", "The parks are wide. "]
    second = ["Hello. ", "Rent in town is dear. ", "Trams run at night, all of them. ", "Wide parks are there. "]
    a, b, _ = semantic_cuts(first, second, 3)
    assert a == [1, 2] and b == [2, 3]


# ---- PORTIA: asking --------------------------------------------------------------------------------------------------


def test_one_part_is_the_plain_question_word_for_word():
    plain = _verdict.fill(_verdict.PAIRWISE, prompt="Q {first}", first="one", second="two {prompt}")
    assert question("relation", "Q {first}", ["one"], ["two {prompt}"]) == plain


@pytest.mark.parametrize("form", ["relation", "score", "likert"])
def test_parts_stand_in_turn_and_change_their_labels_when_exchanged(form):
    text = question(form, "Q", ["a1", "a2"], ["b1", "b2"])
    assert re.findall(r"<response_(\w) part=\"(\d) of 2\">\n(\w\w)\n</response_\1>", text) == [
        ("a", "1", "a1"), ("b", "1", "b1"), ("a", "2", "a2"), ("b", "2", "b2"),
    ]  # fmt: skip
    turned = question(form, "Q", ["b1", "b2"], ["a1", "a2"])
    assert re.findall(r"<response_a part[^>]*>\n(\w\w)", turned) == ["b1", "b2"]
    assert "<request>\nQ\n</request>" in text and "2 parts each" in text


@pytest.mark.parametrize(
    ("form", "answer", "share"),
    [
        ("relation", "[[B]]", 0.0),
        ("score", "[[7, 5]]", 1.0),
        ("score", "[[5,5]]", 0.5),
        ("score", "[[5, 11]]", None),
        ("score", "[[5]]", None),
        ("score", "[[A]]", None),
        ("likert", "[[1]]", 1.0),
        ("likert", "[[2]]", 1.0),
        ("likert", "[[3]]", 0.5),
        ("likert", "[[5]]", 0.0),
        ("likert", "[[6]]", None),
        ("likert", "[[1]] or [[2]]", None),
        ("likert", "one", None),
    ],
)
def test_every_form_is_read_as_who_is_better(form, answer, share):
    assert read(form, answer) == share


class Hasty:
    """Reads the first `reads` words of each block, counts good words, favours whoever stands first, and errs.

    Noise is a function of the question: the same question gets the same answer.
    """

    def __init__(self, reads=6, favour=2.0, noise=1.0):
        self.reads, self.favour, self.noise, self.asked = reads, favour, noise, 0

    def ask(self, questions):
        return [self.answer(q) for q in questions]

    def answer(self, text):
        self.asked += 1
        blocks = re.findall(r"<response_(a|b)[^>]*>\n(.*?)\n</response_", text, re.DOTALL)
        score = dict.fromkeys("ab", 0.0)
        for side, block in blocks:
            score[side] += block.split()[: self.reads].count("good")
        rng = np.random.default_rng(abs(hash(text)) % 2**32)
        margin = score["a"] - score["b"] + self.favour + self.noise * rng.normal()
        return "[[A]]" if margin > 0 else "[[B]]"


def long_pairs(n=120, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        a, b = (
            "".join(" ".join(rng.choice(["good", "dull"], p=[p, 1 - p], size=6)) + ". " for _ in range(9))
            for p in rng.permutation([0.7, 0.3])
        )
        found.append(("Which?", a, b))
    return found


def people(pairs):
    return [float(a.count("good") > b.count("good")) for _, a, b in pairs]


def test_a_hasty_judge_is_made_consistent_and_right_by_splitting():
    pairs = long_pairs()
    judge = Hasty()
    said = SplitMerge(judge, k=3).judge(pairs)
    columns = {
        "forward_P": [c.plain[0] for c in said],
        "backward_P": [c.plain[1] for c in said],
        "portia_forward_P": [c.final[0] for c in said],
        "portia_backward_P": [c.final[1] for c in said],
    }
    found = named(portia(**columns, human_P=people(pairs)))
    assert found["after/consistency"].value > found["before/consistency"].value + 0.15
    assert found["fixed_coverage"].low > 0.3 and found["relative_gain"].low > 0.1
    assert found["after/agreement"].value > found["before/agreement"].value + 0.1
    assert found["before/preference_for_first"].value > 0.9
    assert judge.asked == sum(c.questions for c in said) <= 6 * len(pairs)
    assert {c.stage for c in said} >= {"plain", "length"}


def test_what_is_consistent_is_asked_twice_and_never_split():
    judge = Hasty(reads=100, favour=0.0, noise=0.0)
    said = SplitMerge(judge).judge(long_pairs(10))
    assert judge.asked == 20 and {c.stage for c in said} == {"plain"} and all(c.plain == c.final for c in said)


def test_a_judge_that_reads_only_the_place_stays_a_tie_after_six_questions():
    judge = Hasty(reads=0, noise=0.0)
    said = SplitMerge(judge).judge(long_pairs(5))
    assert judge.asked == 30 and {c.verdict for c in said} == {0.5} and {c.stage for c in said} == {"none"}


def test_fewer_sentences_are_cut_into_fewer_parts_and_a_lone_one_into_none():
    judge = Hasty(reads=0, noise=0.0)
    (lone,) = SplitMerge(judge).judge([("Q", "One sentence", "Two. Sentences.")])
    assert judge.asked == 2 and lone.verdict == 0.5
    calls = []
    SplitMerge(Recording(calls), k=4).judge([("Q", "One. Two.", "A. B. C. D. E.")])
    assert 'part="2 of 2"' in calls[2] and "of 4" not in "".join(calls)


class Recording:
    def __init__(self, calls):
        self.calls = calls

    def ask(self, questions):
        self.calls += questions
        return ["[[A]]"] * len(questions)


def test_a_malformed_answer_is_counted_and_tried_in_parts():
    class Mute(Recording):
        def ask(self, questions):
            self.calls += questions
            return ["[[A]]" if "part=" in q and q.index("xx") < q.index("yy") else "[[B]]" if "part=" in q else "hm" for q in questions]  # fmt: skip

    calibrated = SplitMerge(Mute([]))
    (found,) = calibrated.judge([("Q", "xx. one. two.", "yy. one. two.")])
    assert found.plain == (None, None) and found.stage == "length" and found.verdict == 1.0
    assert calibrated.counters == {"comparisons": 1, "split": 1, "fixed": 1, "malformed": 2}


def test_portias_readings_are_their_definitions():
    forward, backward = [1, 1, 1, 0, 1], [0, 1, 1, 0, 1]
    after_f, after_b = [1, 1, 0, 0, 1], [0, 0, 1, 0, 1]
    found = named(portia(forward, backward, after_f, after_b, human_P=[1, 1, 1, 0, 0.5]))
    assert found["before/consistency"].value == pytest.approx(1 / 5)
    assert found["after/consistency"].value == pytest.approx(3 / 5)
    assert found["relative_gain"].value == pytest.approx(2.0)
    assert found["fixed_coverage"].value == pytest.approx(2 / 4)
    assert found["before/preference_for_first"].value == pytest.approx(3 / 4)
    assert found["after/preference_for_first"].value == pytest.approx(1 / 2)
    assert found["before/agreement"].value == pytest.approx(2 / 5)
    assert found["after/agreement"].value == pytest.approx(3 / 5)


# ---- AlignBench ------------------------------------------------------------------------------------------------------

ALL = [*REASONING, *LANGUAGE]


def test_the_overall_grade_is_the_mean_of_two_sections_and_not_of_answers():
    rating = [4.0, 8.0] + [6.0] * 6 + [10.0] * 12
    category = ALL + ["文本写作"] * 12
    found = named(alignbench(rating, category))
    assert found["alignbench/reasoning"].value == 6.0
    writing = (6 + 120) / 13
    assert found["alignbench/writing_ability"].value == pytest.approx(writing)
    assert found["alignbench/language"].value == pytest.approx((5 * 6 + writing) / 6)
    assert found["alignbench/overall"].value == pytest.approx((6 + (30 + writing) / 6) / 2)
    assert found["alignbench/overall"].value != pytest.approx(np.mean(rating))


def test_the_published_row_comes_out_of_its_sections():
    """GPT-4's 7.73 in reasoning and 8.29 in language are 8.01 overall."""
    rating = [7.73] * 4 + [8.29] * 12
    found = named(alignbench(rating, list(REASONING) * 2 + list(LANGUAGE) * 2))
    assert round(found["alignbench/overall"].value, 2) == 8.01 and found[
        "alignbench/overall"
    ].standard_error == pytest.approx(0)


def test_grades_that_could_not_be_read_are_counted_and_not_averaged_in():
    found = named(alignbench([8.0, -1.0, 6.0], ["Mathematics", "数学计算", "mathematics"]))
    assert found["alignbench/mathematics"].value == 7.0 and found["alignbench/failed"].value == pytest.approx(1 / 3)
    assert "alignbench/reasoning" not in found and "alignbench/overall" not in found


def test_dimensions_are_averaged_over_the_answers_that_have_them():
    found = named(alignbench(
        [8.0, 5.0, -1.0], ["数学计算"] * 3, [{"factuality": 9, "clarity": 4}, json.dumps({"factuality": 6}), {"clarity": 1}]
    ))  # fmt: skip
    assert found["alignbench/dimension/factuality"].value == 7.5 and found["alignbench/dimension/clarity"].n == 1


# ---- meta-evaluation (arXiv 2502.09416) ------------------------------------------------------------------------------


def outputs(systems=5, prompts=60, seed=0, noise=0.6):
    """A metric's and people's scores of outputs of better and worse systems, two annotators."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(prompts):
        quality = np.arange(systems)[::-1] * 0.4 + rng.normal(size=systems)
        metric = quality + noise * rng.normal(size=systems)
        for who in ("x", "y"):
            ranks = np.argsort(np.argsort(-(quality + 0.3 * rng.normal(size=systems))))
            rows += [(float(metric[i]), -float(ranks[i]), f"s{i}", f"p{s}", who) for i in range(systems)]
    return [list(c) for c in zip(*rows, strict=True)]


@pytest.mark.parametrize("method", ["expected_wins", "trueskill", "mean"])
def test_a_good_metric_agrees_by_pair_and_by_system_and_a_random_one_does_not(method):
    columns = outputs()
    good = named(metric_meta_evaluation(*columns, method=method, resamples=40))
    assert good["system_spearman"].value > 0.85 and good["sentence_accuracy"].low > 0.65
    assert good["sentence_kendall"].value == pytest.approx(2 * good["sentence_accuracy"].value - 1)
    assert len(good["system_pearson"].items) == 2 and good["system_pearson"].n == 60
    rng = np.random.default_rng(0)
    noise = {(s, p): rng.normal() for s, p in zip(columns[2], columns[3], strict=True)}
    chance = named(metric_meta_evaluation([noise[k] for k in zip(columns[2], columns[3], strict=True)], *columns[1:], method=method, resamples=40))  # fmt: skip
    assert holds(chance["sentence_accuracy"], 0.5)


def test_both_sides_of_the_system_level_are_the_shared_ratings():
    from scipy.stats import pearsonr

    from trueline.measure.aggregated_ratings import aggregated_ratings

    columns = outputs(prompts=20)
    own = {(s, p): v for v, s, p in zip(columns[0], columns[2], columns[3], strict=True)}
    metric = aggregated_ratings(
        [*own.values()], [s for s, _ in own], [p for _, p in own], method="trueskill", resamples=0
    )
    human = aggregated_ratings(
        columns[1], columns[2], list(zip(columns[3], columns[4], strict=True)), method="trueskill", resamples=0
    )
    a, b = ({r.name: r.value for r in x} for x in (metric, human))
    found = named(metric_meta_evaluation(*columns, method="trueskill", resamples=0))
    assert found["system_pearson"].value == pytest.approx(pearsonr([a[k] for k in a], [b[k] for k in a]).statistic)
    assert found["system_pearson"].low is None


def test_a_tie_of_the_metric_disagrees_and_the_published_rule_depends_on_the_order_of_systems():
    score, human = [1.0, 1.0], [2.0, 1.0]
    for h in (human, human[::-1]):
        both = named(metric_meta_evaluation(score, h, ["a", "b"], ["p", "p"], resamples=0))
        assert both["sentence_accuracy"].value == 0.0 and both["sentence_kendall"].value == -1.0
    replicated = [
        named(metric_meta_evaluation(score, h, ["a", "b"], ["p", "p"], ties="second_wins", resamples=0))
        for h in (human, human[::-1])
    ]
    assert [r["sentence_accuracy"].value for r in replicated] == [0.0, 1.0]


def test_human_ties_and_missing_values_count_for_nobody():
    nan = float("nan")
    score = [3.0, 2.0, 1.0, 3.0, nan, 1.0]
    human = [1.0, 1.0, 0.0, nan, 1.0, 0.0]
    found = named(metric_meta_evaluation(score, human, ["a", "b", "c"] * 2, ["p"] * 3 + ["q"] * 3, resamples=0))
    assert found["sentence_accuracy"].value == 1.0  # a > c and b > c on p, and nothing on q


def test_windows_show_a_metric_that_only_tells_good_from_bad():
    human = [10.0, 9.0, 8.0, 7.0, 1.0, 0.5, 0.2, 0.0]
    metric = [7.0, 8.0, 9.0, 10.0, 0.0, 0.2, 0.5, 1.0]
    found = named(system_correlation(metric, human))
    assert found["system_pearson"].value > 0.8
    inner = found["system_pearson"].items
    assert [w["from_rank"] for w in inner] == [1, 2, 3, 4, 5] and inner[0]["spearman"] == inner[-1]["spearman"] == -1
    assert system_correlation([1, 1, 1, 1, 2], [5, 4, 3, 2, 1])[0].items[0]["pearson"] is None
    assert found["system_pearson"].low < found["system_pearson"].value < found["system_pearson"].high
    assert system_correlation([1, 2, 3], [1, 2, 3], window=2)[1].low is None


# ---- bad input -------------------------------------------------------------------------------------------------------

ROW = ([1.0], [2.0], ["a"], ["p"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: judge_audit([1, 2], [0, 0]), "'forward' of row 1 is 2"),
        (lambda: judge_audit([1], [0, 0]), "1 forward, 2 backward"),
        (lambda: judge_audit([float("nan")], [1]), "no verdict in both orders"),
        (lambda: judge_audit([1], [0], length_P=[3]), "both 'length' and 'other_length'"),
        (lambda: judge_audit([1, 1], [0, 0], length_P=[3, 0], other_length_P=[1, 1]), "length of row 1"),
        (lambda: judge_audit([1], [0], own_P=["first"]), "give 'human' beside 'own'"),
        (lambda: judge_audit([1], [0], human_P=[1], own_P=["me"]), "'own' of row 0 is 'me'"),
        (lambda: judge_audit([1], [0], reworded_P=[[1]]), "two wordings or more"),
        (lambda: judge_audit([1], [0], clusters=["a", "b"]), "2 values of 'prompt'"),
        (lambda: judge_audit([1], [0], human_P=[float("nan")]), "both a verdict of the judge and a human"),
        (lambda: portia([1], [0], [1], [3]), "'portia_backward' of row 0 is 3"),
        (lambda: krippendorff_alpha([1, 2], ["a", "b"]), "no item has two ratings"),
        (lambda: krippendorff_alpha([1, 1], ["a", "a"]), "every rating is 1"),
        (lambda: krippendorff_alpha([1, 2], ["a", "a"], ["x", "x"]), "'x' rated 'a' 2 times"),
        (lambda: krippendorff_alpha([1, 2], ["a", "a"], level="ratio"), "level is 'ratio'"),
        (lambda: alignbench([11.0], ["数学计算"]), "grade of row 0 is 11"),
        (lambda: alignbench([5.0], ["数学"]), "'数学' of row 0 is no category"),
        (lambda: alignbench([-1.0], ["数学计算"]), "none of 1 answers has a grade"),
        (lambda: alignbench([5.0, 5.0], ["数学计算"]), "2 rating, 1 category"),
        (lambda: alignbench([5.0], ["数学计算"], [{"factuality": 0}]), "'factuality' of row 0 is 0"),
        (lambda: metric_meta_evaluation(*ROW), "found 1: "),
        (lambda: metric_meta_evaluation([1, 1], [1, 1], ["a", "b"], ["p", "p"]), "no person told two systems apart"),
        (lambda: metric_meta_evaluation([1, 1], [1, 2], ["a", "a"], ["p", "p"]), "found 1"),
        (lambda: metric_meta_evaluation([1, 1, 1], [1, 2, 3], ["a", "b", "a"], ["p"] * 3), "Row 2: 'a' on 'p' is judged twice"),
        (lambda: metric_meta_evaluation([1, 1, 2], [1, 2, 3], ["a", "b", "a"], ["p"] * 3, ["x", "x", "y"]), "is 2 here and 1 above"),
        (lambda: system_correlation([1, 1], [1, 2], window=2), "every rating is 1"),
        (lambda: system_correlation([1, 2, 3], [1, 2, 3], window=4), "window is 4"),
        (lambda: SplitMerge(Hasty(), form="prose"), "form is 'prose'"),
        (lambda: SplitMerge(Hasty(), k=1), "parts is 1"),
        (lambda: semantic_cuts(["a"], ["b"], 2), "2 parts cannot be cut out of 1 and 1"),
    ],
)  # fmt: skip
def test_wrong_input_names_its_place(call, says):
    with pytest.raises(TruelineError, match=says):
        call()
