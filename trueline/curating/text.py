"""Words and shingles of texts as arrays of hashes, and MinHash signatures: everything about texts that is not a model.

A word is a run of letters and digits, lower-cased; a Chinese, Japanese or Korean character is a word of its own, since
those scripts put no space between words. Hashes are 64 bits and depend on the text alone.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trueline.groups import Group, Prompt, response_text
from trueline.readers.hh import ASSISTANT, HUMAN

Hashes = NDArray[np.uint64]
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_CJK_RUN = re.compile(f"[{CJK}]")
_WORD = re.compile(r"\w+")
_WIDE_WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: spreads what differs in few bits


def words(text: str) -> list[str]:
    """Lower-cased words; wide characters one by one."""
    lowered = text.lower()
    if lowered.isascii() or not _CJK_RUN.search(lowered):
        return _WORD.findall(lowered)
    return _WIDE_WORD.findall(lowered)


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def word_hashes(text: str) -> Hashes:
    """One hash a word, in order."""
    return np.fromiter(map(_word_hash, words(text)), dtype=np.uint64)


def mixed(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers that leaves no trace of their order (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(hashes: Hashes, size: int) -> Hashes:
    """Hashes of every `size` consecutive words; of the whole text where it is shorter; none for an empty one."""
    if not len(hashes):
        return hashes
    size = min(size, len(hashes))
    with np.errstate(over="ignore"):
        total = np.zeros(len(hashes) - size + 1, dtype=np.uint64)
        for i in range(size):
            total = (total + hashes[i : len(hashes) - size + 1 + i] + np.uint64(1)) * MULTIPLIER
            total ^= total >> np.uint64(29)
    return mixed(total)


def text_key(text: str) -> int:
    """One hash for a text up to case, punctuation and spacing; 0 for a text without words."""
    found = " ".join(words(text)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(found, digest_size=8).digest(), "big") if found else 0


def plain_prompt(prompt: Prompt) -> str:
    """What a prompt says, without roles and markers, so that one question is found in any format."""
    if isinstance(prompt, str):
        return prompt.replace(ASSISTANT, "\n").replace(HUMAN, "\n")
    return "\n".join(str(m.get("content", "")) for m in prompt if m.get("role") not in ("system", "developer"))


def last_question(prompt: Prompt) -> str:
    """The user's last turn alone."""
    if isinstance(prompt, str):
        return prompt.split(HUMAN)[-1].split(ASSISTANT)[0] if HUMAN in prompt else prompt
    asked = [str(m.get("content", "")) for m in prompt if m.get("role") == "user"]
    return asked[-1] if asked else plain_prompt(prompt)


def group_text(group: Group, part: str) -> str:
    """'prompt', 'response' (the best one), or 'all': the prompt and every response."""
    if part == "prompt":
        return plain_prompt(group.prompt)
    if part == "response":
        return response_text(group.responses[0]) if group.responses else ""
    return "\n".join([plain_prompt(group.prompt), *map(response_text, group.responses)])


class MinHash:
    """Signatures whose share of equal places estimates the Jaccard similarity of two sets of shingles.

    h_i(x) = high 32 bits of (a_i x + b_i) mod 2^64 with odd a_i (multiply-shift); shingle hashes are well mixed before.
    The estimate of a similarity s has the standard error sqrt(s (1 - s) / permutations).
    """

    def __init__(self, permutations: int, seed: int):
        rng = np.random.Generator(np.random.PCG64(seed))
        self.scale = rng.integers(0, 1 << 63, permutations, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self.shift = rng.integers(0, 1 << 63, permutations, dtype=np.uint64) * np.uint64(2)

    def signatures(self, sets: Sequence[Hashes]) -> NDArray[np.uint32]:
        """[texts, permutations]; an empty set has the signature of all ones."""
        result = np.full((len(sets), len(self.scale)), np.iinfo(np.uint32).max, dtype=np.uint32)
        filled = [i for i, s in enumerate(sets) if len(s)]
        if not filled:
            return result
        flat = np.concatenate([sets[i] for i in filled])
        starts = np.cumsum([0, *(len(sets[i]) for i in filled[:-1])])
        work = np.empty_like(flat)
        with np.errstate(over="ignore"):
            for k, (scale, shift) in enumerate(zip(self.scale, self.shift, strict=True)):
                np.multiply(flat, scale, out=work)
                np.add(work, shift, out=work)
                result[filled, k] = np.minimum.reduceat(work, starts) >> np.uint64(32)
        return result


def bands(permutations: int, threshold: float, recall: float = 0.99) -> tuple[int, int]:
    """(bands, rows a band): as many rows as still find a pair at the threshold with this probability."""
    best = (permutations, 1)
    for rows in range(1, permutations + 1):
        count = permutations // rows
        if 1 - (1 - threshold**rows) ** count >= recall:
            best = (count, rows)
    return best


def jaccard(a: Hashes, b: Hashes) -> float:
    """Similarity of two sets of distinct hashes; two empty sets are not alike."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - both
    return both / union if union else 0.0
