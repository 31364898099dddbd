"""The flat layout: what is shared, where positions restart, which token predicts which."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_groups
from trueline.engine.layout import Layout, micro_batches
from trueline.errors import TruelineError
from trueline.groups import Group, Response


def _group(prompt, *responses, masks=None):
    masks = masks or [[True] * len(r) for r in responses]
    return Group("", [Response(ids=r, mask=m) for r, m in zip(responses, masks, strict=True)], prompt_ids=prompt)


def test_a_pair_is_laid_out_with_its_prompt_once_and_positions_restarting():
    layout = Layout.of([_group([10, 11, 12], [20, 21], [30])])
    assert layout.ids_T.tolist() == [10, 11, 12, 20, 21, 30]
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 4, 3]
    assert layout.predictor_N.tolist() == [2, 3, 2]  # both first tokens are predicted by the last prompt token
    assert layout.target_N.tolist() == [20, 21, 30]
    assert layout.owner_N.tolist() == [0, 0, 1]
    assert layout.last_R.tolist() == [4, 5]
    assert layout.length_R.tolist() == [2, 1]
    assert (layout.rows, layout.shared_tokens, layout.unshared_tokens) == (2, 6, 9)


def test_a_single_response_is_one_causal_sequence():
    layout = Layout.of([_group([1, 2], [3, 4])])
    (segment,) = layout.segments
    assert segment.shared_end == segment.start
    assert segment.responses == ((0, 4),)
    assert torch.equal(layout.mask(), torch.ones(4, 4, dtype=torch.bool).tril())


def test_a_common_beginning_that_counts_in_the_loss_is_not_shared():
    layout = Layout.of([_group([1, 2], [7, 8, 9], [7, 8, 5])])
    assert layout.segments[0].shared_end == 2
    assert layout.target_N.tolist() == [7, 8, 9, 7, 8, 5]


def test_a_common_beginning_without_loss_is_shared_beyond_the_prompt():
    masks = [[False, False, True], [False, False, True]]
    layout = Layout.of([_group([1, 2], [7, 8, 9], [7, 8, 5], masks=masks)])
    assert layout.ids_T.tolist() == [1, 2, 7, 8, 9, 5]
    assert layout.predictor_N.tolist() == [3, 3]
    assert layout.length_R.tolist() == [1, 1]


def test_identical_responses_keep_their_own_tokens():
    layout = Layout.of([_group([1], [5, 6], [5, 6])])
    assert layout.ids_T.tolist() == [1, 5, 6, 5, 6]


def test_tokens_that_do_not_count_are_attended_but_not_scored():
    layout = Layout.of([_group([1], [5, 6, 7], [8, 9], masks=[[True, False, True], [True, True]])])
    assert layout.target_N.tolist() == [5, 7, 8, 9]
    assert layout.predictor_N.tolist() == [0, 2, 0, 4]
    assert bool(layout.mask()[3, 2])  # 7 looks at the uncounted 6


def test_no_token_sees_another_group_or_another_response():
    mask = Layout.of([_group([1, 2], [3], [4, 5]), _group([6], [7], [8])]).mask()
    seen = [[i for i, ok in enumerate(row) if ok] for row in mask.tolist()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5], [5, 6], [5, 7]]


def test_a_window_counts_positions_and_not_places_in_the_row():
    mask = Layout.of([_group([1, 2], [3, 4], [5, 6])]).mask(window=2)
    assert [i for i, ok in enumerate(mask[4].tolist()) if ok] == [1, 4]  # 5 stands at position 2, after prompt token 1


@given(
    st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=5)), min_size=1, max_size=4)
)
@settings(max_examples=40, deadline=None)
def test_full_rows_and_predictors_spell_the_original_groups(shapes):
    groups = tiny_groups(shapes)
    layout = Layout.of(groups)
    originals = [g.prompt_ids + r.ids for g in groups for r in g.responses]
    assert [row.tolist() for row in layout.full_rows()] == originals
    for n, (predictor, target, owner) in enumerate(
        zip(layout.predictor_N.tolist(), layout.target_N.tolist(), layout.owner_N.tolist(), strict=True)
    ):
        at = int(layout.positions_T[predictor])
        assert originals[owner][at + 1] == target, n
        assert originals[owner][at] == int(layout.ids_T[predictor])
    assert [originals[r][-1] for r in range(layout.rows)] == layout.ids_T[layout.last_R].tolist()
    assert layout.unshared_tokens == sum(map(len, originals))


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (Group("", [], prompt_ids=[1], origin="f.jsonl:7"), "f.jsonl:7"),
        (Group("", [Response(text="a")], prompt_ids=[1]), "no token ids"),
        (_group([1], []), "none of its 0 tokens counts"),
        (_group([1], [2, 3], masks=[[False, False]]), "none of its 2 tokens counts"),
        (_group([1], [2, 3], masks=[[True]]), "2 ids but 1 mask"),
        (_group([], [2, 3]), "BOS"),
        (_group([1], [-100]), "-100"),
    ],
)
def test_a_group_that_cannot_be_scored_is_refused_by_name(group, words):
    with pytest.raises(TruelineError, match=words):
        Layout.of([group])


def test_micro_batches_keep_order_respect_the_budget_and_never_split_a_group():
    groups = tiny_groups([(2, [3]), (2, [3]), (4, [30, 30]), (1, [1]), (1, [1])])  # 5, 5, 64, 2, 2 tokens
    assert micro_batches(groups, 10) == [[0, 1], [2], [3, 4]]
    assert micro_batches(groups, 9) == [[0], [1], [2], [3, 4]]
    assert micro_batches(groups, 10_000) == [[0, 1, 2, 3, 4]]
    assert micro_batches([], 10) == []
    with pytest.raises(TruelineError, match="budget"):
        micro_batches(groups, 0)
