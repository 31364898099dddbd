"""Near-duplicates by MinHash: of every group of alike rows the first one stays.

    alike(a, b)  <=>  J(S_a, S_b) >= similarity,      S = set of hashed runs of `shingle` words,   J = |A & B| / |A | B|

Broder, "On the resemblance and containment of documents" (1997). Signatures of `permutations` minima find candidates:
rows are cut into bands, chosen so that a pair at the very threshold shares one with probability 0.99; every candidate pair is
then compared exactly, so there are no false alarms, and what is missed lies near the threshold. Of each connected component of
the graph of alike rows the first row in the file stays. (A filter that drops a row for any earlier neighbour, dropped or not,
can lose a whole group; a component never does. It can also be long: its ends need not be alike. The page names the largest.)

Words are lower-cased, so case, spacing and punctuation do not tell rows apart. similarity 0.8 over runs of 5 words and
128 permutations are usual in pre-training pipelines (arXiv 2107.06499 uses 5-grams and 0.8 as well). `part` says
what is compared: the prompt, the (better) response, or everything. The score is the largest similarity to another row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from trueline.curate.contract import Pool, Scored, curator
from trueline.curating.buckets import candidates, components
from trueline.curating.text import Hashes, MinHash, bands, group_text, jaccard, shingles, word_hashes
from trueline.errors import TruelineError
from trueline.randomness import derive

Part = Literal["all", "prompt", "response"]


@curator(kind="select", reads="any", model="none", arxiv="2107.06499", paper="MinHash near-duplicates (Broder 1997)")
def near_duplicates(
    pool: Pool,
    *,
    similarity: float = 0.8,
    shingle: int = 5,
    permutations: int = 128,
    part: Literal["all", "prompt", "response"] = "all",
) -> Scored:
    if not 0 < similarity <= 1:
        raise TruelineError(f"near_duplicates.similarity is {similarity:g}; expected above 0 and up to 1.")
    if shingle < 1 or permutations < 16:
        raise TruelineError("near_duplicates: shingle must be 1 or more and permutations 16 or more.")
    hasher = MinHash(permutations, derive(pool.seed, "minhash"))
    signature_NP = np.concatenate([hasher.signatures(sets) for sets in _sets(pool, part, shingle)])
    pairs_PT = candidates(signature_NP, similarity)
    wanted = np.zeros(pool.n, dtype=bool)
    wanted[pairs_PT.ravel()] = True
    kept_sets: dict[int, Hashes] = {}
    row = 0
    for sets in _sets(pool, part, shingle) if len(pairs_PT) else ():
        for found in sets:
            if wanted[row]:
                kept_sets[row] = found
            row += 1
    exact_P = np.array([jaccard(kept_sets[a], kept_sets[b]) for a, b in pairs_PT.tolist()], dtype=np.float64)
    alike = exact_P >= similarity
    nearest_N = np.zeros(pool.n)
    for side in (0, 1):
        np.maximum.at(nearest_N, pairs_PT[:, side], exact_P)
    first_N, size_N = components(pool.n, pairs_PT[alike])
    later_N = first_N != np.arange(pool.n)
    note = f"{int(later_N.sum())} rows are alike to an earlier one; the largest group has {int(size_N.max(initial=1))} rows."
    like_N = np.array(
        [pool.origin(int(f)) if late else "" for f, late in zip(first_N, later_N, strict=True)], dtype=object
    )
    return Scored(
        nearest_N,
        order="ascending",
        dropped={"near-duplicate of an earlier row": later_N},
        columns={"like_row": like_N, "group_size": size_N},
        facts={
            "candidate_pairs": len(pairs_PT),
            "alike_pairs": int(alike.sum()),
            "bands": bands(permutations, similarity),
        },
        notes=[note],
    )


def _sets(pool: Pool, part: Part, size: int) -> Iterator[list[Hashes]]:
    """Distinct shingles of every row, a batch at a time."""
    for batch in pool.batches():
        yield [np.unique(shingles(word_hashes(group_text(group, part)), size)) for group in batch]
