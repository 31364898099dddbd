"""Engine two of `trueline curate`: what is proposed, answered, checked and refused, with scripted models."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import pytest

from tests.openai_server import completion, serving
from trueline.curate import isara
from trueline.curate.i_sheep import graded_out, read_grade, rule
from trueline.curate.p_aligner import Node, search
from trueline.curating import Request, curate
from trueline.curating.embedding import word_vectors
from trueline.curating.pool import FilePool
from trueline.errors import TruelineError
from trueline.registry import load


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def written(folder, name="data.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@dataclass
class Scripted:
    """A workshop that answers by a function of (question text, number)."""

    answer: object
    given: bool = True
    asked: list = field(default_factory=list)
    rewards: object = None

    def facts(self):
        return {"scripted": {}}

    def prefix(self):
        return "<user>"

    def answers(self, questions, *, number=0, by=None, **law):
        numbers = [number] * len(questions) if isinstance(number, int) else list(number)
        texts = [q if isinstance(q, str) else q[-1]["content"] for q in questions]
        self.asked += texts
        return [self.answer(t, k, by) for t, k in zip(texts, numbers, strict=True)]

    def embed(self, texts):
        sparse = word_vectors(texts)
        return np.asarray(sparse[:, np.unique(sparse.nonzero()[1])].todense())

    def feedback(self, spec, groups):
        return [[self.rewards(g, r.text) for r in g.responses] for g in groups]


def made(name, answer, rows=(), tmp_path=None, rewards=None, **options):
    pool = FilePool.open([jsonl(tmp_path / "seed.jsonl", list(rows))], seed=0) if rows else FilePool.empty(0)
    pool.workshop = Scripted(answer, rewards=rewards)
    return list(load("curate", name).call(pool, **options)), pool.workshop


# ---- Magpie (137) ------------------------------------------------------------------------------------------------------

DRAWN = ["How do I bake bread at home?", "how do i bake bread at home", "Name the rivers of Europe.", "", "<|im_start|>user\nhi", "List them:", None, "What does a beaver eat in winter?"]  # fmt: skip


def magpie_answer(text, number, by):
    if by == "judge":
        return {"Name": "[[poor]]", "What": "no idea"}.get(text.split("<request>\n")[1].split()[0], "[[good]]")
    return DRAWN[number] if text == "<user>" else f"answer {number} to {text}"


def test_magpie_refuses_junk_and_keeps_the_first_of_alike_ones(tmp_path):
    rows, _ = made("magpie", magpie_answer, tmp_path=tmp_path, count=8)
    assert [r.reason for r in rows] == [
        None,
        "near-duplicate of an earlier instruction",
        None,
        "empty instruction",
        "template junk in the instruction",
        "the instruction ends with a colon",
        "the instruction did not end by itself",
        None,
    ]
    assert rows[0].row["completion"][0]["content"] == f"answer 0 to {DRAWN[0]}"
    assert rows[0].score == len(rows[0].row["completion"][0]["content"])  # the longest first, as released


def test_magpie_quality_that_cannot_be_read_is_no_good_quality(tmp_path):
    rows, _ = made("magpie", magpie_answer, tmp_path=tmp_path, count=8, judge="judge")
    assert [r.reason for r in rows][2] == "quality rated poor" and rows[7].reason == "no readable quality rating"
    assert rows[0].reason is None


def test_magpie_pairs_take_the_best_and_the_worst_and_never_a_tie(tmp_path):
    def reward(group, text):
        return 1.0 if "rivers" in text else float(text.split()[1])

    rows, _ = made("magpie", magpie_answer, tmp_path=tmp_path, count=3, responses=3, reward="rule:x", rewards=reward)
    assert rows[0].row["score_chosen"] == 2 and rows[0].row["score_rejected"] == 0 and rows[0].reason is None
    assert rows[0].row["chosen"] != rows[0].row["rejected"]
    assert rows[2].reason == "all responses are rated alike"
    low, _ = made(
        "magpie", magpie_answer, tmp_path=tmp_path, count=1, reward="rule:x", least_reward=0.5, rewards=reward
    )
    assert low[0].reason == "reward too low"
    with pytest.raises(TruelineError, match="needs --reward"):
        made("magpie", magpie_answer, tmp_path=tmp_path, responses=2)
    with pytest.raises(TruelineError, match="no effect without --reward"):
        made("magpie", magpie_answer, tmp_path=tmp_path, least_reward=1.0)


# ---- ISARA (113) -------------------------------------------------------------------------------------------------------

SEEDS = [{"prompt": f"what colour is the {thing}", "completion": colour} for thing, colour in (("sky", "blue"), ("grass", "green"), ("snow", "white"), ("coal", "black"))]  # fmt: skip


def isara_answer(text, number, by):
    if text.endswith("Answer:"):
        return " red\n\nQuestion: and more"
    return [" which animal barks loudest\nAnswer: dog", " what colour is the sky", "", " how tall is a giraffe"][
        number % 4
    ]


def test_isara_prompts_hold_examples_and_no_instruction_and_pools_grow(tmp_path):
    rows, shop = made("isara", isara_answer, SEEDS, tmp_path, rounds=1, per_round=4, shots=4)
    for prompt in shop.asked:
        bare = prompt.replace("Question:", "").replace("Answer:", "")
        for row in [
            *SEEDS,
            {"prompt": "which animal barks loudest", "completion": ""},
            {"prompt": "how tall is a giraffe", "completion": ""},
        ]:
            bare = bare.replace(row["prompt"], "").replace(row["completion"] or "\0", "")
        assert not bare.strip()
    reasons = [r.reason for r in rows]
    assert reasons.count(None) >= 1 and set(reasons) <= {None, "too like a question of the pool", "empty question"}
    kept = next(r for r in rows if r.reason is None)
    assert kept.row == {"prompt": "which animal barks loudest", "completion": "red", "round": 1}


def test_isara_limits(tmp_path):
    assert isara.question_prompt([]) == "Question:" and isara.answer_prompt([], "q") == "Question: q\nAnswer:"
    with pytest.raises(TruelineError, match="rounds and per_round"):
        made("isara", isara_answer, SEEDS, tmp_path, rounds=0)
    known = [(r["prompt"], r["completion"]) for r in SEEDS]
    pool = FilePool.empty(0)
    (found,) = isara.retrieved(pool, ["what colour is the grass"], known, 2, "words")
    assert found[-1] == ("what colour is the grass", "green")  # the nearest stands next to the question
    assert isara.retrieved(pool, ["q"], known, 0, "words") == [[]]
    fresh = ["how old is the moon", "how old is the moon", "what colour is the sky"]
    once = isara._refused(pool, fresh, known, 0.8, "words")
    assert once == [None, "too like a question of the pool", "too like a question of the pool"]
    again = isara._refused(pool, ["how old is the moon"], [*known, ("how old is the moon", "x")], 0.8, "words")
    assert again == ["too like a question of the pool"]


# ---- I-SHEEP (35) ------------------------------------------------------------------------------------------------------


def sheep(grades):
    def answer(text, number, by):
        if text.endswith("### Task:"):
            return f" name {crc32(text.encode())} things of kind {number}\n### Task: another"
        if text.startswith("Grade how helpful"):
            return grades[0]
        return grades[1] if text.startswith("Grade how exactly") else "an answer"

    return answer


def test_i_sheep_keeps_only_what_both_grades_put_above_the_threshold(tmp_path):
    seeds = [{"prompt": f"task {i}"} for i in range(5)]
    for grades, reason in (
        (("9||fine", "10||fine"), None),
        (("8||fine", "10||fine"), "quality graded 8 or lower"),
        (("10", "10||x"), "a grade that cannot be read"),
        (("9||x", "100||x"), "a grade that cannot be read"),
        ((None, "9||x"), "a grade that cannot be read"),
    ):
        rows, _ = made("i_sheep", sheep(grades), seeds, tmp_path, count=2)
        assert {r.reason for r in rows} == {reason}
    assert {r.reason for r in made("i_sheep", sheep(("1||", "1||")), seeds, tmp_path, count=2, above=-1.0)[0]} == {None}
    assert None not in {
        r.reason for r in made("i_sheep", sheep(("10||", "10||")), seeds, tmp_path, count=2, above=10.0)[0]
    }
    assert read_grade("7||because 9") == 7 and read_grade("seven||x") is None and graded_out({}, 8) is None
    assert rule("\nHuman: hi") and rule(" ") and rule("A. B. C.") and not rule("Say hello to a friend")


def test_i_sheep_repeats_nothing_of_earlier_rounds(tmp_path):
    seeds = [{"prompt": "same task"}]
    rows, _ = made("i_sheep", lambda t, k, b: "the very task" if t.endswith("Task:") else "yes", seeds, tmp_path, count=2, above=-1.0)  # fmt: skip
    assert [r.reason for r in rows] == [None, "a task that was there before"]
    earlier = jsonl(tmp_path / "earlier.jsonl", [{"prompt": "The very task."}])
    rows, _ = made("i_sheep", lambda t, k, b: "the very task" if t.endswith("Task:") else "yes", seeds, tmp_path, count=1, above=-1.0, earlier=[earlier])  # fmt: skip
    assert rows[0].reason == "a task that was there before"


# ---- selective translation (126) ---------------------------------------------------------------------------------------

CODE = [{"prompt": "fix `x_1 = 2` for 3 people", "chosen": "see\n```py\nx_1 = 3\n```\ndone", "rejected": "say {\"k\": 1} now", "licence": "cc0", "source": "s"}]  # fmt: skip


def bijection(text, number, by):
    body = text.split("nothing else.\n\n", 1)[1]
    return "".join(c.swapcase() for c in body)


def test_a_translation_keeps_code_numbers_and_json_and_where_it_came_from(tmp_path):
    (row,), shop = made("selective_translation", bijection, CODE, tmp_path)
    assert row.reason is None
    assert row.row["prompt"] == "FIX `x_1 = 2` FOR 3 PEOPLE" and row.row["chosen"] == "SEE\n```py\nx_1 = 3\n```\nDONE"
    assert row.row["rejected"] == 'SAY {"k": 1} NOW'
    assert (row.row["licence"], row.row["source"], row.row["curate_parent"]) == ("cc0", "s", "seed.jsonl:1")
    assert not any("x_1" in asked for asked in shop.asked)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.replace("⟦0⟧", ""), "lost spans"),
        (lambda t: t.replace("⟦0⟧", "⟦0⟧ ⟦0⟧"), "lost spans"),
        (lambda t: t.replace("3", "4"), "lost numbers"),
        (lambda t: t * 9 if "⟦" not in t else t, None),
        (lambda t: "", "no translation came, or it was cut off"),
    ],
)
def test_a_spoilt_side_refuses_the_whole_pair(tmp_path, spoil, reason):
    (row,), _ = made("selective_translation", lambda t, k, b: spoil(bijection(t, k, b)), CODE, tmp_path)
    assert row.reason == reason


def test_translation_checks_language_length_judge_and_what_is_to_be_skipped(tmp_path):
    plain = [
        {
            "prompt": "tell me of the moon and of what it is made",
            "completion": "it is made of stone and of dust, and that is all",
        }
    ]
    (row,), _ = made("selective_translation", lambda t, k, b: t.split("else.\n\n", 1)[1], plain, tmp_path, code="de")
    assert row.reason == "the language looks like en"
    (row,), _ = made("selective_translation", lambda t, k, b: "ja", plain, tmp_path)
    assert row.reason == "length far from the source's"
    for rating, reason in (("[[5]]", None), ("[[3]]", "translation rated too low"), ("good", "no readable rating of the translation")):  # fmt: skip
        (row,), _ = made("selective_translation", lambda t, k, b, r=rating: r if b else bijection(t, k, b), plain, tmp_path, judge="j")  # fmt: skip
        assert row.reason == reason
    (row,), _ = made("selective_translation", bijection, plain, tmp_path, skip="moon")
    assert row.reason == "a prompt that `skip` names"


def test_a_share_of_nothing_translates_nothing_and_of_one_everything(tmp_path):
    rows = [{"prompt": f"question number {i}", "completion": f"reply number {i}"} for i in range(20)]
    none, shop = made("selective_translation", bijection, rows, tmp_path, share=0.0)
    assert not shop.asked and [r.row["prompt"] for r in none] == [r["prompt"] for r in rows]
    some, _ = made("selective_translation", bijection, rows, tmp_path, share=0.5)
    assert 3 < sum(r.row["translated"] for r in some) < 17
    every, _ = made("selective_translation", bijection, rows, tmp_path, share=1.0)
    assert all(r.row["translated"] for r in every)


# ---- principle-guided rewriting (59) -----------------------------------------------------------------------------------


def test_the_search_visits_the_predicted_nodes_and_backs_up_the_best():
    reward = {"r": 0.0, "r0": 1.0, "r1": 0.5, "r01": 3.0, "r10": 0.2}
    root = search("r", 2, 3, 0.0, lambda text, k: text + str(k), lambda text: reward[text], np.random.default_rng(0))
    assert {c.text for c in root.children} == {"r0", "r1"} and root.visits == 3
    (grown,) = [c for c in root.children if c.children]
    assert grown.text == "r0" and [n.text for n in grown.children] == ["r01"]  # c = 0: the child with the larger Q
    assert root.best() == 3.0 and root.average == 0.0 and grown.value() == pytest.approx(2.0)
    one = search("r", 5, 1, 1.0, lambda text, k: text + str(k), lambda text: 1.0, np.random.default_rng(3))
    assert len(one.everyone()) == 2
    assert Node("x", []).value() == 0.0


def test_identity_rewrites_give_no_pair_and_rewrites_are_scored_against_the_raw_instruction(tmp_path):
    seen = []

    def reward(group, text):
        seen.append(group.prompt[-1]["content"])
        return float(len(text))

    def identity(text, number, by):
        return text.split("<instruction>\n")[1].split("\n</instruction>")[0] if "<instruction>" in text else text

    rows, _ = made(
        "p_aligner", identity, [{"prompt": "do it"}], tmp_path, reward="rule:x", rewards=reward, iterations=3
    )
    assert [r.reason for r in rows] == ["no rewrite is better than the instruction"]
    longer, _ = made("p_aligner", lambda t, k, b: identity(t, k, b) + "!" if "<instruction>" in t else t, [{"prompt": "do it"}], tmp_path, reward="rule:x", rewards=reward, iterations=3)  # fmt: skip
    assert (
        longer[0].reason is None
        and longer[0].row["rejected"] == "do it"
        and longer[0].row["chosen"].startswith("do it!")
    )
    assert set(seen) == {"do it"}
    with pytest.raises(TruelineError, match="needs --reward"):
        made("p_aligner", identity, [{"prompt": "do it"}], tmp_path)


# ---- evolution ---------------------------------------------------------------------------------------------------------


def test_evolution_keeps_the_chain_and_ends_it_where_a_step_is_none(tmp_path):
    def answer(text, number, by):
        old = text.rsplit("\n\n", 1)[1]
        if "stop" in old:
            return old
        return "the given prompt is hard" if "leak" in old else f"{old}, and also about {['iron', 'silver and its trade', 'copper mines'][old.count('also')]}"  # fmt: skip

    rows, _ = made("evolve", answer, [{"prompt": "tell of gold"}, {"prompt": "please stop here"}, {"prompt": "leak it"}], tmp_path, rounds=3)  # fmt: skip
    chains: dict[str, list] = {}
    for r in rows:
        chains.setdefault(r.row["chain"], []).append((r.row["level"], r.reason))
    assert list(chains.values()) == [
        [(0, None), (1, None), (2, None), (3, None)],
        [(0, None), (1, "equal to an earlier step")],
        [(0, None), (1, "the prompt's own words leaked")],
    ]


# ---- the engine --------------------------------------------------------------------------------------------------------


def test_made_rows_repeats_leaks_and_budget_over_an_endpoint(tmp_path):
    seeds = [{"prompt": "alpha beta gamma"}, {"prompt": "delta epsilon"}]
    path = jsonl(tmp_path / "s.jsonl", seeds)
    held = jsonl(tmp_path / "e.jsonl", [{"prompt": "Write a poem about the sea in the style of an old sailor."}])

    def answer(text, before):
        body = text.rsplit("\n\n", 1)[1]
        return completion("write a poem about the sea in the style of an old sailor" if "delta" in body else body + " with a twist of lemon")  # fmt: skip

    with serving(answer) as server:
        request = Request(
            "evolve", [path], tmp_path / "o", model=f"m@{server.url}", eval_data=[held], options={"rounds": 1}
        )
        done = curate(request)
        asked = len(server.asked)
        request.overwrite, request.budget = True, "2"
        again = curate(request)
        assert len(server.asked) == asked == 2  # every answer was on disk
    assert done.counts["prompt stands in evaluation data"] == 1 and done.counts["taken"] == 3
    assert again.counts["over the budget"] == 1 and len(written(tmp_path / "o")) == 2
    refused = written(tmp_path / "o", "refused.jsonl")
    assert {r["curate_reason"] for r in refused} == {"prompt stands in evaluation data", "over the budget"}
    page = again.page.read_text()
    assert "rows that evolve proposed were kept" in page and "with a twist of lemon" in page
    assert json.loads(again.manifest.read_text())["models"] == {f"m@{server.url}": {"endpoint": True}}


def test_an_endpoint_cannot_be_prompted_with_nothing_and_makers_need_what_they_need(tmp_path):
    with pytest.raises(TruelineError, match="is an endpoint, which answers in text"):
        curate(Request("magpie", [], tmp_path / "o", model="m@http://localhost:1/v1"))
    with pytest.raises(TruelineError, match="--data has no effect"):
        curate(Request("magpie", ["x.jsonl"], tmp_path / "p", model="m"))
    with pytest.raises(TruelineError, match="Leave --threshold out"):
        curate(Request("evolve", ["x.jsonl"], tmp_path / "q", model="m", threshold=1.0))
