"""What `trueline check` says of agreement, label noise, length, position, dimensions, copies and languages."""

from __future__ import annotations

import io
import json
import math
from os import environ
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from trueline.check import check, render
from trueline.curating.describing import describe, lines, noise_from_contradictions

DATA = Path(environ.get("TRUELINE_DATA", "../shared/data")) / "preferences"


def described(tmp_path, rows):
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = check([str(file)])
    console = Console(file=io.StringIO(), width=300)
    render(result, console)
    return result.files[0].described, console.file.getvalue()


def pair(i, chosen, rejected, **more):
    return {"prompt": f"question {i}", "chosen": chosen, "rejected": rejected, **more}


def test_length_bias_is_the_share_of_pairs_whose_better_side_is_longer(tmp_path):
    rows = [pair(i, "x" * (20 if i < 15 else 5), "y" * 10) for i in range(20)]
    rows.append(pair(20, "same", "size"))
    found, text = described(tmp_path, rows)
    assert found["length"]["value"] == 0.75 and found["length"]["n"] == 20 and found["length"]["equal"] == 1
    assert found["length"]["low"] < 0.75 < found["length"]["high"] and found["length"]["median_ratio"] == pytest.approx(
        2.0
    )
    assert "the longer one in 75.0%" in text


def test_repeats_that_contradict_give_the_noise_and_copies_count_as_agreement(tmp_path):
    rows = [pair(i, f"a{i}", f"b{i}") for i in range(30)]
    rows += [pair(i, f"a{i}", f"b{i}") for i in range(16)]  # exact copies: dropped by the reader, and agreeing repeats
    rows += [pair(i, f"b{i}", f"a{i}") for i in range(20, 24)]
    found, text = described(tmp_path, rows)
    agreement = found["agreement"]
    assert (agreement["repeated"], agreement["copies"], agreement["value"]) == (20, 16, 0.8)
    assert agreement["noise"] == pytest.approx((1 - math.sqrt(0.6)) / 2)
    assert "16 of them exact copies" in text
    e = 0.13
    assert noise_from_contradictions(2 * e * (1 - e)) == pytest.approx(e) and noise_from_contradictions(0.6) is None


def test_cycles_among_three_responses_are_counted(tmp_path):
    rows = [
        pair(0, "a", "b"),
        pair(0, "b", "c"),
        pair(0, "c", "a"),
        pair(1, "a", "b"),
        pair(1, "b", "c"),
        pair(1, "a", "c"),
    ]
    found, _ = described(tmp_path, rows)
    assert (found["agreement"]["cycles"], found["agreement"]["triples"]) == (1, 2)


def test_label_noise_is_bounded_by_what_a_word_model_gets_right(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(500):
        good, bad = f"yes kind helpful {rng.integers(99)}", f"no rude lazy {rng.integers(99)}"
        flip = rng.random() < 0.2
        rows.append(pair(i, bad if flip else good, good if flip else bad))
    found, text = described(tmp_path, rows)
    accuracy = found["label_noise"]["word_model_accuracy"]["value"]
    assert accuracy == pytest.approx(0.8, abs=0.05)
    assert 0.2 <= found["label_noise"]["noise_at_most"] < 0.27 and "label noise is at most" in text


def test_dimensions_that_order_pairs_oppositely_are_named(tmp_path):
    rows = [
        pair(
            i,
            f"a {i}",
            f"b {i}",
            helpfulness_chosen=i % 4,
            helpfulness_rejected=2,
            brevity_of_text_chosen=2,
            brevity_of_text_rejected=i % 4,
        )
        for i in range(40)
    ]
    found, text = described(tmp_path, rows)
    table = {tuple(r["dimensions"]): r["value"] for r in found["dimensions"]}
    assert table["helpfulness", "brevity_of_text"] == 1.0 and table["helpfulness", "label"] == pytest.approx(2 / 3)
    assert "helpfulness and brevity_of_text order 100.0%" in text


def test_positions_are_told_where_the_format_keeps_them_and_a_constant_side_is_named(tmp_path):
    rows = [{"instruction": f"q{i}", "output_1": f"a{i}", "output_2": f"bb{i}", "generator_1": "gpt", "generator_2": f"m{i % 3}", "preference": 2.0 if i < 6 else 1.0} for i in range(20)]  # fmt: skip
    found, text = described(tmp_path, rows)
    assert found["position"]["value"] == 0.3 and found["position"]["same_model_on_one_side"] == ["generator_1", "gpt"]
    assert "stands on one side throughout" in text


def test_near_duplicates_and_languages_are_counted_and_plain_data_stay_plain(tmp_path):
    long = " ".join(f"the thing {i} is in the box of the man" for i in range(30))
    rows = [{"prompt": long + tail, "completion": "yes of course it is"} for tail in ("", "!", " x")]
    rows.append({"prompt": "Wie ist das Wetter in der Stadt und auf dem Land?", "completion": "Das ist nicht gut"})
    found, text = described(tmp_path, rows)
    assert found["near_duplicates"]["rows"] == 2 and found["near_duplicates"]["largest"] == 3
    assert found["languages"] == {"en": 0.75, "de": 0.25} and "en 75%, de 25%" in text
    assert "length" not in found and "agreement" not in found
    assert lines(describe([])) == []


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the preference files are not in {DATA} (TRUELINE_DATA)")
def test_real_files_say_what_a_reader_should_know():
    (hh,) = check([str(DATA / "hh_harmless_base_test.jsonl.gz")]).files
    assert hh.described["length"]["value"] == pytest.approx(0.445, abs=0.01)  # the harmless side is the shorter one
    assert 0.57 < hh.described["label_noise"]["word_model_accuracy"]["value"] < 0.65
    (alpaca,) = check([str(DATA / "alpacaeval2_pairs.jsonl.gz")]).files
    assert alpaca.described["length"]["value"] > 0.75 and alpaca.described["position"]["value"] == pytest.approx(
        0.215, abs=0.01
    )
    assert "gpt4_1106_preview" in alpaca.described["position"]["same_model_on_one_side"]
