"""Words, MinHash, languages, decontamination, long outputs, protected spans: what needs no model."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from trueline.curate.long_output import chinese_number, length_score, requested_lengths
from trueline.curating import Request, curate
from trueline.curating.buckets import candidates, components
from trueline.curating.language import language
from trueline.curating.neighbours import first_of_each, nearest
from trueline.curating.protect import fidelity, mask, protected, unmask
from trueline.curating.text import MinHash, bands, jaccard, shingles, text_key, word_hashes, words
from trueline.errors import TruelineError


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


# ---- words and MinHash -------------------------------------------------------------------------------------------------


def test_words_are_lower_cased_and_wide_characters_stand_alone():
    assert words("The cat's 3 Hats—now") == ["the", "cat", "s", "3", "hats", "now"]
    assert words("写abc词 ok") == ["写", "abc", "词", "ok"]
    assert text_key("How, are YOU?") == text_key("how are you") != text_key("you are how")


def test_shingles_are_runs_of_words_and_of_the_whole_where_it_is_shorter():
    a, b = word_hashes("a b c d e f"), word_hashes("x b c d e f")
    assert (
        len(shingles(a, 5)) == 2 and shingles(a, 5)[1] == shingles(b, 5)[1] and shingles(a, 5)[0] != shingles(b, 5)[0]
    )
    assert len({int(shingles(word_hashes(t), 5)[0]) for t in ("a b", "b a", "a c", "a")}) == 4
    assert len(shingles(word_hashes("a b"), 5)) == 1 and len(shingles(word_hashes(""), 5)) == 0


def test_minhash_estimates_jaccard_within_its_standard_error():
    rng = np.random.default_rng(0)
    hasher = MinHash(512, 3)
    for target in (0.2, 0.5, 0.9):
        pool = rng.integers(0, 1 << 63, 2000, dtype=np.uint64)
        shared = int(2000 * target / (1 + target) * 1)
        a = np.unique(pool[: shared + (1000 - shared // 2)])
        b = np.unique(np.concatenate([pool[:shared], pool[-(1000 - shared // 2) :]]))
        true = jaccard(a, b)
        estimates = (hasher.signatures([a])[0] == hasher.signatures([b])[0]).mean()
        assert abs(estimates - true) < 4 * np.sqrt(true * (1 - true) / 512)
    assert (hasher.signatures([a, np.zeros(0, np.uint64), b])[[0, 2]] == hasher.signatures([a, b])).all()


def test_bands_find_a_pair_at_the_threshold_and_spare_unlike_ones():
    count, rows = bands(128, 0.8)
    assert count * rows <= 128 and 1 - (1 - 0.8**rows) ** count >= 0.99
    assert 1 - (1 - 0.4**rows) ** count < 0.12


def test_one_of_every_component_stays_and_it_is_the_first():
    first, size = components(6, np.array([[1, 2], [2, 4]]))
    assert first.tolist() == [0, 1, 1, 3, 1, 5] and size.tolist() == [1, 3, 3, 1, 3, 1]


def test_a_group_of_exact_duplicates_never_vanishes(tmp_path):
    base = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark forest at night " * 2
    rows = [{"prompt": f"{base}{tail}", "completion": "ok"} for tail in ("a", "a!", "b", "A")]
    rows += [{"prompt": f"something else entirely number {i} {'xyz' * i}", "completion": "ok"} for i in range(3)]
    done = curate(Request("near_duplicates", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o"))
    assert done.counts["near-duplicate of an earlier row"] == 3 and done.counts["taken"] == 4
    assert "like_row d.jsonl:1" in done.page.read_text()
    again = curate(Request("near_duplicates", [str(tmp_path / "o" / "d.jsonl")], tmp_path / "p"))
    assert again.counts["taken"] == 4  # idempotent


def test_candidates_find_every_near_duplicate_that_is_there():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 1 << 63, (300, 60), dtype=np.uint64)
    close = base.copy()
    close[:, :4] = rng.integers(0, 1 << 63, (300, 4), dtype=np.uint64)  # Jaccard 56 / 64
    signatures = MinHash(128, 0).signatures([np.unique(r) for r in np.concatenate([base, close])])
    found = {tuple(p) for p in candidates(signatures, 0.8).tolist()}
    assert len({(i, i + 300) for i in range(300)} & found) >= 296
    assert len(found) < 400


def test_vector_components_hold_on_where_the_published_rule_loses_a_group():
    angles = np.array([0.0, 0.2, 0.4, 0.4])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert first_of_each(vectors, 0.975).tolist() == [0, 0, 0, 0]  # cos 0.2 = 0.980: one chain
    assert first_of_each(vectors[[0, 2, 3]], 0.975).tolist() == [0, 1, 1]
    a, b = vectors[0], vectors[2]
    assert np.sum((a - b) ** 2) == pytest.approx(2 - 2 * a @ b)
    rows, cosines = nearest(vectors, vectors, 1, not_itself=np.arange(4))
    assert rows[[0, 2, 3], 0].tolist() == [1, 3, 2] and cosines[2, 0] == pytest.approx(1)


# ---- decontamination ---------------------------------------------------------------------------------------------------


def test_a_copied_run_is_found_through_case_and_punctuation_and_boilerplate_is_not(tmp_path):
    question = "Janet has sixteen ducks that lay eggs every day, and she eats three of them for breakfast each morning."
    intro = "Answer the following question as well as you can and explain every step of the way you took: "
    bench = jsonl(tmp_path / "b.jsonl", [{"text": intro + q} for q in (question, *(f"item {i} about {i} things" for i in range(14)))])  # fmt: skip
    rows = [
        {"prompt": "Well: " + question.upper().replace(",", ";") + " How many?", "completion": "x"},
        {"prompt": intro + "what is a mole?", "completion": "x"},
        {"prompt": "a clean one about ducks that lay eggs", "completion": "x"},
    ]
    done = curate(Request("decontaminate", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o", options={"benchmarks": [bench]}))  # fmt: skip
    assert done.counts["shares words with a benchmark"] == 1 and done.counts["taken"] == 2
    assert "b.jsonl:1" in (tmp_path / "o" / "decisions.csv").read_text()
    strict = curate(Request("decontaminate", [str(tmp_path / "d.jsonl")], tmp_path / "p", options={"benchmarks": [bench], "common": 100}))  # fmt: skip
    assert strict.counts["taken"] == 1
    with pytest.raises(TruelineError, match="needs benchmark files"):
        curate(Request("decontaminate", [str(tmp_path / "d.jsonl")], tmp_path / "q"))


def test_a_short_item_counts_by_its_whole_text(tmp_path):
    bench = jsonl(
        tmp_path / "b.jsonl", [{"text": "Which planet is the third one from the sun?"}, {"text": "too short"}]
    )
    rows = [{"prompt": "Tell me: which planet is the third one from the sun?", "completion": "x"}, {"prompt": "is the third one from", "completion": "y"}]  # fmt: skip
    done = curate(Request("decontaminate", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o", options={"benchmarks": [bench]}))  # fmt: skip
    assert done.counts["taken"] == 1 and any("1 items were too short" in n for n in done.notes)


# ---- long outputs (127) ------------------------------------------------------------------------------------------------


def test_length_score_at_its_corners():
    assert length_score(500, 500) == 100
    assert length_score(100, 400) == pytest.approx(0) and length_score(300, 100) == pytest.approx(0)
    assert length_score(100, 160) == pytest.approx(80) and length_score(140, 100) == pytest.approx(80)
    assert length_score(100, 250) == pytest.approx(50) and length_score(200, 100) == pytest.approx(50)
    assert length_score(100, 100.001) == pytest.approx(length_score(100, 99.999), abs=0.01)
    assert length_score(100, 0) == 0
    up, down = [length_score(100, y) for y in range(100, 500, 20)], [length_score(100, y) for y in range(100, 20, -5)]
    assert up == sorted(up, reverse=True) and down == sorted(down, reverse=True)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("写一篇三千字的文章", {3000}),
        ("不少于1.5万字", {15000}),
        ("写800字", {800}),
        ("Write a 1,000-word essay", {1000}),
        ("about 2k words, please", {2000}),
        ("In 2023, write 300 words on 5 cats", {300}),
        ('Explain the phrase "2 words" to me', set()),
        ("first 500 words, then 800 words", {500, 800}),
        ("这个字母怎么写", set()),
    ],
)
def test_the_length_that_is_asked_for(text, lengths):
    assert requested_lengths(text) == lengths


def test_chinese_numerals():
    known = {"三千五百": 3500, "一万二千": 12000, "一万二": 12000, "三千五": 3500, "三千零五": 3005, "十五": 15, "一百二十": 120, "两千": 2000, "3千": 3000, "二〇二四": 2024}  # fmt: skip
    assert {text: chinese_number(text) for text in known} == known


def test_long_output_keeps_what_has_one_length_and_meets_it(tmp_path):
    def row(ask, count):
        return {"prompt": ask, "completion": "w " * count}

    rows = [row("write 100 words", 160), row("write 100 words now", 161), row("140 words", 100), row("write", 9), row("50 words or 60 words", 55)]  # fmt: skip
    done = curate(Request("long_output", [jsonl(tmp_path / "d.jsonl", rows)], tmp_path / "o"))
    assert done.counts["taken"] == 2
    assert [done.counts[r] for r in ("the prompt asks for no length", "the prompt asks for several lengths", "the response is not of the length asked for")] == [1, 1, 1]  # fmt: skip
    turns = [{"role": "user", "content": "200 words"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "now 200 words more"}]  # fmt: skip
    assert len(requested_lengths(turns)) > 1
    assert curate(Request("long_output", [str(tmp_path / "o" / "d.jsonl")], tmp_path / "p")).counts["taken"] == 2


# ---- protected spans (126) ---------------------------------------------------------------------------------------------

HARD = [
    "",
    "plain text only",
    "Use `x = 1` and ```inline``` here",
    "before\n```python\nprint('hi')\n```\nafter",
    "open\n```js\nlet a = {b: 1}\n",
    "~~~\ncode\n~~~~ \nnext",
    "````md\n```py\nx\n```\n````\nend",
    "Price $5 and $7; but $a+b$ and $$c^2$$ and \\(d\\) and \\[e\\]",
    '{"a": {"b": [1, 2]}, "c": "text"} tail [1, 2] and {x} and {{y}} ${z} %s %(n)d',
    "see https://a.b/c?d=e_f and me@x.org or /usr/lib/x.so",
    "a ⟦0⟧ that was there, ⟦ 12 ⟧ too, snake_case and camelCase and call()",
    "<div class='a'>b</div> <br/> 3 < 4 > 2",
    "``` \nunterminated",
    "\\begin{align}x&=1\\end{align} after",
]


@pytest.mark.parametrize("text", HARD)
def test_masking_can_always_be_undone_and_spans_never_overlap(text):
    masked = mask(text)
    assert unmask(masked.text, masked.spans) == text
    spans = protected(text)
    assert all(a < b for a, b in spans) and all(b <= c for (_, b), (c, _) in itertools.pairwise(spans))
    same = fidelity(text, masked, text, masked.text)
    assert (same.spans, same.sentinels, same.json, same.skeleton, same.numbers) == (1, 1, 1, 1, 1) and not same.lost()


def test_what_must_not_be_translated_is_behind_a_mark_and_prose_is_not():
    text = 'Run `ls -l` in /usr/local/bin now.\n\n```sh\nls\n```\nThen $x^2$ and {"key": "v"} at https://a.b/c.'
    masked = mask(text)
    assert masked.text == "Run ⟦0⟧ in ⟦1⟧ now.\n\n⟦2⟧\nThen ⟦3⟧ and ⟦4⟧ at ⟦5⟧"
    assert mask("open\n```js\nlet a\n").text == "open\n⟦0⟧"  # never closed: to the end
    assert "key" not in masked.text and "It costs $5 to $7." in mask("It costs $5 to $7.").text


def test_lost_reordered_and_doubled_marks():
    text = "First `a`, then `b` in 3 steps."
    masked = mask(text)
    moved = "In 3 Schritten zuerst ⟦1⟧, dann ⟦0⟧."
    assert not fidelity(text, masked, unmask(moved, masked.spans), moved).lost()
    for answer, lost in (("Nur ⟦0⟧ in 3.", "spans"), ("⟦0⟧ ⟦0⟧ ⟦1⟧ 3", "spans"), ("⟦0⟧ ⟦1⟧ in 4", "numbers")):
        assert lost in fidelity(text, masked, unmask(answer, masked.spans), answer).lost()
    block = "Do:\n```py\nx=1\n```\ndone"
    kept = mask(block)
    assert "spans" in fidelity(block, kept, "Tu:\nfertig", "Tu:\nfertig").lost()


# ---- languages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is the best way to learn how to cook for a family?", "en"),
        ("Wie kann ich das am besten lernen, und was ist dafür nicht nötig?", "de"),
        ("Comment est-ce que je peux apprendre cela avec les autres dans la maison ?", "fr"),
        ("¿Cómo se hace una tortilla de patatas con los huevos y la cebolla?", "es"),
        ("请写一篇文章", "zh"),
        ("これは何ですか", "ja"),
        ("이것은 무엇입니까", "ko"),
        ("Что это такое?", "Cyrillic"),
        ("12345 !!!", "?"),
    ],
)
def test_languages_by_script_and_common_words(text, code):
    assert language(text) == code
