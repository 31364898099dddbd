"""What happened on the way: small multiples over the training step, all runs in each.

Thin lines are the logged values, thick ones their moving mean. A value that was logged but is not finite breaks its
line and is marked with a cross on the axis.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueline.report import svg
from trueline.report.numbers import is_rate, listed, plural, short, shown, with_unit
from trueline.report.record import Point, Reading, Record, judge_name

WIDTH, HEIGHT = 360.0, 226.0
POINT_BUDGET = 40_000  # numbers embedded in one page for all panels
RAW_RUNS = 8  # with more runs the unsmoothed lines would only be a blot
NAMED_LINES = 5
MAX_CROSSES = 40


@dataclass
class Line:
    """One series of a panel. values: as logged (NaN: not finite); mean: smoothed at the same steps, or the same."""

    run: Record
    index: int
    name: str
    steps: list[int]
    values: list[float]
    mean: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    dashed: bool = False

    @property
    def smoothed(self) -> bool:
        return self.mean is not self.values


@dataclass
class Panel:
    """drawing: one SVG; data: what hovering, the table and the CSV read."""

    identity: str
    title: str
    note: str
    drawing: str
    data: dict[str, Any]
    unit: str = ""
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """A panel to draw if any run has it: metrics (logged each step) or readings (at evaluations)."""

    identity: str
    what: str
    unit: str
    metrics: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()


def panels(runs: Sequence[Record]) -> list[Panel]:
    """Every panel that some run has data for, in reading order."""
    judges = sorted({j for r in runs for j in r.judges()}, key=lambda j: (j.partition(":")[0] == "lab", j))
    wanted = [
        Wanted("loss", "Loss", "", metrics=("loss",)),
        _log_ratios(runs),
        *(Wanted(f"reward-{i}", "", "", readings=(f"reward/{j}",)) for i, j in enumerate(judges[:4])),
        Wanted("kl", "KL to the start", "nats", readings=("kl",)),
        Wanted("reward-accuracy", "Held-out reward accuracy", "%", readings=("reward_accuracy",)),
        Wanted("ranking-accuracy", "Held-out ranking accuracy", "%", readings=("ranking_accuracy",)),
        Wanted("entropy", "Entropy of the samples", "nats a token", readings=("entropy",)),
        Wanted("length", "Length of the samples", "tokens", metrics=("length/sampled",), readings=("length",)),
        Wanted("grad-norm", "Gradient norm", "before clipping", metrics=("grad_norm",)),
        Wanted("speed", "Speed", "tokens a second", metrics=("tokens_per_second",)),
    ]
    if not judges:
        wanted.insert(2, Wanted("reward", "Reward of the fresh samples", "", metrics=("reward/mean",)))
    columns = sum(_count(runs, w) for w in wanted)
    budget = max(40, min(1000, POINT_BUDGET // max(columns, 1)))
    last = max((r.last_step for r in runs), default=0)
    found = []
    for want in wanted:
        lines = _lines(runs, want, budget)
        if any(math.isfinite(v) for line in lines for v in line.values):
            found.append(_panel(runs, want, lines, last))
    return found


def _log_ratios(runs: Sequence[Record]) -> Wanted:
    """On held-out pairs where measured: they are the same for every run, while online runs train on their own samples."""
    unit, held_out = "nats; solid: chosen, dashed: rejected", ("log_ratio_chosen", "log_ratio_rejected")
    if any(set(held_out) <= r.reading_names() for r in runs):
        return Wanted("log-ratio", "Log-ratio on held-out pairs", unit, readings=held_out)
    return Wanted("log-ratio", "Log-ratio on training pairs", unit, metrics=("log_ratio/chosen", "log_ratio/rejected"))


def _count(runs: Sequence[Record], want: Wanted) -> int:
    return sum(any(m in row for row in r.metrics[:1]) for r in runs for m in want.metrics) + len(runs) * len(
        want.readings
    )


def _series(run: Record, metric: str) -> list[Point]:
    """A logged metric by step; the speed stands in its own file because it depends on the clock."""
    if metric != "tokens_per_second":
        return run.series(metric)
    return [(int(r["step"]), float(r[metric])) for r in run.timing if metric in r]


def _lines(runs: Sequence[Record], want: Wanted, budget: int) -> list[Line]:
    lines = []
    for index, run in enumerate(runs):
        for k, reading in enumerate(want.readings):
            points = run.readings(reading)
            if points:
                side = f" {reading.rpartition('_')[2]}" if len(want.readings) > 1 else ""
                lines.append(_reading_line(run, index, run.name + side, points, dashed=k > 0))
        if any(line.run is run for line in lines):
            continue  # measured on held-out prompts: better than the same thing on training batches
        for k, metric in enumerate(want.metrics):
            points_ = _series(run, metric)
            if points_:
                side = f" {metric.partition('/')[2]}" if len(want.metrics) > 1 else ""
                lines.append(_metric_line(run, index, run.name + side, points_, budget, dashed=k > 0))
    return lines


def _reading_line(run: Record, index: int, name: str, points: Sequence[tuple[int, Reading]], *, dashed: bool) -> Line:
    values = [r.value for _, r in points]
    low = [math.nan if r.low is None else r.low for _, r in points]
    high = [math.nan if r.high is None else r.high for _, r in points]
    return Line(run, index, name, [s for s, _ in points], values, values, low, high, dashed)


def _metric_line(run: Record, index: int, name: str, points: Sequence[Point], budget: int, *, dashed: bool) -> Line:
    """Smoothed over about a fifteenth of the run; thinned to the budget, non-finite values always kept."""
    values = [v for _, v in points]
    mean = moving_mean(values, window(len(values)))
    every = math.ceil(len(points) / budget)
    kept = [i for i, v in enumerate(values) if i % every == 0 or i == len(values) - 1 or not math.isfinite(v)]
    kept = kept[: 2 * budget]
    thinned = [values[i] for i in kept]
    smooth = thinned if mean is values else [mean[i] for i in kept]
    return Line(run, index, name, [points[i][0] for i in kept], thinned, smooth, dashed=dashed)


def window(count: int) -> int:
    """Width of the moving mean, odd; 1 for short runs."""
    return 1 if count < 30 else 2 * (count // 30) + 1


def moving_mean(values: list[float], width: int) -> list[float]:
    """Centred mean over `width` values, fewer at the ends; skips what is not finite."""
    if width <= 1:
        return values
    value_T = np.asarray(values)
    finite_T = np.isfinite(value_T)
    total_T = np.concatenate([[0.0], np.cumsum(np.where(finite_T, value_T, 0.0))])
    count_T = np.concatenate([[0], np.cumsum(finite_T)])
    first_T = np.maximum(np.arange(len(values)) - width // 2, 0)
    last_T = np.minimum(np.arange(len(values)) + width // 2 + 1, len(values))
    mean_T = (total_T[last_T] - total_T[first_T]) / np.maximum(count_T[last_T] - count_T[first_T], 1)
    return np.where(finite_T, mean_T, math.nan).tolist()


def _panel(runs: Sequence[Record], want: Wanted, lines: list[Line], last: int) -> Panel:
    judge = want.readings[0].partition("/")[2] if want.identity.startswith("reward-") and not want.what else None
    what = f"Reward by {judge_name(lines[0].run, judge)}" if judge else want.what
    percent = bool(want.readings) and is_rate(want.readings[0])
    name = want.readings[0] if percent else want.identity
    if want.identity == "log-ratio":
        title = log_ratio_title(lines)
    else:
        title = (judge and overoptimised(runs, judge)) or drift_title(what, lines, name)
    unit = f"{what}, {want.unit}" if want.unit else what
    unit = want.unit if want.identity == "log-ratio" else unit  # its title says what it is
    drawing, frame = _drawing(want.identity, title, unit, lines, last, 100.0 if percent else 1.0)
    return Panel(want.identity, title, _note(lines), drawing, _data(want, what, lines, frame, percent), unit, lines)


def _note(lines: Sequence[Line]) -> str:
    """What a reader must know of what is drawn: non-finite values, by run and step."""
    parts = []
    for line in lines:
        bad = [s for s, v in zip(line.steps, line.values, strict=True) if not math.isfinite(v)]
        if bad:
            parts.append(
                f"{line.name}: {plural(len(bad), 'value')} not finite (step {listed([str(s) for s in bad], 4)})"
            )
    return "; ".join(parts[:4])


def _drawing(
    identity: str, title: str, unit: str, lines: Sequence[Line], last: int, factor: float
) -> tuple[str, svg.Frame]:
    named = _are_named(lines)
    room = (
        min(110.0, svg.CHARACTER * max(len(_end_name(line, lines)) for line in lines) + 18)
        if named
        else 66.0
        if any(line.dashed for line in lines)
        else 40.0
    )
    drawn = [factor * v for line in lines for v in (line.values if len(lines) <= RAW_RUNS else line.mean)]
    bounds = [factor * v for line in lines for side in (line.low, line.high) for v in side or ()]
    x = svg.Scale(0 if last else -0.5, last or 0.5, 44, WIDTH - room)
    y = svg.Scale.around(_without_spikes(drawn) + bounds, HEIGHT - 34, 30)
    frame = svg.Frame(x, y, WIDTH, HEIGHT)
    parts = [frame.axes(x_ticks=4, y_ticks=4, y_label=unit, whole_x=True)]
    parts.append(svg.text(frame.right + 14, frame.bottom + 19, "step", style="unit"))
    if y.low < 0 < y.high:
        parts.append(svg.line(frame.left, y(0), frame.right, y(0), "half"))
    inside = f'<clipPath id="{identity}-clip"><rect x="0" y="24" width="{svg.n(WIDTH)}" height="{svg.n(HEIGHT - 52)}"/></clipPath>'
    parts += [inside, f'<g clip-path="url(#{identity}-clip)">']
    parts += [_line_drawing(line, frame, factor, raw=len(lines) <= RAW_RUNS) for line in lines]
    parts.append("</g>")
    parts.append(_end_labels(lines, frame, factor) if named else _side_labels(lines, frame, factor))
    parts.append('<g class="cross"></g>')
    body = "".join(parts)
    described = f"{title}. {unit} against the training step for {listed([line.name for line in lines])}."
    css = "figure panel"
    return svg.document(WIDTH, HEIGHT, body, title=title, description=described, css=css, identity=identity), frame


def _without_spikes(values: Sequence[float]) -> list[float]:
    """Values for the scale: spikes beyond eight times the central spread would flatten everything else."""
    finite = sorted(v for v in values if math.isfinite(v))
    if len(finite) < 20:
        return finite
    low, high = finite[len(finite) // 20], finite[-1 - len(finite) // 20]
    reach = 8 * (high - low)
    return [v for v in finite if low - reach <= v <= high + reach] if reach else finite


def _line_drawing(line: Line, frame: svg.Frame, factor: float, *, raw: bool) -> str:
    x, y = frame.x, frame.y
    parts = []
    if raw and line.low is not None and line.high is not None:
        edges = [(x(s), y(factor * a), y(factor * b)) for s, a, b in zip(line.steps, line.low, line.high, strict=True)]
        parts.append(svg.band(edges, "band"))
        if len(edges) == 1:
            parts.append(svg.line(edges[0][0], edges[0][1], edges[0][0], edges[0][2], "bar"))
    dashes = "5 3" if line.dashed else svg.dash(line.index)
    if raw and line.smoothed:
        parts.append(svg.polyline([(x(s), y(factor * v)) for s, v in zip(line.steps, line.values, strict=True)], "raw"))
    points = [(x(s), y(factor * v)) for s, v in zip(line.steps, line.mean, strict=True)]
    parts.append(svg.polyline(points, "path", dashes=dashes))
    finite = [p for p in points if math.isfinite(p[1])]
    kind = svg.marker_name(line.index)
    if line.low is not None:
        parts += [svg.marker(kind, *p, 2.4, "mark") for p in finite[:-1]]
    if finite:
        parts.append(svg.marker(kind, *finite[-1], 3.2, "mark" if line.dashed else "mark last"))
    bad = [s for s, v in zip(line.steps, line.values, strict=True) if not math.isfinite(v)]
    for step in bad[:MAX_CROSSES]:
        at, base = x(step), frame.bottom - 5
        cross = f"M{svg.n(at - 3)} {svg.n(base - 3)}l6 6m0 -6l-6 6"
        parts.append(
            f'<path class="nonfinite" d="{cross}"><title>{svg.escape(line.name)}, step {step}: not finite</title></path>'
        )
    return f'<g class="{"few" if raw else "many"}" style="--run:{svg.colour(line.index)}">{"".join(parts)}</g>'


def _are_named(lines: Sequence[Line]) -> bool:
    return len({id(line.run) for line in lines}) <= NAMED_LINES


def _end_name(line: Line, lines: Sequence[Line]) -> str:
    """The short name at a line's end: of a single run only the side matters."""
    single = len({id(other.run) for other in lines}) == 1
    name = line.name.removeprefix(line.run.name).strip() if single and len(lines) > 1 else line.run.name
    return name if len(name) <= 13 else name[:12] + "…"


def _end_labels(lines: Sequence[Line], frame: svg.Frame, factor: float) -> str:
    """Names at the line ends, moved apart where lines end together; of two lines of a run the solid one is named."""
    ends = []
    several = len({id(line.run) for line in lines}) > 1
    for line in lines:
        if several and line.dashed:
            continue
        finite = [(s, v) for s, v in zip(line.steps, line.mean, strict=True) if math.isfinite(v)]
        if finite:
            ends.append((line, frame.x(finite[-1][0]), frame.y(factor * finite[-1][1])))
    ends = [(line, x, min(max(y, frame.top), frame.bottom)) for line, x, y in ends]
    heights = svg.spread([y for _, _, y in ends], 14, frame.top, frame.bottom - 2)
    return "".join(
        svg.text(min(x, frame.right) + 8, h + 4.5, _end_name(line, lines), style="label")
        for (line, x, _), h in zip(ends, heights, strict=True)
    )


def _side_labels(lines: Sequence[Line], frame: svg.Frame, factor: float) -> str:
    """With too many runs to name each: which bundle of lines is the chosen side and which the rejected one."""
    if not any(line.dashed for line in lines):
        return ""
    heights = []
    for dashed in (False, True):
        ends = [v[-1] for line in lines if line.dashed is dashed and (v := [m for m in line.mean if math.isfinite(m)])]
        heights.append(frame.y(factor * statistics.fmean(ends)) if ends else frame.bottom)
    sides = [line.name.removeprefix(line.run.name).strip() for line in lines[:2]]
    places = svg.spread(heights, 14, frame.top, frame.bottom - 2)
    return "".join(
        svg.text(frame.right + 8, h + 4.5, side, style="label") for side, h in zip(sides, places, strict=True)
    )


def _data(want: Wanted, what: str, lines: Sequence[Line], frame: svg.Frame, percent: bool) -> dict[str, Any]:
    """Numbers for hovering, the table and the CSV; values in the unit that is drawn."""
    factor = 100.0 if percent else 1.0

    def column(values: Iterable[float]) -> list[float | str]:
        return [float(f"{factor * v:.5g}") if math.isfinite(v) else "not finite" for v in values]

    series = []
    for line in lines:
        entry: dict[str, Any] = {
            "name": line.name,
            "colour": svg.colour(line.index),
            "dashed": line.dashed,
            "x": line.steps,
            "y": column(line.values),
        }
        if line.low is not None and line.high is not None and any(map(math.isfinite, line.low)):
            entry |= {"low": column(line.low), "high": column(line.high)}
        series.append(entry)
    box = [frame.left, frame.right, frame.top, frame.bottom]
    scale = [frame.x.low, frame.x.high, frame.y.low, frame.y.high]
    return {"what": what, "unit": want.unit, "box": box, "scale": scale, "series": series}


def ends_of(line: Line) -> tuple[float, float, bool] | None:
    """Start and end level and whether they differ by more than the noise; None without two finite values.

    Long series: means of the first and the last tenth, against twice the standard error of their difference.
    Readings: the last value against the first one's interval, and the other way round.
    """
    at = [i for i, v in enumerate(line.values) if math.isfinite(v)]
    if len(at) < 2:
        return None
    first, last = at[0], at[-1]
    if line.low is not None and line.high is not None:
        start, end = line.values[first], line.values[last]
        apart = line.high[first] < line.low[last] or line.high[last] < line.low[first]
        known = math.isfinite(line.low[first]) and math.isfinite(line.low[last])
        return start, end, apart if known else not math.isclose(start, end, rel_tol=0.01)
    finite = [line.values[i] for i in at]
    size = len(finite) // 10
    if size < 3:
        return finite[0], finite[-1], not math.isclose(finite[0], finite[-1], rel_tol=0.01, abs_tol=1e-9)
    head, tail = finite[:size], finite[-size:]
    noise = math.sqrt((statistics.variance(head) + statistics.variance(tail)) / size)
    start, end = statistics.fmean(head), statistics.fmean(tail)
    return start, end, abs(end - start) > max(2 * noise, 1e-9)


def _direction(line: Line) -> str | None:
    ends = ends_of(line)
    if ends is None:
        return None
    return "rises" if ends[2] and ends[1] > ends[0] else "falls" if ends[2] else "shows no clear change"


def drift_title(what: str, lines: Sequence[Line], name: str) -> str:
    """'Length rises in A and B, falls in C'; with numbers for a single run."""
    if len(lines) == 1:
        ends = ends_of(lines[0])
        if ends is None:
            value = next(v for v in lines[0].values if math.isfinite(v))
            return f"{what} was measured once: {with_unit(value, name)}"
        verb = _direction(lines[0])
        if not ends[2]:
            return f"{what} {verb}, ending at {with_unit(ends[1], name)}"
        return f"{what} {verb} from {shown(ends[0], name)} to {with_unit(ends[1], name)}"
    groups: dict[str, list[str]] = {}
    for line in lines:
        direction = _direction(line)
        if direction:
            groups.setdefault(direction, []).append(line.name)
    if not groups:
        return f"{what}, measured once a run"
    if len(groups) == 1:
        return f"{what} {next(iter(groups))} in all {len(lines)} runs"
    order = [v for v in ("rises", "falls") if v in groups]  # the runs not named show no clear change
    if len(lines) > 6:
        return f"{what} " + ", ".join(f"{v} in {len(groups[v])}" for v in order) + f" of {len(lines)} runs"
    return f"{what} " + ", ".join(f"{v} in {listed(groups[v], 3)}" for v in order)


def log_ratio_title(lines: Sequence[Line]) -> str:
    """Whether chosen responses themselves became more likely: a growing margin alone hides that they did not."""
    chosen = [line for line in lines if not line.dashed]
    runs = len(chosen)
    if len(lines) == 2 and runs == 1:
        ends = [next((v for v in reversed(line.mean) if math.isfinite(v)), math.nan) for line in lines]
        return f"Chosen log-ratio ends at {short(ends[0])}, rejected at {short(ends[1])}"
    if all(_direction(line) is None for line in chosen):
        return "Log-ratios, measured once a run"
    falling = [line.name.removesuffix(" chosen") for line in chosen if _direction(line) == "falls"]
    if not falling:
        return "Chosen responses do not become less likely in any run"
    if len(falling) == runs:
        return f"Chosen responses become less likely in {'all ' + str(runs) + ' runs' if runs > 1 else falling[0]}"
    return f"Chosen responses become less likely in {listed(falling, 3)}"


def overoptimised(runs: Sequence[Record], judge: str) -> str | None:
    """A run whose own judge's reward keeps rising after this judge's has turned down by more than its intervals."""
    for run in runs:
        own = [j for j in run.judges() if run.trained_on(j) and j != judge]
        if run.trained_on(judge) or not own:
            continue
        gold, proxy = run.readings(f"reward/{judge}"), dict(run.readings(f"reward/{own[0]}"))
        if len(gold) < 3 or gold[-1][0] not in proxy:
            continue
        step, peak = max(gold, key=lambda g: g[1].value if math.isfinite(g[1].value) else -math.inf)
        end_step, end = gold[-1]
        fell = peak.low is not None and end.high is not None and end.high < peak.low
        if fell and step in proxy and proxy[end_step].value > proxy[step].value:
            own_name, name = judge_name(run, own[0]), judge_name(run, judge)
            return f"{run.name}: reward by {own_name} keeps rising while {name} falls after step {step}"
    return None
