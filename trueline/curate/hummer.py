"""Hummer's hybrid sampling: draw dimensions of preference at rates that raise the one that lags (arXiv 2405.11647).

    rate_i <- rate_i exp(eta (mean mu - mu_i)) / sum        mu_i: held-out accuracy on dimension i
    a row of dimension i is drawn with weight rate_i / n_i, without replacement

`column` names the dimension a pair is about (helpfulness, brevity, ...). `rates` uniform draws every dimension alike;
lagging (default) starts there, updates `rounds` times and takes the mean of the rates, which is what a run would have drawn. mu comes from `accuracies` (name=0.71 for each dimension: those
of your reward model, one update), or from a linear reward model on words that is trained on the way. eta 1 and 10 rounds are
ours, and so is the update's exact form; the paper says that lagging dimensions are sampled more.

Before it, the set's Alignment Dimension Conflict is measured with the same linear model over five splits, beside two things
that are no conflict: the noise floor (measure `alignment_dimension_conflict`) and the ADC of the same pairs with the dimensions'
names shuffled, which is what training on fewer pairs costs. A set without conflict gains nothing from rates. The score is the key of the weighted draw. Default budget: half of the rows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from trueline.curate.contract import Floats, Pool, Scored, curator, pairs_of, positive
from trueline.curating.conflict import hybrid_rates, interference, next_rates, without_dimensions, word_differences
from trueline.curating.selecting import gumbel_keys
from trueline.errors import TruelineError, nearest
from trueline.groups import response_text
from trueline.randomness import derive
from trueline.registry import load


@curator(
    kind="select", reads="pairs", model="none", arxiv="2405.11647", paper="Hummer: limited competitive preference data"
)
def hummer(
    pool: Pool,
    *,
    column: str = "dimension",
    rates: Literal["lagging", "uniform"] = "lagging",
    accuracies: list[str] = [],  # noqa: B006
    rounds: int = 10,
    eta: float = 1.0,
) -> Scored:
    positive("hummer", eta=eta, rounds=rounds)
    if accuracies and rates == "uniform":
        raise TruelineError("hummer: accuracies have no effect with uniform rates. Leave one of them out.")
    labels = [str(v) if v not in (None, "") else "" for v in pool.values(column)]
    texts: list[tuple[str, str]] = []
    usable = np.zeros(pool.n, dtype=bool)
    row = 0
    for batch in pool.batches():
        for group in batch:
            pair = pairs_of(group)
            if pair is not None and labels[row]:
                usable[row] = True
                texts.append((response_text(pair[0]), response_text(pair[1])))
            row += 1
    own = [label for label, use in zip(labels, usable, strict=True) if use]
    if len(set(own)) < 2:
        raise TruelineError(
            f"hummer: column '{column}' names {len(set(own))} dimensions in pairs; expected two or more."
        )
    differences = word_differences(texts)
    found = interference(differences, own)
    conflict = load("measure", "alignment_dimension_conflict").call
    readings = conflict(**found.table())
    facts: dict[str, Any] = {r.name: r.value for r in readings}
    facts["adc_with_names_shuffled"] = conflict(**without_dimensions(differences, own).table())[0].value
    facts["deviations"] = [dict(item) for item in readings[0].items]
    names, share_K = _rates(rates, accuracies, differences, own, rounds, eta, facts)
    count = {name: own.count(name) for name in names}
    log_weight_N = np.array([np.log(share_K[names.index(v)] / count[v]) if u else np.nan for v, u in zip(labels, usable, strict=True)])  # fmt: skip
    rng = np.random.Generator(np.random.PCG64(derive(pool.seed, "hummer")))
    facts["rates"] = dict(zip(names, share_K.tolist(), strict=True))
    told = ", ".join(f"{n} {s:.1%}" for n, s in facts["rates"].items())
    return Scored(
        gumbel_keys(log_weight_N, rng),
        dropped={"no dimension or no pair": ~usable},
        columns={"dimension": np.array(labels, dtype=object)},
        budget="0.5",
        facts=facts,
        notes=[
            f"Alignment Dimension Conflict {facts['adc']:.2e}; {facts['adc_with_names_shuffled']:.2e} with the dimensions' names shuffled, "
            f"noise floor {facts['noise_floor']:.2e} (linear reward model on words, 5 splits).",
            f"Rates: {told}.",
        ],
    )


def _rates(how: str, accuracies: list[str], differences: Any, own: list[str], rounds: int, eta: float, facts: dict[str, Any]) -> tuple[list[str], Floats]:  # fmt: skip
    names = sorted(set(own))
    uniform = np.full(len(names), 1 / len(names))
    if how == "uniform":
        return names, uniform
    if accuracies:
        given = dict(_named(text, names) for text in accuracies)
        if missing := [n for n in names if n not in given]:
            raise TruelineError(f"hummer.accuracies lacks {', '.join(missing)}. Give every dimension, as name=0.71.")
        return names, next_rates(uniform, [given[n] for n in names], eta)
    names, rates_TK, accuracy_TK = hybrid_rates(differences, own, rounds=rounds, eta=eta)
    facts["accuracies"] = {
        n: [float(a), float(b)] for n, a, b in zip(names, accuracy_TK[0], accuracy_TK[-1], strict=True)
    }
    return names, rates_TK.mean(axis=0)


def _named(text: str, names: list[str]) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    if name not in names:
        raise TruelineError(f"hummer.accuracies: '{text}' names no dimension. {nearest(name, names)}")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise TruelineError(f"hummer.accuracies: '{text}'; expected NAME=SHARE with a share between 0 and 1.")
    return name, number
