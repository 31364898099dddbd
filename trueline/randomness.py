"""Named random streams.

Every draw in a run comes from a stream derived from the run's seed and names such as ("order", epoch) or
("sample", step). A stream depends on its name alone, never on what was drawn before, so a resumed run needs no
generator state and a draw does not move when an unrelated one is added.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream with this name."""
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def permutation(n: int, seed: int, *names: str | int) -> list[int]:
    """A shuffle of range(n) that depends on the seed and the name alone."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(derive(seed, *names))).permutation(n).tolist()
