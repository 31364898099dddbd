"""Rows that share a run of words with a benchmark.

    overlap(row) = share of the row's runs of n words that also stand in a benchmark        drop where any does

GPT-3 (arXiv 2005.14165, appendix C) drops training documents by 13-grams that also stand in an evaluation set, and takes
n-grams that occur in more than 10 training documents for boilerplate; here it is evaluation items that are counted: a run in
more than `common` items is an instruction that every item repeats, and is no evidence. An item shorter than n words counts by
its whole text, as one run, if it has at least `least_words`. `minimum` is the number of shared runs that drops a row (1 as in
GPT-3). Words are lower-cased; case, spacing and punctuation do not hide a copy. Translations and paraphrases are not found.

benchmarks: files of any data format, or with one text a line; prompts and responses of their rows are looked for in the whole
row. The score is the overlap, smallest first; each row names the item that it shares most runs with.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from trueline.curate.contract import Pool, Scored, curator
from trueline.curating.pool import FilePool
from trueline.curating.text import Hashes, group_text, shingles, word_hashes
from trueline.errors import TruelineError


@curator(
    kind="select", reads="any", model="none", arxiv="2005.14165", paper="N-gram decontamination (GPT-3, appendix C)"
)
def decontaminate(
    pool: Pool,
    *,
    benchmarks: list[str] = [],  # noqa: B006
    n: int = 13,
    common: int = 10,
    least_words: int = 8,
    minimum: int = 1,
) -> Scored:
    if not benchmarks:
        raise TruelineError("decontaminate needs benchmark files: --benchmarks FILE [FILE...].")
    if n < 2 or least_words < 2 or minimum < 1 or common < 1:
        raise TruelineError("decontaminate: n and least_words must be 2 or more, minimum and common 1 or more.")
    index = Index.read(benchmarks, n, common, least_words)
    share, count, where = [], [], []
    for batch in pool.batches():
        for group in batch:
            hashes = word_hashes(group_text(group, "all"))
            found, item = index.shared(hashes)
            runs = max(1, len(hashes) - n + 1)
            share.append(min(1.0, found / runs))
            count.append(found)
            where.append(item)
    count_N = np.array(count)
    note = (
        f"{len(index.items)} benchmark items, {len(index.runs)} runs of words; {index.boilerplate} runs stood in more than "
        f"{common} items and were passed over, {index.too_short} items were too short to look for."
    )
    return Scored(
        np.array(share, dtype=np.float64),
        order="ascending",
        dropped={"shares words with a benchmark": count_N >= minimum},
        columns={"shared_runs": count_N, "benchmark_item": np.array(where, dtype=object)},
        facts={
            "items": len(index.items),
            "runs": len(index.runs),
            "boilerplate": index.boilerplate,
            "too_short": index.too_short,
        },
        notes=[note],
    )


class Index:
    """Runs of words of benchmark items, sorted, each with one item that it stands in; short items by their length."""

    def __init__(self, n: int):
        self.n = n
        self.items: list[str] = []
        self.runs: Hashes = np.zeros(0, dtype=np.uint64)
        self.owner: np.ndarray = np.zeros(0, dtype=np.int64)
        self.lengths: list[int] = [n]  # of runs: n, and the word counts of shorter items
        self.boilerplate = self.too_short = 0

    @classmethod
    def read(cls, paths: list[str], n: int, common: int, least_words: int) -> Index:
        index = cls(n)
        runs, owners = [], []
        lengths = {n}
        for path in paths:
            for batch in FilePool.open([path], seed=0).batches():
                for group in batch:
                    for text in (group_text(group, "prompt"), *(r.text for r in group.responses)):
                        hashes = word_hashes(text)
                        if len(hashes) < least_words:
                            index.too_short += bool(len(hashes))
                            continue
                        lengths.add(min(n, len(hashes)))
                        found = np.unique(shingles(hashes, n))
                        runs.append(found)
                        owners.append(np.full(len(found), len(index.items)))
                        index.items.append(group.origin)
        if not index.items:
            raise TruelineError(f"{', '.join(paths)}: no benchmark text has {least_words} words. Lower least_words.")
        flat, owner = np.concatenate(runs), np.concatenate(owners)
        index.runs, first, times = np.unique(flat, return_index=True, return_counts=True)
        index.owner = owner[first]
        rare = times <= common
        index.boilerplate = int((~rare).sum())
        index.runs, index.owner, index.lengths = index.runs[rare], index.owner[rare], sorted(lengths)
        return index

    def shared(self, hashes: Hashes) -> tuple[int, str]:
        """How many distinct runs of the row stand in the index, and the item that most of them come from."""
        hits: Counter[int] = Counter()
        total = 0
        if not len(self.runs):
            return 0, ""
        for length in self.lengths:
            if len(hashes) < length:
                break
            found = np.unique(shingles(hashes, length))
            at = np.minimum(np.searchsorted(self.runs, found), len(self.runs) - 1)
            owners = self.owner[at[self.runs[at] == found]]
            total += len(owners)
            hits.update(owners.tolist())
        return total, self.items[hits.most_common(1)[0][0]] if hits else ""
