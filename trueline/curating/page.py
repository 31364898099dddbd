"""What a person reads of a curation: what it found, what went and why with examples, and how before differs from after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueline import __version__
from trueline.catalogue import entry
from trueline.curate.contract import Scored
from trueline.curating.selecting import Selection
from trueline.measuring.page import table
from trueline.report import svg
from trueline.report.build import write

if TYPE_CHECKING:
    from trueline.curating import Request
    from trueline.curating.pool import FilePool

BINS = 40
SHOWN = 700  # characters of an example
EXAMPLE_REASONS = 12

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #16191d; --quiet: #59626c; --line: #dfe3e8; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #131619; --ink: #e6e9ec; --quiet: #9aa4ae; --line: #2c3238; }} }}
body {{ font: 1rem/1.55 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  font-variant-numeric: tabular-nums; background: var(--page); color: var(--ink); }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }}
h2 {{ margin-top: 2.5rem; }}
.quiet {{ color: var(--quiet); }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; margin: .3rem 0 1rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1.5rem; }}
svg {{ width: 100%; height: auto; }} svg text {{ font-size: 13px; fill: var(--ink); }}
svg .tick, svg .unit {{ fill: var(--quiet); }} svg .grid {{ stroke: var(--line); fill: none; }}
svg .axis {{ stroke: var(--quiet); fill: none; }}
svg .before {{ fill: var(--quiet); fill-opacity: .25; }} svg .after {{ fill: #0072B2; fill-opacity: .55; }}
.key {{ display: inline-block; width: 1em; height: 1em; vertical-align: -.1em; margin-right: .4em; }}
.key.before {{ background: var(--quiet); opacity: .35; }} .key.after {{ background: #0072B2; opacity: .7; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{lead}</p>
{notes}
{figures}
{sections}
<details><summary>How the method is defined</summary><pre>{doc}</pre></details>
<details><summary>Manifest: inputs, options, versions, licences and origins</summary><pre>{manifest}</pre></details>
<p class="quiet">Trueline {version}</p>
</body>
</html>
"""


def save(html: str, folder: Path) -> Path:
    return write(html, folder / "report.html")


def of_selection(request: Request, pool: FilePool, scored: Scored, selection: Selection, taken: NDArray[np.bool_], examples: dict[str, list[dict[str, Any]]], document: dict[str, Any]) -> str:  # fmt: skip
    """The page of engine one."""
    counts = document["counts"]
    share = counts["taken"] / counts["read"]
    lead = (
        f"{counts['taken']:,} of {counts['read']:,} rows of {', '.join(f.name for f in pool.files)} were taken "
        f"({share:.1%}) by {request.name.replace('_', ' ')}."
    )
    drawn = [("score", scored.score_N), ("characters of the better response", pool.fact("chosen"))]
    if (pool.fact("rejected") >= 0).any():
        drawn.append(("characters of the worse response", pool.fact("rejected")))
    parts = [figure for name, values in drawn if (figure := histogram(name, values, taken))]
    key = '<p class="quiet"><span class="key before"></span>all usable rows <span class="key after"></span>taken</p>'
    figures = f'<h2>Before and after</h2>{key}<div class="figures">{"".join(parts)}</div>' if parts else ""
    sections = [
        reasons_section(document["left_out"], examples, counts["read"]),
        f"<h2>Taken: two of them</h2>{texts(examples.get('taken', []))}",
        _numbers(pool, scored, taken),
        languages(pool, taken),
    ]
    return render(request.name, lead, document, figures, sections)


def render(name: str, lead: str, document: dict[str, Any], figures: str, sections: Sequence[str]) -> str:
    described = entry("curate", name)
    notes = "".join(f"<li>{escape(note)}</li>" for note in document["notes"])
    return PAGE.format(
        title=escape(f"{name.replace('_', ' ')}: {described.summary}"),
        lead=escape(lead),
        notes=f"<ul>{notes}</ul>" if notes else "",
        figures=figures,
        sections="\n".join(sections),
        doc=escape(described.doc),
        manifest=escape(json.dumps(document, indent=1, ensure_ascii=False, default=str)),
        version=__version__,
    )


def reasons_section(left_out: dict[str, int], examples: dict[str, list[dict[str, Any]]], total: int) -> str:
    if not left_out:
        return "<h2>Left out</h2><p>Nothing.</p>"
    rows = [(reason, f"{count:,}", f"{count / total:.1%}") for reason, count in left_out.items()]
    shown = "".join(
        f"<h3>{escape(reason)}</h3>{texts(examples[reason])}" for reason in list(left_out)[:EXAMPLE_REASONS] if reason in examples
    )  # fmt: skip
    return f"<h2>Left out, and why</h2>{table(('Reason', 'Rows', 'Of all read'), rows)}{shown}"


def texts(examples: Sequence[dict[str, Any]]) -> str:
    parts = []
    for found in examples:
        score = "" if found["score"] is None else f", score {found['score']:.4g}"
        score += "".join(
            f", {name} {value}" for name, value in found.get("columns", {}).items() if value not in ("", None)
        )
        parts.append(f'<p class="quiet">{escape(found["origin"] + score)}</p><pre>{escape(_brief(found["row"]))}</pre>')
    return "".join(parts)


def _brief(row: dict[str, Any]) -> str:
    room = max(120, SHOWN // max(1, len(row)))
    lines = []
    for column, value in row.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        text = text if len(text) <= room else f"{text[: room // 2]} … {text[-room // 2 :]}"
        lines.append(f"{column}: {text}")
    return "\n".join(lines)


def histogram(name: str, values_N: NDArray[Any], taken: NDArray[np.bool_]) -> str:
    """Shares by bin, all rows behind those taken; the outer hundredths are put into the outermost bins."""
    values = np.asarray(values_N, dtype=np.float64)
    known = np.isfinite(values)
    if known.sum() < 2 or np.ptp(values[known]) == 0:
        return ""
    low, high = np.quantile(values[known], [0.005, 0.995])
    if low == high:
        low, high = values[known].min(), values[known].max()
    edges = np.linspace(low, high, BINS + 1)
    shares = []
    for which in (known, known & taken):
        counted, _ = np.histogram(np.clip(values[which], low, high), edges)
        shares.append(counted / max(1, which.sum()))
    width, height = 420, 240
    frame = svg.Frame(svg.Scale(float(low), float(high), 54, width - 12), svg.Scale(0.0, float(max(map(np.max, shares))) * 1.08, height - 48, 26), width, height)  # fmt: skip
    bars = []
    for style, share in zip(("before", "after"), shares, strict=True):
        for left, right, part in zip(edges[:-1], edges[1:], share, strict=True):
            if part:
                x, y = frame.x(float(left)), frame.y(float(part))
                bars.append(f'<rect class="{style}" x="{svg.n(x)}" y="{svg.n(y)}" width="{svg.n(frame.x(float(right)) - x)}" height="{svg.n(frame.bottom - y)}"/>')  # fmt: skip
    medians = [float(np.median(values[w])) if w.any() else float("nan") for w in (known, known & taken)]
    said = f"Median {medians[0]:.4g} of all usable rows, {medians[1]:.4g} of those taken."
    body = frame.axes(x_ticks=4, y_ticks=4, x_label=name, y_label="share of rows") + "".join(bars)
    drawing = svg.document(
        width, height, body, title=name, description=said, css="figure", identity=name.replace(" ", "-")
    )
    return f"<figure>{drawing}<figcaption>{escape(said)}</figcaption></figure>"


def _numbers(pool: FilePool, scored: Scored, taken: NDArray[np.bool_]) -> str:
    """Does the score stand for length? Rank correlations on all rows, the taken and the dropped."""
    rows = []
    known = np.isfinite(scored.score_N)
    sides = (("better response", pool.fact("chosen")), ("worse response", pool.fact("rejected")))
    lengths = [(f"length of the {side}", values, values >= 0) for side, values in sides]
    gap = sides[0][1].astype(np.int64) - sides[1][1]
    lengths.append(("better minus worse", gap, sides[1][1] >= 0))
    for name, values, there in lengths:
        cells = [
            rank_correlation(scored.score_N, values, known & there & which)
            for which in (np.ones_like(taken), taken, ~taken)
        ]
        if any(cells):
            rows.append((name, *cells))
    if not rows:
        return ""
    top = ("Rank correlation of the score with", "All", "Taken", "Left out")
    return f"<h2>Does the score stand for length?</h2>{table(top, rows)}"


def rank_correlation(a: NDArray[Any], b: NDArray[Any], which: NDArray[np.bool_]) -> str:
    if which.sum() < 3 or np.ptp(a[which]) == 0 or np.ptp(b[which]) == 0:
        return ""
    from scipy.stats import spearmanr

    return f"{float(spearmanr(a[which], b[which]).statistic):+.2f}"


def languages(pool: FilePool, taken: NDArray[np.bool_]) -> str:
    code = pool.fact("language")
    before = np.bincount(code, minlength=len(pool.languages))
    after = np.bincount(code[taken], minlength=len(pool.languages))
    order = np.argsort(-before)
    if len(order) < 2:
        return ""
    total = max(1, int(after.sum()))
    rows = [(pool.languages[i], f"{before[i] / before.sum():.1%}", f"{after[i] / total:.1%}") for i in order[:12]]
    return f"<h2>Languages (a rough count)</h2>{table(('Language', 'Before', 'After'), rows)}"
