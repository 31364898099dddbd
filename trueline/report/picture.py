"""The frontier alone, as one SVG file that stands by itself: for a README or a slide.

It follows the viewer's light or dark scheme where the viewer tells it (browsers, GitHub).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trueline.errors import TruelineError
from trueline.report import figures
from trueline.report.outcome import verdict
from trueline.report.record import Record, load_all

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif'


def frontier_svg(runs: Sequence[Record | str | os.PathLike[str]]) -> str:
    """The frontier of comparable runs (folders, or records already loaded) as a standalone SVG document."""
    records = [r for r in runs if isinstance(r, Record)] or load_all(
        [Path(r) for r in runs if not isinstance(r, Record)]
    )
    found = verdict(records)
    lines = figures.paths(found.comparable[0], found.judge, records) if found.judge and found.comparable else []
    if not lines:
        raise TruelineError(
            "There is no frontier to draw: no run measured both KL and a win rate. Evaluate with --eval-steps and --eval-feedback."
        )
    if len(found.comparable) > 1:
        raise TruelineError(f"These runs do not share one axis. {' '.join(found.refusals)}")
    figure = figures.frontier(lines, found.judge or "", found.differences, "frontier")
    drawing = figure.drawings[0]
    head, _, body = drawing.partition(">")
    return f'{head} width="1040" height="500"><style>{_css()}</style><rect width="100%" height="100%" class="paper"/>{body}\n'


def _css() -> str:
    """The page's rules for figures; `:root` in an SVG file is the drawing itself."""
    css = (Path(__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    colours = css[css.index(":root") : css.index("* {")]
    rules = css[css.index(".figure text") : css.index(".run-numbers {")]
    return f"{colours}{rules}.figure{{font-family:{FONT}}}.paper{{fill:var(--page)}}.path{{stroke-width:2.25}}".replace(
        "<", ""
    )
