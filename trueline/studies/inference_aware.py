"""`trueline study inference-aware`: which transformed reward wins which inference-time metric (arXiv 2412.19792, 2406.00832).

A policy may be used as it is, as the best of n samples, or as the worst of n (someone who tries until it slips). InfAlign
says that each asks for its own transform of the calibrated reward. Part A: the closed forms, and tabular policies whose
win rates are exact sums. Part B: the lab, RLOO on `ctrl:lab` under each transform, judged by gold from stored samples with
unbiased best-of-n and worst-of-n estimates, compared at matched KL; and BoNBoN, which imitates the best of n of its
start, beside the curve of best-of-n itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq

from trueline.inference_aware import TRANSFORMS, Tilted, grid
from trueline.jobs import WORKERS, Failure, Job
from trueline.lab.prepare import training_options
from trueline.measure.best_of_n import kl_bound, weights, win_rate_bound
from trueline.studies import rows as row_files
from trueline.studies.conduct import conduct, lab_job
from trueline.studies.online_offline_data import draw_groups
from trueline.studies.online_offline_subject import Subject, lab_subject
from trueline.studies.settings import INFERENCE, INFERENCE_QUICK, InferenceSettings
from trueline.workers import Crew

Array = np.ndarray
METRICS = ("win", "best", "worst")  # of one sample, of the best of n and of the worst of n, each against its like
BONBON = "bonbon"


def study(
    output: str = "study-inference-aware",
    *,
    seeds: int | None = None,
    quick: bool = False,
    workers: int | Crew = WORKERS,
) -> Path:
    """Run what is missing in `output` and write its page, table and figures. Returns the page's path."""
    from trueline.studies.inference_aware_page import write

    settings = INFERENCE_QUICK if quick else INFERENCE
    settings = replace(settings, seeds=seeds or settings.seeds)
    root = Path(output)

    def page(failures: Sequence[Failure]) -> Path:
        return write(root, settings, failures, quick=quick)

    return conduct(root, settings, jobs(root, settings), page, workers=workers, quick=quick)


# ---- part A: exact --------------------------------------------------------------------------------------------------


def closed_forms(settings: InferenceSettings) -> list[dict[str, float | str]]:
    """Win rates of every transform's optimum at every KL, for continuous rewards."""
    found: list[dict[str, float | str]] = []
    for kl in settings.kl:
        for name, t in settings.transforms:
            tilted = Tilted.at_kl(TRANSFORMS[name](grid(), t), kl)
            row = {
                "win": tilted.win,
                "best": tilted.best_of_n_win(settings.n),
                "worst": tilted.worst_of_n_win(settings.n),
            }
            found.append({"transform": name, "t": t, "kl": kl, **row})
    return found


def tabular(settings: InferenceSettings, seed: int) -> list[dict[str, float | str]]:
    """The same for a reference policy of so many responses with random probabilities and distinct rewards: exact sums.

    u is each response's calibrated reward; the optimum p ~ pi_ref exp(Phi(u) / beta) takes the beta of each KL.
    """
    rng = np.random.default_rng(seed)
    reference = rng.dirichlet(np.ones(settings.outcomes))  # in order of reward
    u = np.cumsum(reference) - reference / 2
    found: list[dict[str, float | str]] = []
    for kl in settings.kl:
        for name, t in settings.transforms:
            policy = _tilted(reference, TRANSFORMS[name](u, t), kl)
            found.append({"transform": name, "t": t, "kl": kl, **exact_wins(policy, reference, settings.n)})
    return found


def _tilted(reference: Array, transformed: Array, kl: float) -> Array:
    """The optimum for this reward with this KL to the reference, [outcomes]."""
    scaled = (transformed - transformed.max()) / np.ptp(transformed)

    def at(log_beta: float) -> Array:
        weight = reference * np.exp(scaled / np.exp(log_beta))
        return weight / weight.sum()

    def excess(log_beta: float) -> float:
        policy = at(log_beta)
        kept = policy > 0
        return float((policy[kept] * np.log(policy[kept] / reference[kept])).sum()) - kl

    return at(float(brentq(excess, -12.0, 12.0, xtol=1e-12)))


def exact_wins(policy: Array, reference: Array, n: int) -> dict[str, float]:
    """Win rates, ties one half, of two laws over the same outcomes in order of reward."""
    upwards, downwards = best_law(policy, n), best_law(policy[::-1], n)[::-1]
    others = best_law(reference, n), best_law(reference[::-1], n)[::-1]
    return {"win": _beats(policy, reference), "best": _beats(upwards, others[0]), "worst": _beats(downwards, others[1])}


def best_law(law: Array, n: int) -> Array:
    """Law of the best of n draws, outcomes in order of reward: F^n - (F before it)^n."""
    upto = np.minimum(np.cumsum(law), 1.0)
    return np.diff(np.concatenate([[0.0], upto**n]))


def _beats(one: Array, other: Array) -> float:
    return float(one @ (np.cumsum(other) - other / 2))


def best_of_n_bound(outcomes: int, n: int, seed: int) -> dict[str, float]:
    """Win rate and KL of best-of-n over a tabular reference, beside n/(n+1) and log n - (n-1)/n, which bound them."""
    reference = np.random.default_rng(seed).dirichlet(np.ones(outcomes))
    law = best_law(reference, n)
    kept = law > 0
    kl = float((law[kept] * np.log(law[kept] / reference[kept])).sum())
    return {"win": _beats(law, reference), "kl": kl, "win_bound": win_rate_bound(n), "kl_bound": kl_bound(n)}


# ---- part B: the lab ------------------------------------------------------------------------------------------------


def jobs(root: Path, settings: InferenceSettings) -> list[Job]:
    """The lab of every seed, then every transform and BoNBoN on it."""
    found = [lab_job(root, seed, settings.size) for seed in range(settings.seeds)]
    for seed in range(settings.seeds):
        at = lab_subject(seed, settings.size)
        groups = (root / "data").absolute() / f"groups-{seed}.jsonl"
        log = root / "logs" / f"groups-{seed}.log"
        drawing = (at, settings.n, str(groups))
        found.append(Job(f"groups {seed}", draw_groups, drawing, (at.prepared,), 1, (root, "none"), log, groups))
        found += [_job(root, at, settings, n, _ctrl(at, settings, n, t, w)) for n, t, w in settings.lab]
        found.append(_job(root, at, settings, BONBON, _bonbon(settings, groups), f"groups {seed}"))
    return found


def _ctrl(at: Subject, settings: InferenceSettings, transform: str, t: float, weight: float) -> dict[str, Any]:
    """RLOO on the transformed calibrated reward: its advantages keep the reward's scale, which a transform lives by."""
    told = {"feedback.ctrl.t": t} if transform in ("bon", "won") else {}
    return {
        "objective": {"rloo": 1.0},
        "objectives.rloo.kl_weight": weight,
        "data": [str(at.prompts)],
        "source": "policy",
        "sources.policy.samples": settings.group_samples,
        "feedback": ["ctrl:lab"],
        "feedback.ctrl.transform": transform,
        "feedback.ctrl.reference_samples": settings.reference_samples,
        **told,
    }


def _bonbon(settings: InferenceSettings, groups: Path) -> dict[str, Any]:
    """Best and worst of n samples of the start."""
    return {"objective": {BONBON: 1.0}, "objectives.bonbon.n": settings.n, "data": [str(groups)]}


def _job(
    root: Path, at: Subject, settings: InferenceSettings, name: str, options: dict[str, Any], after: str = ""
) -> Job:
    label = f"{name}-{at.seed}".replace(" ", "_").replace("=", "")
    target = (root / "rows" / f"{label}.json").absolute()
    options = {
        **training_options(settings.training),
        **at.options,
        **options,
        "model": str(at.start),
        "seed": at.seed,
        "record_stream": False,
        "eval_data": [str(at.held_out)],
        "eval_steps": settings.eval_steps,
        "eval_prompts": settings.eval_prompts,
        "eval_samples": settings.samples,
        "eval_opponent_samples": settings.samples,
        "eval_feedback": ["lab"],
    }
    return Job(
        f"{name} {at.seed}",
        row_files.execute,
        ((name, "", at.seed), options, str(target), "lab", False, partial(inference_wins, settings.n)),
        (after or at.prepared,),
        settings.training.steps,
        (target.with_suffix(""), "trueline/metrics.jsonl"),
        root / "logs" / f"{label}.log",
        target,
    )


def inference_wins(n: int, run: Path) -> dict[str, Any]:
    """The three win rates at every evaluation of a run, from its stored samples and those of its start."""
    from trueline.report.record import load as load_record

    record = load_record(run)
    found: dict[str, Any] = {"step": sorted(record.samples_by_step), **{m: [] for m in METRICS}}
    for step in found["step"]:
        said = record.samples_by_step[step]
        pairs = [([s.rewards["lab"] for s in said[p]], record.opponent[p].rewards["lab"]) for p in sorted(said)]
        wins = [sampled_wins(np.array(a, dtype=float), np.array(b, dtype=float), n) for a, b in pairs]
        for metric in METRICS:
            found[metric].append(float(np.mean([w[metric] for w in wins])))
    return found


def sampled_wins(own_M: Array, other_M: Array, n: int) -> dict[str, float]:
    """Unbiased win rates from samples of both sides: means over all subsets of n, ties one half."""
    best = {"win": 1, "best": n, "worst": n}
    found = {}
    for metric, size in best.items():
        sign = -1.0 if metric == "worst" else 1.0
        own, other = (np.sort(sign * v) for v in (own_M, other_M))
        table = 0.5 + 0.5 * np.sign(own[:, None] - other[None, :])
        win = float(weights(len(own), size) @ table @ weights(len(other), size))
        found[metric] = win if sign > 0 else 1 - win  # the worse worst has the higher negated reward
    return found


def curve(transform: str, t: float, kl: Array, metric: str, n: int) -> Array:
    """The closed form's metric at these KLs, for the figures."""
    tilts = [Tilted.at_kl(TRANSFORMS[transform](grid(), t), float(k)) for k in kl]
    of = {"win": lambda x: x.win, "best": lambda x: x.best_of_n_win(n), "worst": lambda x: x.worst_of_n_win(n)}
    return np.array([of[metric](x) for x in tilts])
