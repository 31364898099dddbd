"""The data themselves, reshuffled every epoch.

Group i of step s is number s * batch_size + i of the endless sequence of epochs; each epoch is a permutation drawn
from the stream ("order", epoch). A step therefore depends on the seed and its number alone.
"""

from functools import lru_cache

from trueline.groups import Group
from trueline.randomness import permutation
from trueline.sources.contract import Source, SourceContext, source


@source(samples=False, paper="Offline preference data")
def data(context: SourceContext, *, shuffle: bool = True) -> Source:
    groups, size = context.groups, context.batch_size

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return permutation(len(groups), context.seed, "order", epoch) if shuffle else list(range(len(groups)))

    def batch(step: int) -> list[Group]:
        places = (divmod(step * size + i, len(groups)) for i in range(size))
        return [groups[order(epoch)[place]] for epoch, place in places]

    return batch
