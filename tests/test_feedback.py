"""What judges give back, and what may not judge."""

import pytest

from tests.model_folders import model_folder
from tests.model_folders import tokenizer as make_tokenizer
from trueline.errors import TruelineError
from trueline.feedback.contract import FeedbackContext, write_rewards
from trueline.feedback.reward import reward
from trueline.groups import Group, Response


def groups():
    return [Group("2+2?", [Response(text="4"), Response(text="5")], origin="d.jsonl:7")]


@pytest.mark.parametrize("wrong", ["good", [1.0], float("nan"), float("inf")])
def test_a_reward_that_is_no_finite_number_names_its_row_and_changes_nothing(wrong):
    judged = groups()
    with pytest.raises(
        TruelineError, match=r"The rule r returned .* for a response to d.jsonl:7: '5'. Return a finite"
    ):
        write_rewards(judged, [1.0, wrong], "The rule r")
    assert [r.reward for r in judged[0].responses] == [None, None]


def test_none_is_a_reward_that_does_not_apply():
    judged = groups()
    write_rewards(judged, [None, 2], "The rule r")
    assert [r.reward for r in judged[0].responses] == [None, 2.0]


def test_a_language_model_is_refused_as_a_reward_model(tmp_path):
    folder = model_folder(tmp_path / "m")
    with pytest.raises(TruelineError, match=r"is not a reward model: it has no trained reward head"):
        reward(FeedbackContext(make_tokenizer(), 512), str(folder))
