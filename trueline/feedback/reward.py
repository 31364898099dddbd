"""A reward model as the judge: `reward:PATH`.

PATH is a sequence-classification model with one label, such as a run folder that `--objective bt` wrote. It reads
responses through its own tokenizer and chat template; ids are shared only when the vocabularies are identical.
"""

from trueline.feedback.contract import Feedback, FeedbackContext, feedback, write_rewards
from trueline.groups import Group


@feedback(arxiv="2203.02155", paper="Learned reward model", argument="PATH")
def reward(context: FeedbackContext, argument: str) -> Feedback:
    from trueline.feedback._judge import Judge

    judge = Judge.open(argument, context, head="scalar")

    def fill(groups: list[Group]) -> None:
        write_rewards(groups, judge.scores(groups), f"The reward model {argument}")

    return fill
