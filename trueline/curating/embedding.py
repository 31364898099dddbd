"""Vectors of texts without a model: hashed word and word-pair counts, weighted by rarity, of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FEATURES = 1 << 18


def word_vectors(texts: Sequence[str]) -> Any:
    """A sparse matrix [texts, 2^18] with rows of length 1 (of length 0 for a text without a word)."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    counts = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, norm=None).transform(
        texts
    )
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts)
