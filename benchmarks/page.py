"""results.json and the generated section of docs/benchmarks.md: `python -m benchmarks.page` writes it again from the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.rows import BY_NAME, ROWS, Row, excess_gb, memory, speed

ROOT = Path(__file__).parents[1]
START = "<!-- bench: written by `make bench`; change benchmarks/page.py, not this -->"
END = "<!-- /bench -->"
Entries = dict[str, dict[str, Any]]


def write(entries: Entries, root: Path = ROOT) -> None:
    """Merge the entries into results.json and write the section and the figures again."""
    file = root / "benchmarks" / "results.json"
    before: Entries = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    kept = {n: e for n, e in before.items() if n in BY_NAME and "measured" in e}
    both = {row.name: {**kept, **entries}[row.name] for row in ROWS if row.name in {**kept, **entries}}
    file.write_text(json.dumps(both, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    publish(both, root)


def publish(entries: Entries, root: Path = ROOT) -> None:
    """Write the section between its marks (at the end of the page where it has none) and the figures."""
    doc = root / "docs" / "benchmarks.md"
    text = doc.read_text(encoding="utf-8")
    body = f"{START}\n\n{section(entries, root / 'docs')}\n{END}"
    if START in text:
        head, _, rest = text.partition(START)
        text = head + body + rest.partition(END)[2]
    else:
        text = text.rstrip() + "\n\n" + body + "\n"
    doc.write_text(text, encoding="utf-8")


def section(entries: Entries, figures: Path) -> str:
    """Markdown: the table, what the figures behind it were, the plots, and a profile for every row that is missed."""
    parts = [_machines(entries), table(entries), _sides(entries)]
    if "sharing" in entries:
        cells = entries["sharing"]["sides"]["ours_sharing"]["cells"]
        plot_sharing(cells, figures / "bench_sharing.svg")
        parts.append("![Gain of sharing over k and the prompt's share, beside its bound U/S](bench_sharing.svg)")
        parts.append(_sharing_table(cells))
    if "growth_memory" in entries and "growth_prepare" in entries:
        parts.append(_growth_table(entries))
    missed = [e for e in entries.items() if not e[1]["met"]]
    parts += [_missed(BY_NAME[name], entry) for name, entry in missed]
    return "\n\n".join(parts) + "\n"


def _machines(entries: Entries) -> str:
    by_machine: dict[str, list[str]] = {}
    for name, entry in entries.items():
        by_machine.setdefault(entry["measured"], []).append(name)
    if len(by_machine) == 1:
        return f"Measured on {next(iter(by_machine))}; one thread a process."
    return "\n".join(
        f"- {', '.join(names)}: measured on {where}; one thread a process." for where, names in by_machine.items()
    )


def table(entries: Entries) -> str:
    """The issue's table with what was measured: a row a line."""
    lines = ["| row | measured (range) | operations | must | aim | reached |", "|---|---|---|---|---|---|"]
    for name, entry in entries.items():
        row = BY_NAME[name]
        spread = f"{_shown(row, entry['ratio_min'])}–{_shown(row, entry['ratio_max'])}"
        flops = f"{entry['flop_ratio']:.2f}×" if "flop_ratio" in entry else "–"
        verdict = "no"
        if entry["met"]:
            verdict = "aim" if row.aim is not None and row.met(entry["ratio_median"], row.aim) else "must"
        sign = "≤ " if row.less else "≥ "
        aim = "–" if row.aim is None else sign + _shown(row, row.aim)
        lines.append(
            f"| {row.title} | **{_shown(row, entry['ratio_median'])}** ({spread}) | {flops} "
            f"| {sign}{_shown(row, row.must)} | {aim} | {verdict} |"
        )
    return "\n".join(lines)


def _shown(row: Row, value: float) -> str:
    if row.unit == "%":
        return f"{value:.1%}".replace("%", " %")
    if row.unit == "s":
        return f"{value:.2f} s"
    return f"{value:.2f}×"


def _sides(entries: Entries) -> str:
    """Rates and memory of both sides of every row that compares two."""
    lines = [
        "Medians over the rounds. *operations* above: the peer's counted operations a unit over ours; the rest of a ratio is rate.",
        "",
        "| row | peer, a second | ours, a second | peer, GiB | ours, GiB | beyond imports, weights, optimiser: peer, ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        row = BY_NAME[name]
        if row.peer is None or row.compare not in (speed, memory) or name.startswith("growth"):
            continue
        peer, ours = entry["sides"][row.peer], entry["sides"][row.ours]
        rates = [f"{s['units'] / s['seconds']:.2f}" for s in (peer, ours)]
        beyond = ", ".join(f"{excess_gb(s):.2f}" for s in (peer, ours)) if row.compare is memory else "–"
        lines.append(f"| {name} | {rates[0]} | {rates[1]} | {peer['peak_gb']:.2f} | {ours['peak_gb']:.2f} | {beyond} |")
    return "\n".join(lines)


def _sharing_table(cells: list[dict[str, Any]]) -> str:
    import statistics

    lines = ["| k | prompt's share | gain | bound U/S | gain over bound (rounds) |", "|---|---|---|---|---|"]
    for c in cells:
        rounds = ", ".join(f"{e:.2f}" for e in c["efficiency"])
        lines.append(
            f"| {c['k']} | {c['share']} | {c['gain']:.2f}× | {c['bound']:.2f}× "
            f"| {statistics.median(c['efficiency']):.1%} ({rounds}) |".replace("%", " %")
        )
    return "\n".join(lines)


def _growth_table(entries: Entries) -> str:
    sides = {**entries["growth_memory"]["sides"], **entries["growth_prepare"]["sides"]}
    lines = ["| groups | to the first step, s | a step, ms | peak memory, GiB |", "|---|---|---|---|"]
    for s in sorted(sides.values(), key=lambda s: s["units"]):
        lines.append(f"| {s['units']:,.0f} | {s['prepare']:.2f} | {1000 * s['step']:.1f} | {s['peak_gb']:.2f} |")
    return "\n".join(lines)


def _missed(row: Row, entry: dict[str, Any]) -> str:
    """Why a row is missed, as far as a measurement tells."""
    head = f"**Missed: {row.title}** ({_shown(row, entry['ratio_median'])}, must {_shown(row, row.must)})."
    if "profile" in entry:
        return f"{head} Where our side's time goes:\n\n{entry['profile']}"
    if row.compare is memory:
        ours = entry["sides"][row.ours]
        return f"{head} Ours holds {ours['peak_gb']:.2f} GiB at its peak, {ours['imports_gb']:.2f} of it imports."
    return head


def plot_sharing(cells: list[dict[str, Any]], file: Path) -> None:
    """Gain against the prompt's share, a colour a k; the bound as a thin line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for colour, k in zip(("#0072b2", "#009e73", "#d55e00", "#cc79a7"), sorted({c["k"] for c in cells}), strict=False):
        of_k = [c for c in cells if c["k"] == k]
        shares = [c["share"] for c in of_k]
        axes.plot(shares, [c["bound"] for c in of_k], color=colour, linewidth=0.8, linestyle="--")
        axes.plot(shares, [c["gain"] for c in of_k], color=colour, marker="o", linewidth=0, label=f"k = {k}")
    axes.set(xlabel="prompt's share of prompt and response", ylabel="unshared time / shared time", yscale="log")
    axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.legend(title="dashed: bound U/S", frameon=False)
    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "trueline"}):
        figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    publish(json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
