"""A Python function as the judge: `rule:package.module:function`.

The function has TRL's reward-function signature: it is called once a batch with keyword arguments `prompts`,
`completions`, `completion_ids` and every further column of the data, each a list with one entry a response, and
returns a list of floats. Conversations arrive as message lists, plain prompts as strings. None means 'not
applicable' to that response. NaN, infinity, a wrong length and an exception are errors that name the row.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from trueline.errors import TruelineError
from trueline.feedback.contract import Feedback, FeedbackContext, feedback, write_rewards
from trueline.groups import Group


def resolve(target: str) -> Callable[..., Any]:
    """The callable behind 'package.module:function'; the working directory counts as importable."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise TruelineError(f"'rule:{target}' does not name a function. Write rule:package.module:function.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TruelineError(f"The rule module '{module_name}' cannot be imported: {error}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise TruelineError(f"Module '{module_name}' has no function '{name}'.")
    return function


def arguments(groups: list[Group]) -> dict[str, list[Any]]:
    """TRL's keyword arguments for all responses of these groups, in order."""
    rows = [(g, r) for g in groups for r in g.responses]
    columns: dict[str, list[Any]] = {
        "prompts": [g.prompt for g, _ in rows],
        "completions": [
            r.text if isinstance(g.prompt, str) else (r.messages or [{"role": "assistant", "content": r.text}])
            for g, r in rows
        ],
        "completion_ids": [r.ids for _, r in rows],
    }
    for name in sorted({k for g, _ in rows for k in g.extras} - columns.keys()):
        columns[name] = [g.extras.get(name) for g, _ in rows]
    return columns


@feedback(paper="Rule or verifier function", argument="MODULE:FUNCTION")
def rule(context: FeedbackContext, argument: str) -> Feedback:
    function = resolve(argument)
    who = f"The rule {argument}"

    def judge(groups: list[Group]) -> None:
        try:
            values = function(**arguments(groups))
        except TruelineError:
            raise
        except Exception as error:
            rows = ", ".join(dict.fromkeys(g.origin or "a sampled prompt" for g in groups[:3]))
            raise TruelineError(f"{who} raised {type(error).__name__}: {error} (rows {rows}, ...).") from error
        write_rewards(groups, values, who)

    return judge
