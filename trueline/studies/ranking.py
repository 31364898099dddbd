"""`trueline study ranking`: does preference learning teach a model to rank? (arXiv 2405.19534)

Ranking accuracy (does the policy find the better response at least as likely) on held-out pairs, before and after DPO,
IPO and PPO, against the idealised one of the exact optimum; and which pairs flip, by how wrongly the start ranks them.
DPO and IPO learn from gold-labelled pairs, PPO from fresh samples that gold judges. The share of raters who prefer the
better response is gold's own Bradley-Terry probability, so the idealised accuracy is exact in the lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trueline.jobs import WORKERS, Failure, Job
from trueline.lab.prepare import MAX_LENGTH, LabArtefacts, locate, training_options
from trueline.lab.world import MAX_REPLY
from trueline.studies import rows as row_files
from trueline.studies.conduct import conduct, lab_job
from trueline.studies.settings import RANKING, RANKING_QUICK, RankingSettings
from trueline.workers import Crew

METHODS = ("dpo", "ipo", "ppo")
DIGITS = 4  # of the log-probs that a row keeps


def study(
    output: str = "study-ranking", *, seeds: int | None = None, quick: bool = False, workers: int | Crew = WORKERS
) -> Path:
    """Run what is missing in `output` and write its page, table and figures. Returns the page's path."""
    from trueline.studies.ranking_page import write

    settings = RANKING_QUICK if quick else RANKING
    settings = replace(settings, seeds=seeds or settings.seeds)
    root = Path(output)

    def page(failures: Sequence[Failure]) -> Path:
        return write(root, settings, failures, quick=quick)

    return conduct(root, settings, jobs(root, settings), page, workers=workers, quick=quick)


def jobs(root: Path, settings: RankingSettings) -> list[Job]:
    """The lab of every seed, then every method on it."""
    found = [lab_job(root, seed, settings.size) for seed in range(settings.seeds)]
    return found + [_job(root, settings, seed, method) for seed in range(settings.seeds) for method in METHODS]


def _job(root: Path, settings: RankingSettings, seed: int, method: str) -> Job:
    at = locate(seed, settings.size)
    target = (root / "rows" / f"{method}-{seed}.json").absolute()
    options = {
        **training_options(settings.training),
        **_groups(method, at, settings),
        "model": str(at.policy),
        "objective": {method: 1.0},
        "seed": seed,
        "max_length": MAX_LENGTH,
        "max_response_length": MAX_REPLY,
        "record_stream": False,
        "eval_data": [str(at.held_out_pairs)],
        "eval_steps": settings.eval_steps,
        "eval_prompts": settings.eval_prompts,
        "eval_opponent_samples": settings.opponent_samples,
        "eval_feedback": ["lab"],
        "feedback.lab.size": settings.size,
    }
    measure = partial(pair_logps, str(at.policy), str(at.held_out_pairs), settings.size)
    return Job(
        f"{method} {seed}",
        row_files.execute,
        ((method, "", seed), options, str(target), "lab", False, measure),
        (f"lab {seed}",),
        settings.training.steps,
        (target.with_suffix(""), "trueline/metrics.jsonl"),
        root / "logs" / f"{method}-{seed}.log",
        target,
    )


def _groups(method: str, at: LabArtefacts, settings: RankingSettings) -> dict[str, Any]:
    """Where a method's groups come from, at the same number of responses a step."""
    if method != "ppo":
        return {"data": [str(at.train_pairs)], "batch_size": settings.responses // 2}
    batch = settings.responses // settings.group_samples
    sampled = {"source": "policy", "sources.policy.samples": settings.group_samples, "feedback": ["lab"]}
    return {**sampled, "data": [str(at.train_prompts)], "batch_size": batch}


def pair_logps(reference: str, pairs: str, size: Any, run: Path) -> dict[str, Any]:
    """Log-probs of both responses of every held-out pair under the run's model and its start, prompts and agreement.

    agreement: gold's probability that the chosen one is better, sigmoid of the difference of rewards.
    """
    from trueline.lab.gold import preference, reward
    from trueline.lab.world import world
    from trueline.measuring.contract import Request
    from trueline.measuring.pairs import policy_and_reference_logps
    from trueline.measuring.scorer import read_groups

    request = Request("alignment_gap", data=[pairs], model=str(run), model_b=reference, max_length=MAX_LENGTH)
    [(_, columns), *_] = policy_and_reference_logps(request)
    groups = read_groups(request)
    known = world(size)
    prompts = [str(g.prompt) for g in groups]
    chosen, rejected = (reward(known, prompts, [g.responses[i].text for g in groups]) for i in (0, 1))
    agreement = preference(chosen - rejected)
    kept = {name: [round(float(v), DIGITS) for v in columns[name]] for name in columns if name != "clusters"}
    return {**kept, "prompts": columns["clusters"], "agreement": [round(float(a), 6) for a in agreement]}  # type: ignore[union-attr]
