"""`trueline measure` with a judge: what it is asked, what comes back as columns, and biases planted behind an endpoint."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from tests.openai_server import Reply, completion, serving
from trueline.errors import TruelineError
from trueline.feedback.contract import FeedbackContext, counters, is_relative
from trueline.feedback.portia import portia
from trueline.groups import Group, Response
from trueline.lab import gold
from trueline.lab.corpus import write
from trueline.lab.world import world
from trueline.measure.judge_audit import judge_audit
from trueline.measure.portia import portia as portia_measure
from trueline.measure.varco_arena import varco_arena
from trueline.measuring import contract, grading, judged
from trueline.ratings import Matches, rate

BLOCK = r"<response_{}[^>]*>\n(.*?)\n</response_{}"


def sides(question: str) -> tuple[str, str]:
    return tuple(" ".join(re.findall(BLOCK.format(s, s), question, re.DOTALL)) for s in "ab")  # type: ignore[return-value]


def asked_of(question: str) -> str:
    return re.search(r"<request>\n(.*?)\n</request>", question, re.DOTALL)[1]  # type: ignore[index]


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """A request on rows, with the answers' cache in a folder of the test."""
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))

    def make(name, rows, url=None, **more):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return contract.Request(name, data=[str(file)], feedback=[f"judge:tiny@{url}"] if url else [], **more)

    return make


def named(readings):
    return {r.name: r for r in readings}


# ---- the lab: gold says who is better, the judge has a planted bias --------------------------------------------------


def lab_pairs(count=60, seed=0):
    """Preference rows of the lab's world with a clear gold margin, better reply first as data have it."""
    small = world("unit")
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        prompt = small.train[rng.integers(len(small.train))]
        two = [write(small, small.ask(prompt), skill, rng) for skill in (0.9, 0.2)]
        reward = gold.reward(small, [prompt] * 2, two)
        if abs(reward[0] - reward[1]) > 0.5:
            better, worse = two if reward[0] > reward[1] else two[::-1]
            rows.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return small, rows


def lab_judge(small, *, favour=0.0, wordy=0.0):
    """Answers by gold, with something for whoever stands first and for each word more."""

    def answer(question: str, _: int) -> Reply:
        a, b = sides(question)
        reward = gold.reward(small, [asked_of(question)] * 2, [a, b])
        margin = reward[0] - reward[1] + favour + wordy * (len(a.split()) - len(b.split()))
        return completion("[[A]]" if margin > 0 else "[[B]]")

    return answer


def test_a_position_bias_behind_an_endpoint_is_found_and_swapping_repairs_it(request_of):
    small, rows = lab_pairs()
    with serving(lab_judge(small, favour=2.0)) as server:
        ((_, columns),) = judged.verdicts(request_of("judge_audit", rows, server.url))
        assert len(server.asked) == 2 * len(rows)
    found = named(judge_audit(**columns))
    assert found["position_slope"].low > 1.0 and found["first_share"].value > 0.6
    assert 0.25 < np.mean(columns["human_P"]) < 0.75  # A is not always the better one
    settled = [(f, h) for f, b, h in zip(columns["forward_P"], columns["backward_P"], columns["human_P"], strict=True) if f == 1 - b]  # fmt: skip
    assert all(f == h for f, h in settled) and found["agreement_one_order"].value < 0.9
    with serving(lab_judge(small)) as server:
        ((_, columns),) = judged.verdicts(request_of("judge_audit", rows, server.url))
    fair = named(judge_audit(**columns))
    assert fair["consistency"].value == 1.0 and fair["agreement"].value == 1.0 and "preference_for_first" not in fair


def test_a_verbosity_bias_behind_an_endpoint_is_found(request_of):
    small, rows = lab_pairs(80)
    slopes = []
    for wordy in (0.0, 0.6):
        with serving(lab_judge(small, wordy=wordy)) as server:
            ((_, columns),) = judged.verdicts(request_of("judge_audit", rows, server.url))
        found = named(judge_audit(**columns))
        slopes.append(found["longer_preferred_excess"])
    assert slopes[0].value == 0 and slopes[1].low > 0.02


# ---- columns ---------------------------------------------------------------------------------------------------------

PAIR = {"prompt": "Q", "chosen": "good. yes. one. two.", "rejected": "bad. no. three. four."}


def test_columns_of_verdicts_hold_lengths_authors_and_wordings(request_of):
    def first_unless_other(question: str, _: int) -> Reply:
        a, _b = sides(question)
        if asked_of(question) == "R":
            return completion("[[A]]")
        return completion("[[A]]" if a.startswith("good") else "[[B]]")

    rows = [PAIR | {"paraphrases": ["Q2", "R"], "chosen_model": "tiny", "rejected_model": "other"}]
    for seed in range(4):
        with serving(first_unless_other) as server:
            request = request_of("judge_audit", rows, server.url, seed=seed)
            ((_, columns),) = judged.verdicts(request)
        human = columns["human_P"][0]
        assert columns["forward_P"] == [human] and columns["backward_P"] == [1 - human]
        assert columns["reworded_P"] == [[human, human, 0.5]]
        assert columns["own_P"] == ["first" if human == 1 else "second"]
        lengths = len(PAIR["chosen"]), len(PAIR["rejected"])
        assert (columns["length_P"][0], columns["other_length_P"][0]) == (lengths if human == 1 else lengths[::-1])
        assert set(columns) == {"forward_P", "backward_P", "human_P", "length_P", "other_length_P", "own_P", "reworded_P", "clusters"}  # fmt: skip


def test_answers_without_a_verdict_are_nan_and_counted_by_the_measure(request_of):
    mute = lambda q, n: completion("hm" if sides(q)[0].startswith("bad") else "[[A]]")  # noqa: E731
    with serving(mute) as server:
        ((_, columns),) = judged.verdicts(
            request_of("judge_audit", [PAIR, PAIR | {"prompt": "P", "rejected": "x"}], server.url)
        )
    assert math.isnan(columns["forward_P"][0]) != math.isnan(columns["backward_P"][0])
    assert named(judge_audit(**columns))["no_verdict"].value == 0.5


def test_portias_columns_are_plain_and_repaired_verdicts(request_of):
    def in_parts_only(question: str, _: int) -> Reply:
        a, _b = sides(question)
        return completion("[[A]]" if "part=" not in question or a.startswith("good") else "[[B]]")

    with serving(in_parts_only) as server:
        ((_, columns),) = judged.portia(request_of("portia", [PAIR], server.url))
        assert len(server.asked) == 4
    human = columns["human_P"][0]
    assert columns["forward_P"] == columns["backward_P"] == [1.0]
    assert columns["portia_forward_P"] == [human] and columns["portia_backward_P"] == [1 - human]
    found = named(portia_measure(**columns))
    assert found["after/consistency"].value == found["fixed_coverage"].value == found["after/agreement"].value == 1.0


# ---- PORTIA as a judge -----------------------------------------------------------------------------------------------


def test_portia_is_a_pairwise_judge_that_fills_preferences_and_counts(tmp_path):
    def in_parts_only(question: str, _: int) -> Reply:
        a, _b = sides(question)
        return completion("[[A]]" if "part=" not in question or a.startswith("good") else "[[B]]")

    with serving(in_parts_only) as server:
        judge = portia(FeedbackContext(None, 512), f"tiny@{server.url}", cache=str(tmp_path / "c.jsonl"), retries=0)
        group = Group("Q", [Response(text=PAIR["chosen"]), Response(text=PAIR["rejected"])])
        judge([group])
        assert group.preferences == [[0.5, 1.0], [0.0, 0.5]] and [r.reward for r in group.responses] == [1.0, 0.0]
        told = counters(judge)
        assert (told["comparisons"], told["split"], told["fixed"], told["asked"]) == (1, 1, 1, 4) and is_relative(judge)
        again = portia(FeedbackContext(None, 512), f"tiny@{server.url}", cache=str(tmp_path / "c.jsonl"), retries=0)
        again([group])
        assert counters(again)["asked"] == 0 and counters(again)["cached"] == 4


@pytest.mark.parametrize(
    ("argument", "options", "says"),
    [
        ("m@http://127.0.0.1:9/v1", {"parts": 1}, "parts is 1"),
        ("m@http://127.0.0.1:9/v1", {"form": "prose"}, "form is 'prose'"),
        ("m@http://127.0.0.1:9/v1", {"concurrency": 0}, "concurrency is 0"),
        ("m@http://127.0.0.1:9/v1", {"timeout": 0.0}, "timeout is 0"),
        ("runs/judge", {"retries": 2, "cache": "x"}, "retries, cache has no effect"),
    ],
)
def test_portias_options_that_cannot_work_are_refused(argument, options, says):
    with pytest.raises(TruelineError, match=says):
        portia(FeedbackContext(None, 512), argument, **options)


# ---- matches ---------------------------------------------------------------------------------------------------------

OUTPUTS = [{"prompt": f"P{i}", "outputs": {"best": "aaa" + "!" * i, "mid": "aa" + "!" * i, "bad": "a" + "!" * i}} for i in range(3)]  # fmt: skip


def longer(question: str, _: int) -> Reply:
    a, b = (len(s) for s in sides(question))
    return completion("[[A]]" if a > b else "[[B]]")


def test_every_two_systems_meet_or_every_one_an_anchor_and_both_orders_are_asked(request_of):
    with serving(longer) as server:
        ((_, columns),) = judged.matches(request_of("ratings", OUTPUTS, server.url))
        assert len(columns["share_K"]) == 9 and len(server.asked) == 18 and "advanced_K" not in columns
        found = rate(Matches.of(*columns.values()), "expected_wins", resamples=0).named()
        assert found == {"best": 1.0, "mid": 0.5, "bad": 0.0}
        ((_, columns),) = judged.matches(request_of("ratings", OUTPUTS, server.url, model_b="mid"))
        assert len(columns["share_K"]) == 6
        assert all("mid" in pair for pair in zip(columns["first_K"], columns["second_K"], strict=True))
        assert len(server.asked) == 18  # the answers are known already
        with pytest.raises(TruelineError, match="'none' is none of the systems best, mid, bad"):
            judged.matches(request_of("ratings", OUTPUTS, server.url, model_b="none"))


def test_a_tournament_is_played_on_rows_of_either_form(request_of):
    rows = [{"prompt": r["prompt"], "system": s, "response": t} for r in OUTPUTS for s, t in r["outputs"].items()]
    with serving(longer) as server:
        ((_, columns),) = judged.tournament(request_of("varco_arena", rows, server.url))
        assert len(columns["share_K"]) == 6 and len(server.asked) == 12
        assert sum(a == "best" for a in columns["advanced_K"]) >= 3
    found = varco_arena(**columns, ridge=0.1, resamples=0)
    assert [r.name for r in found] == ["rating/best", "rating/mid", "rating/bad"]


def test_a_judge_that_scores_plays_too(request_of):
    request = request_of("ratings", OUTPUTS)
    request.feedback = ["rule:tests.test_measure_judging_made:length_rule"]
    ((_, columns),) = judged.matches(request)
    assert rate(Matches.of(*columns.values()), "expected_wins", resamples=0).named() == {
        "best": 1,
        "mid": 0.5,
        "bad": 0,
    }


def length_rule(completions, **_):
    return [float(len(c if isinstance(c, str) else c[-1]["content"])) for c in completions]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "P", "outputs": {"a": "x", "b": "y"}}, {"prompt": "Q", "outputs": {"a": "x"}}], "b said nothing to 'Q'"),
        ([{"prompt": "P", "outputs": ["x"]}], "expected 'outputs'"),
        ([{"outputs": {"a": "x"}}], "expected 'prompt'"),
        ([{"prompt": "P", "system": "a", "response": "x"}] * 2, "'a' has an output to this prompt already"),
        ([{"prompt": "P", "outputs": {"a": "x"}}], "found 1, expected 2"),
    ],
)  # fmt: skip
def test_outputs_that_cannot_be_compared_name_their_row(request_of, rows, says):
    request = request_of("ratings", rows)
    request.feedback = ["rule:tests.test_measure_judging_made:length_rule"]
    with pytest.raises(TruelineError, match=says):
        judged.matches(request)


# ---- grades ----------------------------------------------------------------------------------------------------------

GRADED = {"question": "1+1?", "reference": "2", "category": "数学计算", "subcategory": "初等数学", "answer": "two"}


@pytest.mark.parametrize(
    ("text", "overall", "dimensions"),
    [
        ("Good. {'factuality': 7, 'clarity': 8, 'overall': 7}", 7.0, {"factuality": 7.0, "clarity": 8.0}),
        ('{"factuality": 7, "overall": 7}', 7.0, {"factuality": 7.0}),
        ("{'overall': 2} then {'factuality': 9, 'overall': 9} end", 9.0, {"factuality": 9.0}),
        ("{'overall': 9} so {'factuality': 9}", -1.0, {}),
        ("{'factuality': 7.5, 'overall': 7.0}", 7.0, {}),
        ("{'factuality': 7, 'overall': 7.5}", -1.0, {}),
        ("{'factuality': 7, 'overall': 11}", -1.0, {}),
        ("{'factuality': 7, 'overall': true}", -1.0, {}),
        ('{"overall": NaN}', -1.0, {}),
        ("{'factuality': 12,\n 'clarity': 3,\n 'overall': 4}", 4.0, {"clarity": 3.0}),
        ("{'factuality': 7, 'overall': '8'}", -1.0, {}),
        ("the overall grade is 8", -1.0, {}),
        ("{not a dict}", -1.0, {}),
        ("{'style': 3, 'overall': 4}", 4.0, {}),
        ("", -1.0, {}),
    ],
)
def test_grades_are_read_from_the_last_braces_and_never_guessed(text, overall, dimensions):
    assert grading.grades(text, ("factuality", "clarity")) == (overall, dimensions)


def test_a_question_is_graded_in_the_dimensions_of_its_kind_with_the_rules_and_the_reference():
    row = {"category": "数学计算", "subcategory": "初等数学", "question": "1+1? {answer}", "reference": "2"}
    text, dimensions = grading.question(row, "two {reference}")
    assert dimensions == ("factuality", "need_satisfaction", "logical_coherence", "completeness")
    assert "{'factuality': GRADE, 'need_satisfaction': GRADE, 'logical_coherence': GRADE" in text
    assert "<question>\n1+1? {answer}\n</question>" in text and "<answer>\ntwo {reference}\n</answer>" in text
    assert "The reference itself would get 8" in text and "richness" not in text
    assert len(grading.question(row | {"subcategory": "翻译"}, "x")[1]) == 5
    with pytest.raises(TruelineError, match="subcategory '数学' is not AlignBench's"):
        grading.question(row | {"subcategory": "数学"}, "x")


def test_the_map_of_subcategories_is_the_benchmarks():
    kinds = list(grading.SUBCATEGORIES.values())
    assert len(kinds) == 36 and {k: kinds.count(k) for k in grading.KINDS} == {
        "explanation": 19, "reasoning": 5, "generation": 10, "advice": 2,
    }  # fmt: skip


def test_answers_are_graded_by_the_rules_and_failures_are_minus_one(request_of):
    def grade(question: str, _: int) -> Reply:
        good = "<answer>\ntwo\n</answer>" in question
        return completion("So: {'factuality': 8, 'clarity': 2, 'overall': 7}" if good else "no grade")

    with serving(grade) as server:
        request = request_of("alignbench", [GRADED, GRADED | {"answer": "three"}], server.url)
        ((_, columns),) = grading.graded(request)
        assert server.requests[0]["temperature"] == 0
    assert columns == {
        "rating_R": [7.0, -1.0],
        "dimensions_R": [{"factuality": 8.0}, {}],
        "category_R": ["数学计算"] * 2,
    }


def test_a_row_without_its_fields_is_named(request_of):
    with pytest.raises(TruelineError, match=r"Row 2 of .* has no reference, answer"):
        grading.graded(request_of("alignbench", [GRADED, {k: v for k, v in GRADED.items() if k not in ("reference", "answer")}], "http://x"))  # fmt: skip


@pytest.mark.parametrize("feedback", [[], ["lab"], ["judge:a", "judge:b"]])
def test_who_is_no_judge_in_words_is_refused(request_of, feedback):
    request = request_of("judge_audit", [PAIR])
    request.feedback = feedback
    with pytest.raises(TruelineError, match="asks one judge in words"):
        judged.verdicts(request)


# ---- the command -----------------------------------------------------------------------------------------------------

MADE = {"verdicts": judged.verdicts, "portia": judged.portia, "matches": judged.matches}
MADE |= {"tournament": judged.tournament, "graded": grading.graded}


@pytest.mark.parametrize(
    ("name", "rows", "reading"),
    [
        ("judge_audit", [PAIR, PAIR | {"prompt": "P"}], "consistency"),
        ("portia", [PAIR, PAIR | {"prompt": "P"}], "after/consistency"),
        ("ratings", OUTPUTS, "rating/best"),
        ("varco_arena", OUTPUTS, "rating/best"),
        ("alignbench", [GRADED], "alignbench/failed"),
    ],
)
def test_measure_makes_the_columns_and_reads_them(request_of, monkeypatch, name, rows, reading):
    from trueline.measuring import makers, measure

    for takes, make in MADE.items():
        monkeypatch.setitem(makers.MAKERS, takes, make)
    answers = {"alignbench": lambda q, n: completion("{'overall': 6}")}
    options = {"ridge": 0.1, "resamples": 0} if name in ("ratings", "varco_arena") else {}
    with serving(answers.get(name, longer)) as server:
        found = named(measure(request_of(name, rows, server.url, options=options)))
    assert reading in found and "judged by judge:tiny@" in found[reading].measured_on


def test_columns_come_out_of_files_as_well(request_of):
    from trueline.measuring import measure

    rows = [{"first": "a", "second": "b", "share": s, "prompt": i} for i, s in enumerate([1, 1, 0, 0.5])]
    found = named(measure(request_of("ratings", rows, options={"resamples": 0})))
    assert found["rating/a"].value > 0 > found["rating/b"].value
    rows = [{"forward": 1, "backward": 0, "human": 1, "reworded": [1, 0.5], "own": "first"}, {"forward": 1, "backward": 1, "human": 0, "reworded": [1, 1], "own": "neither"}]  # fmt: skip
    found = named(measure(request_of("judge_audit", rows)))
    assert found["consistency"].value == 0.5 and found["paraphrase_disagreement"].value == 0.5
    rows = [{"rating": r, "item": i} for i in ("x", "y") for r in (1, 2 if i == "y" else 1)]
    assert named(measure(request_of("krippendorff_alpha", rows)))["krippendorff_alpha"].n == 2
    rows = [{"rating": 7, "category": "数学计算", "dimensions": {"factuality": 6}}, {"rating": -1, "category": "数学计算", "dimensions": {}}]  # fmt: skip
    assert named(measure(request_of("alignbench", rows)))["alignbench/mathematics"].value == 7


def test_a_model_folder_is_asked_as_well(request_of, tmp_path):
    """A tiny model says nothing that is a verdict: every question is asked, and every answer counted as none."""
    from tests.model_folders import model_folder

    folder = model_folder(tmp_path / "judge", max_position_embeddings=1024)
    request = request_of("portia", [PAIR])
    request.feedback = [f"judge:{folder}"]
    asker = judged.asker_of(request)
    asker.max_tokens = 3
    said = judged._both_orders(asker, [("Q", "a. b.", "c. d.")])
    assert said == [(None, None)]
    judge = portia(FeedbackContext(None, 512), str(folder), max_tokens=3)
    group = Group("Q", [Response(text="a. b."), Response(text="c. d.")])
    judge([group])
    assert group.preferences == [[0.5, None], [None, 0.5]] and counters(judge)["malformed"] == 6
