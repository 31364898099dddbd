"""A recorded online stream, used again as data.

The data are the `stream.jsonl` of a run; step s gets the groups that step recorded, so replaying in order with the
same start and batch size repeats the online run's gradients bit for bit (on CPU). window > 1 shuffles the groups of
that many consecutive steps among each other (0 keeps the order, -1 shuffles everything): the coverage ablation of
arXiv 2405.08448.
"""

from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.randomness import permutation
from trueline.sources.contract import Source, SourceContext, source


@source(
    samples=False, arxiv="2405.08448", paper="Understanding the performance gap between online and offline alignment"
)
def replay(context: SourceContext, *, window: int = 0) -> Source:
    if window < -1:
        raise TruelineError(
            f"sources.replay.window is {window}; expected a number of steps, or -1 to shuffle everything."
        )
    groups, size = context.groups, context.batch_size
    steps = len(groups) // size
    if steps == 0 or len(groups) % size:
        raise TruelineError(
            f"A recorded stream of {len(groups)} groups is not a whole number of batches of {size}. Give the batch_size "
            "of the run that recorded it."
        )
    span = len(groups) if window == -1 else max(window, 1) * size
    order: list[int] = []
    for start in range(0, len(groups), span):
        count = min(span, len(groups) - start)
        shuffled = window not in (0, 1)
        inside = permutation(count, context.seed, "replay", start) if shuffled else list(range(count))
        order += [start + i for i in inside]

    def batch(step: int) -> list[Group]:
        if step >= steps:
            raise TruelineError(
                f"The recorded stream has {steps} steps and step {step + 1} was asked for. Lower steps."
            )
        return [groups[i] for i in order[step * size : (step + 1) * size]]

    return batch
