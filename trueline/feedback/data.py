"""The labels the data came with: nothing is judged again.

Ranks, rewards and thumbs stay as they were read. Legal with sources that do not sample.
"""

from trueline.feedback.contract import Feedback, FeedbackContext, feedback
from trueline.groups import Group


@feedback(paper="Recorded feedback")
def data(context: FeedbackContext, argument: str = "") -> Feedback:
    def keep(groups: list[Group]) -> None:
        return None

    return keep
