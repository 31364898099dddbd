"""Numbers as a person reads them: three significant digits, intervals in brackets, the unit named once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trueline.report.record import Reading

MINUS = "\u2212"
NBSP = "\u00a0"
RATES = ("win_rate", "reward_accuracy", "ranking_accuracy", "judge_accuracy", "attribute/well_formed")
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def short(value: float | None) -> str:
    """Three significant digits; whole numbers of up to six digits exactly, with thousands separated."""
    if value is None:
        return "not measured"
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{_signed(mantissa)}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
    if float(value).is_integer():
        return _signed(f"{int(value):,}".replace(",", NBSP if size >= 1e4 else ""))
    digits = max(0, 2 - math.floor(math.log10(float(f"{size:.3g}"))))  # 0.09999 is 0.100
    return _signed(f"{value:,.{digits}f}".replace(",", NBSP if size >= 1e4 else ""))


def is_rate(name: str) -> bool:
    """Whether a reading is a share, shown in percent."""
    return name.startswith(RATES)


def shown(value: float | None, name: str) -> str:
    """A reading's value in the unit it is shown in, without the unit."""
    if value is not None and is_rate(name) and math.isfinite(value):
        return _signed(f"{100 * value:.1f}")
    return short(value)


def with_unit(value: float | None, name: str) -> str:
    text = shown(value, name)
    finite = value is not None and math.isfinite(value)
    return f"{text}{NBSP}%" if is_rate(name) and finite else text


def interval(reading: Reading | None, name: str) -> str:
    """'[3.90, 4.71]', or an empty text where there is none."""
    if reading is None or not reading.has_interval:
        return ""
    return f"[{shown(reading.low, name)}, {shown(reading.high, name)}]"


def points(value: float, *, sign: bool = False) -> str:
    """A difference of two rates, in percentage points with one decimal."""
    text = _signed(f"{100 * value:.1f}")
    return f"+{text}" if sign and value > 0 else text


def change(after: float, before: float, name: str) -> str:
    """The signed change from the start, in the unit of the reading."""
    if is_rate(name):
        return f"{points(after - before, sign=True)} points"
    text = short(after - before)
    return f"+{text}" if after > before else text


def seconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not recorded"
    if value < 60:
        return f"{short(value)}{NBSP}s"
    if value < 3600:
        return f"{int(value // 60)}{NBSP}min {round(value % 60):02d}{NBSP}s"
    return f"{int(value // 3600)}{NBSP}h {int(value % 3600 // 60):02d}{NBSP}min"


def plural(n: int, noun: str) -> str:
    return f"{short(n)} {noun}" if n == 1 else f"{short(n)} {noun}s"


def listed(items: Sequence[str], limit: int = 6) -> str:
    """'a, b and c'; a long list is cut and counted."""
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
