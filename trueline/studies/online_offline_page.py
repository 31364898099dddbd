"""The page of the online-offline study: the frontier, a section with a figure and verdicts for each hypothesis, tables.

Reads the rows and the small files beside them, nothing else. The same numbers go to `online_offline.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.environment import environment
from trueline.errors import TruelineError
from trueline.jobs import Failure
from trueline.registry import load
from trueline.studies import conduct
from trueline.studies import findings as verdicts
from trueline.studies.findings import Finding
from trueline.studies.online_offline import GOLD, OFFLINE, ONLINE, classification_file, window_name
from trueline.studies.online_offline_data import PAIRS
from trueline.studies.online_offline_findings import (
    STREAM,
    Runs,
    Sums,
    accuracy_and_win,
    exact,
    findings,
    inversion,
    points,
    summaries,
)
from trueline.studies.online_offline_subject import Own
from trueline.studies.rows import read_rows
from trueline.studies.settings import OnlineOfflineSettings
from trueline.wholefile import write_json

COLOURS = {ONLINE: "#D55E00", GOLD: "#009E73", OFFLINE: "#0072B2", "proxy": "#000000"}
PROXY_ONLINE, GOLD_ONLINE, POOLED = "online, judged by the proxy", "online, judged by gold", "offline, pooled"

# Hypothesis, its title, what was done.
SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("headline", "Online against offline", "Gold win rate against the golden policy's samples at the KL to the start. Filled marks: no other checkpoint of that method wins as much at no more KL."),
    ("coverage", "H1: is it coverage?", "The same offline trainer on the online run's own stream and labels: in order, shuffled within windows of steps, and shuffled throughout. If coverage were all, order would not matter."),
    ("quality", "H2: is it the quality of the data?", "Offline, at the online run's setting, on golden-labelled pairs written by better and better policies: the start, the online run at step {mid}, its end, and the online stream itself."),
    ("classification", "H3: do better classifiers write better?", "Left: share of pairs told apart as gold does, along the online stream. Right: accuracy on held-out golden pairs against win rate, one mark a checkpoint."),
    ("contrast", "H4: is it the contrastive loss?", "Best of two: the likelihood of the better response alone, online and offline."),
    ("scale", "H5: does size close the gap?", "Policies of three sizes with the same data, golden judge and proxy; offline pooled over the learning rates at the online run's beta."),
)  # fmt: skip


def write(
    root: Path, settings: OnlineOfflineSettings, failures: Sequence[Failure], *, own: Own | None, quick: bool
) -> Path:
    """Write online_offline.md, .json and the figures; returns the page. Raises as `study` says."""
    runs = load_runs(root, settings)
    sums = summaries(runs)
    found = findings(runs, sums)
    replayed = exact(runs)
    machine = environment()
    content = {
        "settings": json.loads((root / "settings.json").read_text(encoding="utf-8")),
        "seeds": list(runs.seeds),
        "environment": machine,
        "summaries": sums,
        "replay_in_order_is_the_online_run": replayed,
        "claims": [f.to_json() for f in found],
        "inversion": inversion(found),
        "checkpoints": [_checkpoints(r) for r in runs.rows],
        "classification": dict(runs.classified),
        "failures": [vars(f) for f in failures],
    }
    write_json(root / "online_offline.json", content)
    drawn = draw(runs, sums, root)
    page = root / "online_offline.md"
    parts = _opening(runs, machine, own=own, quick=quick) + _summary(runs, sums, found)
    for name, title, text in SECTIONS:
        parts += _section(name, title, text.format(mid=settings.mid), found, drawn, replayed)
    parts += ["\n## Not finished\n", *(f"- `{f.name}`: {f.reason}" for f in failures)] if failures else []
    page.write_text("\n".join([*parts, ""]), encoding="utf-8")
    if machine.get("gpu") in (None, "", "none") and not all(replayed.values()):
        raise TruelineError(
            f"The page is in '{page}', but the stream replayed in order was not the online run bit for bit in seeds "
            f"{[s for s, same in replayed.items() if not same]}. On a CPU it must be: this is a fault of the trainer."
        )
    return page


def load_runs(root: Path, settings: OnlineOfflineSettings) -> Runs:
    """The rows of the seeds that were asked for."""
    seeds = tuple(range(settings.seeds))
    rows = [r for r in read_rows(root / "rows") if r.seed in seeds]
    files = {seed: classification_file(root, seed) for seed in seeds}
    classified = {s: json.loads(f.read_text(encoding="utf-8")) for s, f in files.items() if f.exists()}
    return Runs(rows, seeds, classified, settings)


def _checkpoints(row: Any) -> dict[str, Any]:
    win = [float(w.mean()) for w in row.wins_CP]
    return {"part": row.method, "arm": row.arm, "seed": row.seed, "step": row.step_C, "kl": row.kl_C, "win": win}


def _opening(runs: Runs, machine: dict[str, Any], *, own: Own | None, quick: bool) -> list[str]:
    s = runs.settings
    where = f"`{own.model}` with `{own.golden}` as gold" if own else "the lab, where gold is exact"
    rates, betas = (", ".join(f"{x:g}" for x in v) for v in (s.learning_rates, s.betas))
    return [
        "# Online against offline alignment\n",
        *([conduct.SMOKE_TEST] if quick else []),
        f"The protocol of arXiv 2405.08448 in {where}: {len(runs.seeds)} seeds, IPO, {s.training.steps} steps of "
        f"{s.training.batch_size} pairs. Online has one setting (learning rate {s.training.learning_rate:g}, beta "
        f"{s.beta:g}); offline pools learning rates {rates} and betas {betas}, {s.offline_factor} times the steps, and every "
        f"checkpoint. Win rates are by gold on {s.eval_prompts} held-out prompts against samples of one fixed policy that was "
        f"trained online against gold from seed {s.golden_seed}. {conduct.FIXED} Every run's configuration is in its row.\n",
        conduct.measured_on(machine),
    ]


def _summary(runs: Runs, sums: Sums, found: Sequence[Finding]) -> list[str]:
    lines = [
        f"{verdicts.counted(found)}, of {len(found)} claims. The paper's inversion, that offline classifies better and yet "
        f"wins less: **{inversion(found)}**.\n",
        "![Win rate against KL](frontier.svg)\n",
        "90 % quantile of the gold win rate over checkpoints and settings, in percent, mean over seeds, and its ratio to "
        "online judged by the proxy.\n",
        f"| method | {' | '.join(f'seed {s}' for s in runs.seeds)} | mean | of online |",
        "|---" * (len(runs.seeds) + 3) + "|",
    ]
    base = _mean(sums[PROXY_ONLINE])
    for name, values in sums.items():
        mean = _mean(values)
        cells = [_percent(values[s]) for s in runs.seeds]
        ratio = f"{mean / base:.2f}" if base and math.isfinite(mean) else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | **{_percent(mean)}** | {ratio} |")
    return [*lines, ""]


def _mean(values: dict[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _section(
    name: str, title: str, text: str, found: Sequence[Finding], drawn: set[str], replayed: dict[int, bool]
) -> list[str]:
    own = [f for f in found if f.claim.hypothesis == name]
    lines = [f"## {title}\n", text + "\n"]
    if not own:
        return [*lines, "Not run: no model of another size was given (`--scale`).\n"]
    if name == "coverage":
        same = sum(replayed.values())
        lines.append(
            f"Replayed in order, {same} of {len(replayed)} seeds gave the online run bit for bit: weights, the loss and gradient "
            f"norm of every step, KL and wins.{'' if same == len(replayed) else ' **The others did not: a fault.**'}\n"
        )
    if name in drawn and name != "headline":
        lines.append(f"![{title}]({name}.svg)\n")
    lines += verdicts.table(own)
    widened = f"Student's intervals over seeds at {100 * own[0].level:.1f} %, widened for the {len(own)} claims here."
    return [*lines, f"\n{widened} Differences of win rates and accuracies are in percentage points.\n"]


# ---- figures --------------------------------------------------------------------------------------------------------


def draw(runs: Runs, sums: Sums, root: Path) -> set[str]:
    """Every figure for which there are rows; returns the hypotheses drawn."""
    plt = conduct.pyplot()
    drawn = {"headline"}
    _frontier(runs, root / "frontier.svg", plt)
    windows = [f"replayed {window_name(w)}" for w in (0, *runs.settings.windows)]
    dots = {
        "coverage": [PROXY_ONLINE, *windows, POOLED],
        "quality": [PROXY_ONLINE, *(f"offline on {n}" for n in (*PAIRS, STREAM)), POOLED],
        "contrast": ["best of two, online", "best of two, offline", PROXY_ONLINE, POOLED],
        "scale": [f"{z}, {kind}" for z in _by_size(runs) for kind in (ONLINE, OFFLINE)],
    }
    for name, wanted in dots.items():
        if wanted and any(math.isfinite(v) for n in wanted for v in sums[n].values()):
            _dots({n: sums[n] for n in wanted}, root / f"{name}.svg", plt)
            drawn.add(name)
    _classification(runs, root / "classification.svg", plt)
    return drawn | {"classification"}


def _by_size(runs: Runs) -> list[str]:
    """The base size stands second, between the smaller and the larger one that the lab adds."""
    return [*runs.sizes[:1], "base", *runs.sizes[1:]] if runs.sizes else []


def _frontier(runs: Runs, target: Path, plt: Any) -> None:
    figure, panel = plt.subplots(figsize=(8, 4.8))
    rows = {
        OFFLINE: [r for s in runs.seeds for r in runs.of("headline", OFFLINE, s)],
        ONLINE: [r for s in runs.seeds for r in runs.named("headline", ONLINE, s)],
        GOLD: [r for s in runs.seeds for r in runs.named("headline", GOLD, s)],
    }
    names = {OFFLINE: POOLED, ONLINE: PROXY_ONLINE, GOLD: GOLD_ONLINE}
    for kind, own in rows.items():
        kl, win, run = points(own)
        if not len(kl):
            continue
        items = load("measure", "kl_frontier").call(kl, win, run)[0].items
        on = np.array([item["on_frontier"] for item in items])
        panel.plot(kl, 100 * win, "o", ms=3.5, mfc="none", mew=0.7, color=COLOURS[kind], alpha=0.6)
        order = np.argsort(kl[on])
        x, y = kl[on][order], 100 * win[on][order]
        panel.plot(x, y, "o-", ms=4.5, lw=1.3, color=COLOURS[kind], label=names[kind])
    panel.set_xscale("log")
    panel.set(xlabel="KL to the start, nats a reply (logarithmic)", ylabel="gold win rate against the golden policy, %")
    panel.legend(frameon=False)
    conduct.save_figure(figure, target)


def _dots(values: Sums, target: Path, plt: Any) -> None:
    """A row a method: a dot a seed and the mean."""
    figure, panel = plt.subplots(figsize=(7.5, 0.9 + 0.36 * len(values)))
    for place, (name, by_seed) in enumerate(reversed(values.items())):
        numbers = [100 * v for v in by_seed.values()]
        kind = OFFLINE if OFFLINE in name else ONLINE
        panel.plot(numbers, [place] * len(numbers), "o", ms=4, mfc="none", color=COLOURS[kind])
        panel.plot([np.mean(numbers)], [place], "|", ms=14, mew=2, color=COLOURS[kind])
    panel.set_yticks(range(len(values)), list(reversed(values)))
    panel.set(xlabel="gold win rate, 90 % quantile, % (ring: a seed, bar: their mean)")
    panel.margins(y=0.12)
    panel.grid(axis="x", color="#dddddd", lw=0.6)
    conduct.save_figure(figure, target)


def _classification(runs: Runs, target: Path, plt: Any) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for name, colour in (("proxy", COLOURS["proxy"]), (ONLINE, COLOURS[ONLINE]), (OFFLINE, COLOURS[OFFLINE])):
        for i, table in enumerate(runs.classified.values()):
            style = {"color": colour, "lw": 0.9, "alpha": 0.8, "label": name if i == 0 else None}
            left.plot(table["step"], [100 * v for v in table[name]], **style)
    left.axhline(50, color="#999999", lw=0.8, ls=":")
    left.set(xlabel="step of the online stream", ylabel="pairs told apart as gold does, %")
    if runs.classified:
        left.legend(frameon=False)
    for kind in (OFFLINE, ONLINE, GOLD):
        own = [r for r in runs.rows if r.method == "headline" and _kind(r.arm) == kind]
        percent = 100 * accuracy_and_win(own)
        right.plot(percent[:, 0], percent[:, 1], "o", ms=3.5, mfc="none", color=COLOURS[kind], label=kind)
    right.set(xlabel="accuracy on held-out golden pairs, %", ylabel="gold win rate, %")
    right.legend(frameon=False)
    conduct.save_figure(figure, target)


def _kind(arm: str) -> str:
    return arm if arm in (ONLINE, GOLD) else OFFLINE
