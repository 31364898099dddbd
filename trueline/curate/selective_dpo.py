"""Selective DPO: drop the pairs that are too hard for this model, and train on the rest from easy to hard (arXiv 2502.09650).

    v_i = mean over held-out evaluations of  -log sigmoid(beta [(lp - lp_ref)(w) - (lp - lp_ref)(l)])        keep the lowest

Cross-fitting: for each of `seeds` permutations the pairs are cut in two halves by prompt; DPO is trained on one half and
scores the other, and the other way round, so each pair is scored once a seed and never by a model that saw its prompt. Each
run is evaluated at `evaluations` evenly spaced checkpoints; v averages all columns (released: 3 seeds, 5 evaluations).
Rows are written easiest first: train on them in the order of the file, one epoch (`trueline align --data kept.jsonl
sources.data.shuffle=false`, the released code's sequential sampler). The default budget 0.5 is the paper's tau.

beta 0.01 is the released Mistral configuration's. Scoring runs there are LoRA of rank 16 at learning rate 3e-5, on the
default here is whole weights at the 1e-6 of its final run; both are options (`scoring_adapter` lora). `losses` names columns
of the data that already hold held-out losses, one column an evaluation; then no model is needed and nothing is trained.

Reported beside v: agreement of the seeds (mean Spearman of their orders), the learning step of each pair (first evaluation
from which on it is always ranked rightly; the paper's exact definition could not be checked), and the correlation with length:
if easy means short, selection is a length filter. Under fixed but random labels the seeds' agreement is about 0.45, not 0,
because two seeds' halves share half their pairs; 0.45 is what 'no signal' looks like. Difficulty belongs to the model: do
not carry v over to another one unsaid.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from trueline.curate.contract import Pool, Scored, curator, numbers, positive
from trueline.curating.crossfit import consistency, learning_step
from trueline.errors import TruelineError


@curator(
    kind="select",
    reads="pairs",
    model="optional",
    arxiv="2502.09650",
    paper="Principled Data Selection for Alignment: Selective DPO",
)
def selective_dpo(
    pool: Pool,
    *,
    losses: list[str] = [],  # noqa: B006
    seeds: int = 3,
    evaluations: int = 5,
    beta: float = 0.01,
    scoring_rate: float = 1e-6,
    scoring_batch: int = 32,
    scoring_epochs: float = 1.0,
    scoring_adapter: Literal["full", "lora"] = "full",
) -> Scored:
    if losses:
        if pool.workshop.given:
            raise TruelineError("selective_dpo: with losses from the data nothing is trained; leave --model out.")
        loss_CN = np.stack([numbers(pool.values(name), f"losses column '{name}'") for name in losses])
        facts: dict[str, float] = {"columns": len(losses)}
        columns = {}
        by_seed = loss_CN
    else:
        training = {"learning_rate": scoring_rate, "batch_size": scoring_batch, "epochs": scoring_epochs}
        positive("selective_dpo", beta=beta, seeds=seeds, evaluations=evaluations, **training)
        loss_CN, margin_CN = pool.workshop.cross_fitted(
            pool, seeds=seeds, evaluations=evaluations, beta=beta, adapter=scoring_adapter, **training
        )
        per_seed = margin_CN.reshape(seeds, evaluations, -1)
        step_SN = np.stack([learning_step(np.nan_to_num(m, nan=-1.0)) for m in per_seed])
        columns = {"learning_step": step_SN.mean(axis=0), "ranked_rightly": (per_seed[:, -1] > 0).mean(axis=0)}
        facts = {"runs": 2 * seeds, "evaluations": evaluations}
        by_seed = loss_CN.reshape(seeds, evaluations, -1).mean(axis=1)
    value_N = loss_CN.mean(axis=0)
    known = ~np.isnan(value_N)
    if not known.any():
        raise TruelineError("selective_dpo: no pair has a held-out loss. Do the rows hold pairs that fit --max-length?")
    agreement = consistency(by_seed[:, known])
    facts["seed_agreement"] = agreement
    spread_N = by_seed.std(axis=0)
    notes = [] if len(by_seed) < 2 else [
        f"Seeds agree at a Spearman correlation of {agreement:.2f}; labels without signal give about 0.45 (fixed random labels)."
    ]  # fmt: skip
    return Scored(
        value_N,
        order="ascending",
        columns={"spread": spread_N, **columns},
        arrange="score",
        budget="0.5",
        facts=facts,
        notes=notes,
    )
