"""Information-theoretic subset: sample pairs that lie clearly in the better part of a two-part mixture.

    z_i ~ mixture of two Gaussians (EM, diagonal, ridge),   r_ik responsibilities,   H_i = -sum_k r_ik log r_ik
    w_i proportional to r_i,hq exp(-lambda H_i)             sample m rows without replacement with weights w

hq is the component with the higher mean quality. The abstract of "Efficient alignment of large language models via data
sampling" (ISA, arXiv 2411.10545) names the mixture, the entropy criterion and the plateau law; this concrete form is our reading of it, and no
reference code was found. lambda > 0 prefers clear rows; `mode` informative turns its sign and prefers unclear ones.

z is the reward gap of the pairs (`features` gap: rewards in the data; logratio: log-probs of --model, S(w) - S(l)) or the first
`dimensions` principal components of embeddings (hidden: last states of --model; words: hashed word counts, no model).
Quality is the reward gap, for `logratio` the log-ratio itself. Responsibilities and entropies are columns. A budget as large
as the data gives all of it. See measure `plateau` for the law: how many pairs are needed for a share of what all would give.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueline.curate.contract import Floats, Pool, Scored, curator, pairs_of
from trueline.curating.selecting import gumbel_keys
from trueline.errors import TruelineError
from trueline.groups import response_text
from trueline.randomness import derive

RIDGE = 1e-6  # added to variances of standardised features


@curator(
    kind="select",
    reads="pairs",
    model="optional",
    arxiv="2411.10545",
    paper="Efficient alignment of large language models via data sampling",
)
def isa(
    pool: Pool,
    *,
    features: Literal["gap", "logratio", "hidden", "words"] = "gap",
    weight: float = 1.0,
    mode: Literal["clear", "informative"] = "clear",
    dimensions: int = 16,
) -> Scored:
    if weight < 0 or dimensions < 1:
        raise TruelineError("isa: weight (lambda) must be 0 or more and dimensions 1 or more.")
    needs_model = features in ("logratio", "hidden")
    if needs_model != pool.workshop.given:
        raise TruelineError(
            f"isa with features {features} {'needs --model' if needs_model else 'asks no model: leave --model out'}."
        )
    quality_N = _quality(pool, features)
    known = ~np.isnan(quality_N)
    if known.sum() < 4:
        raise TruelineError(f"isa fits two Gaussians and needs at least 4 pairs with {'log-probs' if features == 'logratio' else 'rewards'}; found {int(known.sum())}.")  # fmt: skip
    feature_KD = (
        quality_N[known, None] if features in ("gap", "logratio") else _embedded(pool, features, known, dimensions)
    )
    fit = Mixture.fit(feature_KD, quality_N[known], derive(pool.seed, "isa"))
    sign = -1.0 if mode == "clear" else 1.0
    with np.errstate(divide="ignore"):
        log_weight_K = np.log(fit.high_K) + sign * weight * fit.entropy_K
    rng = np.random.Generator(np.random.PCG64(derive(pool.seed, "isa", "draw")))
    keys_K = gumbel_keys(np.maximum(log_weight_K, -1e300), rng)
    scored, high_N, entropy_N = (np.full(pool.n, np.nan) for _ in range(3))
    scored[known], high_N[known], entropy_N[known] = keys_K, fit.high_K, fit.entropy_K
    return Scored(
        scored,
        columns={"quality": quality_N, "responsibility": high_N, "entropy": entropy_N},
        budget="0.1",
        facts={"component_sizes": fit.sizes, "component_quality": fit.qualities, "em_iterations": fit.iterations},
        notes=[
            f"The better component holds {fit.sizes[1]:.1%} of the pairs, at a mean quality of {fit.qualities[1]:.3g} "
            f"against {fit.qualities[0]:.3g}. The score is the key of a weighted draw, not a quality."
        ],
    )


class Mixture:
    """Two Gaussians of diagonal covariance; component 1 has the higher mean quality. bounds: the mean log-likelihood a step."""

    high_K: Floats
    entropy_K: Floats
    sizes: list[float]
    qualities: list[float]
    iterations: int
    bounds: list[float]

    @classmethod
    def fit(cls, feature_KD: Floats, quality_K: Floats, seed: int) -> Mixture:
        from sklearn.mixture import GaussianMixture

        spread = feature_KD.std(axis=0)
        if not np.any(spread > 0):
            raise TruelineError("isa: every pair has the same features, so there is nothing to tell them apart.")
        standard_KD = (feature_KD - feature_KD.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        model = GaussianMixture(
            2, covariance_type="diag", reg_covar=RIDGE, n_init=3, max_iter=500, random_state=seed % (1 << 32)
        ).fit(standard_KD)
        share_KC: NDArray[Any] = model.predict_proba(standard_KD)
        mass_C = share_KC.sum(axis=0)
        quality_C = share_KC.T @ quality_K / np.maximum(mass_C, 1e-12)
        low, high = (0, 1) if quality_C[1] >= quality_C[0] else (1, 0)
        made = cls()
        made.high_K = share_KC[:, high]
        made.entropy_K = -np.sum(np.where(share_KC > 0, share_KC * np.log(np.maximum(share_KC, 1e-300)), 0.0), axis=1)
        made.sizes = [float(mass_C[c] / len(share_KC)) for c in (low, high)]
        made.qualities = [float(quality_C[c]) for c in (low, high)]
        made.iterations = int(model.n_iter_)
        made.bounds = [float(b) for b in getattr(model, "lower_bounds_", [model.lower_bound_])]
        return made


def _quality(pool: Pool, features: str) -> Floats:
    if features == "logratio":
        better_N, worse_N = pool.workshop.pair_logps(pool)
        return better_N - worse_N
    gaps = []
    for batch in pool.batches():
        for group in batch:
            pair = pairs_of(group)
            both = pair is not None and None not in (pair[0].reward, pair[1].reward)
            gaps.append(pair[0].reward - pair[1].reward if pair and both else np.nan)
    return np.array(gaps, dtype=np.float64)


def _embedded(pool: Pool, features: str, known: NDArray[np.bool_], dimensions: int) -> Floats:
    """Principal components of the pairs' texts; at most as many as 32, so that d stays far below n."""
    from sklearn.decomposition import PCA, TruncatedSVD

    texts = [
        f"{g.prompt if isinstance(g.prompt, str) else g.prompt[-1].get('content', '')}\n{response_text(g.responses[0])}"
        for batch in pool.batches()
        for g in batch
    ]
    chosen = [t for t, k in zip(texts, known, strict=True) if k]
    count = min(dimensions, 32, len(chosen) - 1)
    if features == "hidden":
        vectors = pool.workshop.embed(chosen)
        return PCA(min(count, vectors.shape[1]), random_state=0).fit_transform(vectors)
    from trueline.curating.embedding import word_vectors

    return TruncatedSVD(count, random_state=0).fit_transform(word_vectors(chosen))
