"""The plateau law: how performance grows with the number of training pairs, and how many are enough.

    perf(n) = P_inf - (P_inf - P_0) exp(-n / n_0),        n_p = -n_0 ln(1 - p)

n_p is the number of pairs that gives the share p of what all the data in the world would add (P_inf - P_0). An exponential
plateau is what the abstract of "Efficient alignment of large language models via data sampling" names; the parameters are ours.
Least squares in three parameters, started from several n_0; 95 % intervals from the Jacobian at the optimum (t
distribution), so they need five points or more, and fewer than four are refused: three parameters fit any three points. Give
one row a trained subset, `n` and `performance`; compare subsets at equal epochs and again at equal steps, or the law is one of
training time. The residual share R^2 is a reading too; a law that misses is not one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueline.errors import TruelineError
from trueline.measure.contract import Reading, columns, measure


@measure(
    takes="table",
    arxiv="2411.10545",
    paper="Efficient alignment of large language models via data sampling: plateau law",
)
def plateau(n: Sequence[float], performance: Sequence[float], *, share: float = 0.95) -> list[Reading]:
    """Pairs trained on, and what the model trained on them reached."""
    from scipy.optimize import least_squares
    from scipy.stats import t as student

    if not 0 < share < 1:
        raise TruelineError(f"plateau.share is {share:g}; expected a share between 0 and 1 of what more data can add.")
    n_J, perf_J = columns("plateau", n=n, performance=performance)
    if len(set(n_J.tolist())) < 4:
        raise TruelineError(
            f"The plateau law has 3 parameters and needs 4 different sizes; found {len(set(n_J.tolist()))}."
        )
    if (n_J < 0).any():
        raise TruelineError("plateau: n is below 0 in a row; expected numbers of training pairs.")
    scale = float(n_J.max())

    def residual(parameters: np.ndarray) -> np.ndarray:
        top, bottom, log_scale = parameters
        return top - (top - bottom) * np.exp(-n_J / scale * np.exp(-log_scale)) - perf_J

    starts = [(perf_J[n_J.argmax()], perf_J[n_J.argmin()], np.log(s)) for s in (0.02, 0.1, 0.4, 1.5)]
    fits = [least_squares(residual, s, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=5000) for s in starts]
    best = min(fits, key=lambda f: f.cost)
    top, bottom, log_scale = (float(v) for v in best.x)
    rate = scale * float(np.exp(log_scale))
    free = len(n_J) - 3
    half = [float("nan")] * 3
    if free > 1:
        spread = 2 * best.cost / free
        information = best.jac.T @ best.jac
        if np.linalg.cond(information) < 1e14:
            covariance = np.linalg.inv(information) * spread
            half = [float(student.ppf(0.975, free) * np.sqrt(max(covariance[i, i], 0.0))) for i in range(3)]
    total = float(np.sum((perf_J - perf_J.mean()) ** 2))
    explained = 1 - 2 * best.cost / total if total else float("nan")
    times = -np.log(1 - share)
    count = len(n_J)

    def reading(name: str, value: float, low: float, high: float, unit: str) -> Reading:
        known = np.isfinite([low, high]).all()
        return Reading(
            name, value, low if known else None, high if known else None, count, unit, "subsets of this size"
        )

    around = (rate * np.exp(-half[2]), rate * np.exp(half[2]))
    return [
        reading("plateau", top, top - half[0], top + half[0], "performance"),
        reading("start", bottom, bottom - half[1], bottom + half[1], "performance"),
        reading("scale", rate, *around, "pairs"),
        reading(f"pairs_for_{share:g}", rate * times, around[0] * times, around[1] * times, "pairs"),
        Reading("r_squared", explained, None, None, count, "share", "nothing else"),
    ]
