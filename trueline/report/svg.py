"""SVG by hand: scales, axes, marks and labels. Knows nothing of runs except their place in the palette.

Colours are CSS variables (`--run`, `--ink`, `--quiet`, `--line`, `--page`), so that one drawing serves light, dark and
print. Coordinates are pixels of the view box, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

# Okabe and Ito's palette without black and yellow: yellow cannot be seen on white, black is the ink.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "pentagon", "star")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
LABEL_HEIGHT = 15.0
CHARACTER = 7.0  # mean width of a character at the figures' 13 px, for layout only


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> str:
    """Runs that share a colour differ in line style and in marker."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


def marker_name(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


@dataclass(frozen=True)
class Scale:
    """A linear map from data [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, *, pad: float = 0.06, at_least: Sequence[float] = ()
    ) -> Scale:
        """A scale that holds all finite values, with some air; `at_least` are values it must show as well."""
        finite = [v for v in (*values, *at_least) if math.isfinite(v)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
            low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
        air = pad * (high - low)
        return cls(low - air, high + air, start, end)

    def ticks(self, wanted: int) -> list[float]:
        """Round values within the scale, about as many as wanted."""
        raw = (self.high - self.low) / max(wanted, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.10g}".replace("-", "−")


def n(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, *, anchor: str = "start", style: str = "", angle: int = 0) -> str:
    turn = f' transform="rotate({angle} {n(x)} {n(y)})"' if angle else ""
    css = f' class="{style}"' if style else ""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{n(x)}" y="{n(y)}"{where}{css}{turn}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<path class="{style}" d="M{n(x1)} {n(y1)}L{n(x2)} {n(y2)}"/>'


def polyline(points: Sequence[tuple[float, float]], style: str, *, dashes: str = "none") -> str:
    """A line through points in pixels; it breaks where a coordinate is not finite."""
    parts, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{n(x)} {n(y)}")
        pen = "L"
    stroke = "" if dashes == "none" else f' stroke-dasharray="{dashes}"'
    return f'<path class="{style}" d="{"".join(parts)}"{stroke}/>' if parts else ""


def band(points: Sequence[tuple[float, float, float]], style: str) -> str:
    """The area between low and high, points (x, y_low, y_high) in pixels."""
    finite = [p for p in points if all(map(math.isfinite, p))]
    if len(finite) < 2:
        return ""
    upper = "L".join(f"{n(x)} {n(high)}" for x, _, high in finite)
    lower = "L".join(f"{n(x)} {n(low)}" for x, low, _ in reversed(finite))
    return f'<path class="{style}" d="M{upper}L{lower}Z"/>'


def marker(kind: str, x: float, y: float, size: float, style: str, extra: str = "") -> str:
    """A mark of equal visual weight whatever its shape; `size` is about its radius."""
    if kind == "circle":
        return f'<circle class="{style}" cx="{n(x)}" cy="{n(y)}" r="{n(size)}"{extra}/>'
    corners = {
        "square": _polygon(4, 1.2, 45),
        "diamond": _polygon(4, 1.35, 0),
        "triangle": _polygon(3, 1.45, -90),
        "down": _polygon(3, 1.45, 90),
        "pentagon": _polygon(5, 1.2, -90),
        "star": [
            (r * math.cos(a), r * math.sin(a))
            for i in range(10)
            for r, a in [(1.5 if i % 2 == 0 else 0.65, math.radians(-90 + 36 * i))]
        ],
    }[kind]
    path = "L".join(f"{n(x + size * cx)} {n(y + size * cy)}" for cx, cy in corners)
    return f'<path class="{style}" d="M{path}Z"{extra}/>'


def _polygon(sides: int, radius: float, turn: float) -> list[tuple[float, float]]:
    angles = [math.radians(turn + 360 * i / sides) for i in range(sides)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


@dataclass
class Frame:
    """The plot area and its two scales."""

    x: Scale
    y: Scale
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x.start

    @property
    def right(self) -> float:
        return self.x.end

    @property
    def top(self) -> float:
        return self.y.end

    @property
    def bottom(self) -> float:
        return self.y.start

    def axes(self, *, x_ticks: int, y_ticks: int, x_label: str = "", y_label: str = "", whole_x: bool = False) -> str:
        """Horizontal grid lines, tick texts, the x axis and both units (y above the axis, x at its right end)."""
        parts = []
        for value in self.y.ticks(y_ticks):
            y = self.y(value)
            parts.append(line(self.left, y, self.right, y, "grid"))
            parts.append(text(self.left - 8, y + 4.5, tick_text(value), anchor="end", style="tick"))
        parts.append(line(self.left, self.bottom, self.right, self.bottom, "axis"))
        for value in self.x.ticks(x_ticks):
            if whole_x and value != int(value):
                continue
            x = self.x(value)
            parts.append(line(x, self.bottom, x, self.bottom + 4, "axis"))
            parts.append(text(x, self.bottom + 19, tick_text(value), anchor="middle", style="tick"))
        if y_label:
            parts.append(text(0, self.top - 14, y_label, style="unit"))
        if x_label:
            parts.append(text(self.right, self.bottom + 38, x_label, anchor="end", style="unit"))
        return "".join(parts)


@dataclass
class Labels:
    """Labels that look for a free place near their point and give up where there is none."""

    width: float
    top: float
    bottom: float
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(
        self, x: float, y: float, content: str, *, style: str = "label", gap: float = 10.0, reach: int = 5
    ) -> str:
        """Put a label right of a point, or left of it, moved up or down by up to `reach` lines; '' if all is taken."""
        wide = CHARACTER * len(content)
        shifts = sorted((k / 2 for k in range(-2 * reach, 2 * reach + 1)), key=abs)
        for shift in shifts:
            for anchor in ("start", "end"):
                left = x + gap if anchor == "start" else x - gap - wide
                base = y + 4.5 + shift * LABEL_HEIGHT
                box = (left, base - 12, left + wide, base + 4)
                inside = box[0] >= 0 and box[2] <= self.width and box[1] >= self.top and box[3] <= self.bottom
                if inside and not any(_overlap(box, other) for other in self.taken):
                    self.taken.append(box)
                    at = left if anchor == "start" else x - gap
                    return text(at, base, content, anchor=anchor, style=style)
        return ""

    def block(self, x: float, y: float, radius: float) -> None:
        """Keep labels off a mark."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as is simple so that neighbours are `gap` apart within [low, high], order kept."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(positions[i], placed[-1] + gap if placed else low))
    overflow = placed[-1] - high if placed else 0.0
    if overflow > 0:
        for k in range(len(placed) - 1, -1, -1):
            limit = high if k == len(placed) - 1 else placed[k + 1] - gap
            placed[k] = min(placed[k], limit)
    result = [0.0] * len(positions)
    for k, i in enumerate(order):
        result[i] = placed[k]
    return result


def document(width: float, height: float, body: str, *, title: str, description: str, css: str, identity: str) -> str:
    """The svg element: an image with a name and a text alternative for those who cannot see it."""
    return (
        f'<svg class="{css}" viewBox="0 0 {n(width)} {n(height)}" role="img" '
        f'aria-labelledby="{identity}-t {identity}-d" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{identity}-t">{escape(title)}</title><desc id="{identity}-d">{escape(description)}</desc>'
        f"{body}</svg>"
    )
