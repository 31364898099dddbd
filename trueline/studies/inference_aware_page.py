"""The page of the inference-aware study: closed forms and exact tables, the lab's curves, verdicts at matched KL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.environment import environment
from trueline.jobs import Failure
from trueline.lab.frontier import Frontier
from trueline.measure.best_of_n import kl_bound, win_rate_bound
from trueline.studies import conduct
from trueline.studies import findings as verdicts
from trueline.studies.findings import Claim
from trueline.studies.inference_aware import BONBON, METRICS, best_of_n_bound, closed_forms, curve, tabular
from trueline.studies.rows import Row, read_rows
from trueline.studies.settings import InferenceSettings
from trueline.wholefile import write_json

TITLES = {"win": "one sample", "best": "best of {n}", "worst": "worst of {n}"}
SUITS = {"win": "identity", "best": "bon", "worst": "won"}  # the transform that theory names for each metric
COLOURS = {"identity": "#0072B2", "bon": "#D55E00", "won": "#009E73", "log": "#CC79A7", BONBON: "#000000"}
Table = list[dict[str, float | str]]


def write(root: Path, settings: InferenceSettings, failures: Sequence[Failure], *, quick: bool) -> Path:
    """Write inference_aware.md, inference_aware.json and the figure; returns the page."""
    rows = [r for r in read_rows(root / "rows") if r.seed < settings.seeds]
    forms = closed_forms(settings)
    tables = [tabular(settings, seed) for seed in range(settings.seeds)]
    exact = mean_table(tables)
    bounds = [best_of_n_bound(settings.outcomes, settings.n, seed) for seed in range(settings.seeds)]
    matched = {seed: at_matched_kl(rows, settings, seed) for seed in range(settings.seeds)}
    found = verdicts.find(claims(matched, settings))
    machine = environment()
    content = {
        "settings": json.loads((root / "settings.json").read_text(encoding="utf-8")),
        "seeds": settings.seeds,
        "environment": machine,
        "closed_forms": forms,
        "tabular": exact,
        "best_of_n": bounds,
        "lab": [{"arm": r.method, "seed": r.seed, "kl": r.kl_C, **r.extra} for r in rows],
        "matched_kl": matched,
        "claims": [f.to_json() for f in found],
        "failures": [vars(f) for f in failures],
    }
    write_json(root / "inference_aware.json", content)
    _draw(rows, settings, root)
    parts = _part_a(settings, forms, exact, bounds, machine, quick=quick)
    parts += _part_b(settings, matched, found)
    parts += ["\n## Not finished\n", *(f"- `{f.name}`: {f.reason}" for f in failures)] if failures else []
    page = root / "inference_aware.md"
    page.write_text("\n".join([*parts, ""]), encoding="utf-8")
    return page


def mean_table(tables: Sequence[Table]) -> Table:
    """The mean of the exact tables over references."""
    return [
        {**rows[0], **{m: float(np.mean([row[m] for row in rows])) for m in METRICS}}  # type: ignore[misc]
        for rows in zip(*tables, strict=True)
    ]


def winners(table: Table, kl: float) -> dict[str, str]:
    """Which transform wins each metric at a KL."""
    rows = [r for r in table if r["kl"] == kl]
    return {m: str(max(rows, key=lambda r: r[m])["transform"]) for m in METRICS}


def at_matched_kl(rows: Sequence[Row], settings: InferenceSettings, seed: int) -> dict[str, dict[str, float]]:
    """Each transform's win rates in the lab where its path last stood at the smallest of the arms' final KLs."""
    own = {r.method: r for r in rows if r.seed == seed and r.method != BONBON}
    if len(own) < len(settings.lab):
        return {}
    kl = min(row.kl_C[-1] for row in own.values())
    found = {}
    for name, row in own.items():
        values = {}
        for metric in METRICS:
            path = np.array(row.extra[metric], dtype=float)[:, None]
            place = Frontier(("mean",), np.array(row.step_C), np.array(row.kl_C), path)
            values[metric] = float(place.at_kl(kl)[0])
        found[name] = {"kl": kl, **values}
    return found


def claims(matched: dict[int, dict[str, dict[str, float]]], settings: InferenceSettings) -> list[Claim]:
    """Each metric is won by the transform that suits it, at matched KL."""
    names = [name for name, _, _ in settings.lab]
    found = []
    for metric, best in SUITS.items():
        title = TITLES[metric].format(n=settings.n)
        for other in names:
            if other == best or best not in names:
                continue
            values = tuple(m[best][metric] - m[other][metric] if m else math.nan for m in matched.values())
            found.append(Claim(metric, f"{title}: `{best}` wins more than `{other}` at matched KL", +1, values))
    return found


def _part_a(
    s: InferenceSettings, forms: Table, exact: Table, bounds: Sequence[dict[str, float]], machine: Any, *, quick: bool
) -> list[str]:
    titles = [TITLES[m].format(n=s.n) for m in METRICS]
    lines = [
        "# Which transform for which way of sampling\n",
        *([conduct.SMOKE_TEST] if quick else []),
        "A policy that is used as the best (or the worst) of several samples should be trained on another transform of the "
        f"calibrated reward than one that is sampled once (arXiv 2412.19792). {conduct.FIXED}\n",
        conduct.measured_on(machine),
        "## A. Exact\n",
        f"Win rates in percent against the reference used the same way, at equal KL: the closed form for continuous rewards, in "
        f"brackets the exact sum for tabular policies of {s.outcomes} responses, mean of {s.seeds} random references. Bold: the "
        "winner of the column at that KL.\n",
        f"| KL, nats | transform | {' | '.join(titles)} |",
        "|---|---|---|---|---|",
    ]
    for form, table in zip(forms, exact, strict=True):
        won = winners(forms, float(form["kl"]))
        cells = []
        for metric in METRICS:
            text = f"{100 * float(form[metric]):.1f}"
            shown = f"**{text}**" if won[metric] == form["transform"] else text
            cells.append(f"{shown} [{100 * float(table[metric]):.1f}]")
        t = f", t = {form['t']:g}" if form["transform"] in ("bon", "won") else ""
        lines.append(f"| {form['kl']:g} | {form['transform']}{t} | {' | '.join(cells)} |")
    agreed = sum(winners(forms, kl)[m] == winners(exact, kl)[m] for kl in s.kl for m in METRICS)
    suited = sum(winners(forms, kl)[m] == SUITS[m] for kl in s.kl for m in METRICS)
    mean = {k: float(np.mean([b[k] for b in bounds])) for k in bounds[0]}
    return [
        *lines,
        f"\nThe transform that theory names wins in {suited} of {len(s.kl) * len(METRICS)} cells of the closed form; the tabular "
        f"policies have the same winner in {agreed}. Best of {s.n} itself wins {100 * mean['win']:.1f} % at KL {mean['kl']:.3f} "
        f"there; for continuous rewards {100 * mean['win_bound']:.1f} % at {mean['kl_bound']:.3f}, which bound them "
        "(arXiv 2406.00832).\n",
    ]


def _part_b(
    s: InferenceSettings, matched: dict[int, dict[str, dict[str, float]]], found: Sequence[verdicts.Finding]
) -> list[str]:
    means = {m: TITLES[m].format(n=s.n) for m in METRICS}
    lines = [
        "## B. In the lab\n",
        f"RLOO on `ctrl:lab` under each transform and BoNBoN on {s.n} samples of the start; {s.seeds} seeds, "
        f"{s.training.steps} steps of {s.training.batch_size} prompts. Win rates by gold from {s.samples} samples a side on "
        f"{s.eval_prompts} held-out prompts, unbiased for subsets of {s.n}. Matched KL: the smallest of the arms' final KLs in a "
        f"seed. {verdicts.counted(found)}, of {len(found)} claims.\n",
        "![Win rates against KL](inference_aware.svg)\n",
        f"| transform | KL | {' | '.join(means.values())} |",
        "|---|---|---|---|---|",
    ]
    known = [m for m in matched.values() if m]
    for name in known[0] if known else ():
        cells = [f"{np.mean([m[name]['kl'] for m in known]):.2f}"]
        cells += [f"{100 * np.mean([m[name][k] for m in known]):.1f}" for k in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        *verdicts.table(found),
        "\nStudent's intervals over seeds, widened for the claims about one metric. Differences are in percentage points.\n",
    ]


def _draw(rows: Sequence[Row], settings: InferenceSettings, root: Path) -> None:
    plt = conduct.pyplot()
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2))
    furthest = max((max(r.kl_C) for r in rows), default=1.0)
    kl = np.linspace(0.02, max(min(furthest, 4.0), 0.1), 24)
    for panel, metric in zip(panels, METRICS, strict=True):
        name = SUITS[metric]
        t = next(t for transform, t in settings.transforms if transform == name)
        panel.plot(
            kl, 100 * curve(name, t, kl, metric, settings.n), color="#999999", lw=1.4, label=f"closed form, {name}"
        )
        if metric == "win":
            numbers = [n for n in (2, 4, 8, 16) if kl_bound(n) <= kl[-1]]
            at = [kl_bound(n) for n in numbers], [100 * win_rate_bound(n) for n in numbers]
            panel.plot(*at, "x", color="#666666", label="best of 2, 4, ...")
        seen: set[str] = set()
        for row in rows:
            arm = row.method
            label = None if arm in seen else arm
            seen.add(arm)
            panel.plot(
                row.kl_C, [100 * v for v in row.extra[metric]], "o-", ms=2.5, lw=0.9, color=COLOURS[arm], label=label
            )
        panel.axhline(50, color="#999999", lw=0.8, ls=":")
        panel.set(title=TITLES[metric].format(n=settings.n), xlabel="KL to the start, nats")
    panels[0].set_ylabel("gold win rate against the start used the same way, %")
    panels[0].legend(frameon=False, fontsize=7)
    conduct.save_figure(figure, root / "inference_aware.svg")
