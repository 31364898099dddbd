"""The public files, as they are: counts that were established outside this package."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from trueline.errors import TruelineError
from trueline.readers import load, read

FOLDER = Path(os.environ.get("TRUELINE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "preferences"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real data: {FOLDER} is absent (set TRUELINE_DATA)")
HH = FOLDER / "hh_harmless_base_test.jsonl.gz"


def raw(file: Path) -> list[dict]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_hh_file_loses_the_five_diverging_and_the_four_empty_pairs():
    (table,) = load(str(HH))
    assert (table.format, table.rows, len(table.groups)) == ("HH transcripts", 2312, 2303)
    assert table.audit.dropped == {"the two sides diverge before the last turn": 5, "empty response": 4}
    assert {f"{HH.name}:{line}" for line in (87, 517, 926, 1104, 1255, 1689, 1951, 1953, 2037)}.isdisjoint(
        g.origin for g in table.groups
    )


def test_no_hh_text_is_lost_and_the_space_belongs_to_the_response():
    rows = raw(HH)
    groups, _ = read([str(HH)])
    for group in groups:
        row = rows[int(group.origin.split(":")[1]) - 1]
        assert [group.prompt + r.text for r in group.responses] == [row["chosen"], row["rejected"]]
        assert group.prompt.endswith("\n\nAssistant:")
    first_letters = {r.text[0] for g in groups for r in g.responses}
    assert first_letters == {" "}


def test_the_longest_common_prefix_would_swallow_response_text_in_444_hh_pairs():
    groups, _ = read([str(HH)])
    longer = 0
    for group in groups:
        chosen, rejected = (r.text for r in group.responses)
        longer += chosen[:2] == rejected[:2]  # they share more than the space both begin with
    assert longer == 444


def test_alpacaeval_rewards_give_the_judges_win_rates():
    path = str(FOLDER / "alpacaeval2_pairs.jsonl.gz")
    (table,) = load(path)
    assert (table.format, table.rows, table.audit.kept) == ("AlpacaEval annotations", 4025, 3993)
    assert table.audit.dropped == {"empty response": 22, "identical responses": 7, "duplicate row": 3}
    rows = raw(Path(path))
    for group in table.groups:
        row = rows[int(group.origin.split(":")[1]) - 1]
        second = next(r for r in group.responses if r.text == row["output_2"])
        assert second.reward == pytest.approx(row["preference"] - 1)
        assert second.source == row["generator_2"]
        assert group.responses[0].reward >= group.responses[1].reward


def test_the_cut_file_is_287_judgments_and_713_praises():
    (table,) = load(str(FOLDER / "cut_judgments_iter1.json.gz"))
    assert (table.format, table.kind) == ("CUT judgments", "JSON")
    labels = [g.responses[0].label for g in table.groups]
    assert (labels.count(False), labels.count(True)) == (287, 713)


def test_a_table_without_texts_is_refused_with_its_columns():
    with pytest.raises(
        TruelineError, match=r"Columns seen: 'generator_2', .*nearest known type is AlpacaEval annotations"
    ):
        read([str(FOLDER / "alpacaeval2_preferences.csv.gz")])
