"""The lab's gold reward as the judge: exact, and with every attribute it is made of.

Fills `reward` and `attributes` (credit, tone, repeats, ...) of each response, the latter for the report. Any text is
judged: words that are not of the world make a sentence ill-formed. A prompt that is not of the world has no gold reward and is an error.

The option `size` names the world: "full" (demo and studies) or "unit" (tests).
"""

from trueline.errors import TruelineError
from trueline.feedback.contract import Feedback, FeedbackContext, feedback, write_rewards
from trueline.groups import Group, Response


@feedback(paper="Trueline lab: gold reward")
def lab(context: FeedbackContext, argument: str = "", *, size: str = "full") -> Feedback:
    from trueline.lab.gold import judge
    from trueline.lab.world import world

    if argument:
        raise TruelineError(f"Feedback 'lab' takes nothing after a colon; found 'lab:{argument}'. Its option is size.")
    known = world(size)  # type: ignore[arg-type]  # an unknown size is refused there

    def fill(groups: list[Group]) -> None:
        prompts = [g.prompt for g in groups for _ in g.responses]
        replies = [spoken(r, context.tokenizer) for g in groups for r in g.responses]
        judged = judge(known, prompts, replies)  # type: ignore[arg-type]  # a conversation is refused there
        write_rewards(groups, judged.reward.tolist(), "The lab's gold reward")
        responses = [r for g in groups for r in g.responses]
        for response, attributes in zip(responses, judged.rows(), strict=True):
            response.attributes = attributes

    return fill


def spoken(response: Response, tokenizer: object) -> str:
    """What the response says, its special tokens included except the EOS that ends it.

    Display text leaves special tokens out, so a policy could use them as free separators that gold never sees.
    """
    if not response.ids or response.source == "data":
        return response.text
    ids = response.ids[:-1] if response.finish == "stop" else response.ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))  # type: ignore[attr-defined]
