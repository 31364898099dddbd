"""The rows of the table: what is compared, who is the peer, what must be reached and what is aimed at.

A side is one process: a function and its settings. Sides of a family take turns, so that a ratio pairs neighbours in
time; two families may run at once, each on a core of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """module:function, called with (folder, sizes, meter) and these settings. repeats: processes a run of the bench, 0
    for one a round."""

    call: str
    settings: dict[str, Any] = field(default_factory=dict)
    repeats: int = 0


def _side(call: str, *, repeats: int = 0, **settings: Any) -> Side:
    return Side(f"benchmarks.{call}", settings, repeats)


TRL = "peers.trl_dpo:run"
WIDE = {"model": "wide", "data": "wide_pairs"}
SIDES: dict[str, Side] = {
    "trl_fp32": _side(TRL, settings="fp32"),
    "ours_fp32": _side("ours:dpo", products=True),
    "trl_shipped": _side(TRL, settings="shipped"),
    "ours_best": _side("ours:dpo", precision="fast", cached=True),
    "trl_tuned": _side(TRL, settings="tuned"),
    "ours_cached": _side("ours:dpo", cached=True),
    "trl_switch": _side(TRL, settings="fp32", switch=True),
    "ours_switch": _side("ours:dpo", precision="fast"),
    "trl_wide": _side(TRL, settings="fp32", **WIDE),
    "ours_wide": _side("ours:dpo", **WIDE),
    "trl_grpo_fp32": _side("peers.trl_grpo:run"),
    "ours_grpo_fp32": _side("ours:grpo"),
    "trl_grpo_switch": _side("peers.trl_grpo:run", switch=True),
    "ours_grpo_switch": _side("ours:grpo", precision="fast"),
    "generate": _side("peers.generate:run"),
    "ours_sampling": _side("ours:sampling"),
    "padded_loop": _side("peers.scoring:run"),
    "ours_scoring": _side("ours:scoring"),
    "ours_bookkeeping": _side("ours:bookkeeping"),
    "ours_startup": _side("ours:startup"),
    "growth_0": _side("growth:growth", place=0),
    "growth_1": _side("growth:growth", place=1),
    "growth_2": _side("growth:growth", place=2),
    "ours_sharing": _side("sharing:sharing", repeats=1),
}
# In the order in which they take turns. The long ones come first, so that no core waits at the end.
FAMILIES: tuple[tuple[str, ...], ...] = (
    ("growth_0", "growth_1", "growth_2"),
    ("trl_fp32", "ours_fp32", "ours_best", "trl_shipped"),
    ("trl_tuned", "ours_cached"),
    ("trl_wide", "ours_wide"),
    ("trl_grpo_fp32", "ours_grpo_fp32"),
    ("trl_switch", "ours_switch"),
    ("trl_grpo_switch", "ours_grpo_switch"),
    ("generate", "ours_sampling"),
    ("ours_sharing",),
    ("ours_bookkeeping",),
    ("padded_loop", "ours_scoring"),
    ("ours_startup",),
)


def speed(peer: Result, ours: Result) -> float:
    """Units a second of ours over the peer's."""
    return (ours["units"] / ours["seconds"]) / (peer["units"] / peer["seconds"])


def memory(peer: Result, ours: Result) -> float:
    """Peak memory of ours over the peer's."""
    return ours["peak_gb"] / peer["peak_gb"]


def excess_gb(side: Result) -> float:
    """GiB at the peak beyond what both sides must hold: imports, two copies of the weights (policy and reference), AdamW's
    two means; all fp32."""
    return side["peak_gb"] - side["imports_gb"] - 4 * 4 * side["parameters"] / 2**30


def excess(peer: Result, ours: Result) -> float:
    return excess_gb(ours) / excess_gb(peer)


def gemm_share(result: Result) -> float:
    """Counted operations a second of the steps over the rate of plain products; needs the side's count."""
    return result["flops"] / result["seconds"] / result["gemm_rate"]


def of(name: str) -> Callable[[Result], float]:
    """A number that the side gives itself, or several of them."""
    return lambda result: result[name]


def step_growth(small: Result, large: Result) -> float:
    return large["step"] / small["step"]


def prepare_growth(small: Result, middle: Result, large: Result) -> float:
    """Seconds a further group before the first step: from small to large over from small to middle, so that what is done
    once a run (the model, the probe) does not hide it."""

    def a_group(result: Result) -> float:
        return (result["prepare"] - small["prepare"]) / (result["units"] - small["units"])

    return a_group(large) / a_group(middle)


@dataclass(frozen=True)
class Row:
    """compare(*results of the sides) is the row's number (or several rounds of it); the last side is ours.

    must and aim: at least (or, with less, at most) this. unit: "" for a ratio, "%" for a share, "s" for seconds.
    counted: the operations of its sides are counted. profiled: an operator profile can tell why it is missed.
    """

    name: str
    title: str
    sides: tuple[str, ...]
    compare: Callable[..., float | list[float]]
    must: float
    aim: float | None = None
    less: bool = False
    unit: str = ""
    counted: bool = False
    profiled: bool = False

    @property
    def ours(self) -> str:
        return self.sides[-1]

    @property
    def peer(self) -> str | None:
        return self.sides[0] if len(self.sides) == 2 else None

    def met(self, value: float, target: float | None = None) -> bool:
        target = self.must if target is None else target
        return value <= target if self.less else value >= target


def _beside(name: str, title: str, peer: str, ours: str, must: float, aim: float | None = None) -> Row:
    return Row(name, title, (peer, ours), speed, must, aim, counted=True, profiled=True)


def _memory(name: str, title: str, peer: str, ours: str, must: float, aim: float | None = None) -> Row:
    return Row(name, title, (peer, ours), memory, must, aim, less=True)


def _alone(name: str, title: str, ours: str, what: str, must: float, unit: str) -> Row:
    return Row(name, title, (ours,), of(what), must, less=True, unit=unit)


FLAT = 1.15  # a number that does not grow may still differ by so much between two runs of the same thing

ROWS: tuple[Row, ...] = (
    _beside("dpo_live", "DPO, fp32, live reference; TRL's defaults but fp32 without checkpointing", "trl_fp32", "ours_fp32", 5.0, 6.0),
    _memory("dpo_live_memory", "peak memory of it", "trl_fp32", "ours_fp32", 0.35, 0.30),
    _beside("dpo_cached", "DPO, fp32, reference cached before the clock on both sides; TRL tuned", "trl_tuned", "ours_cached", 2.0, 3.0),
    _beside("dpo_switch", "DPO, bf16 products on both sides, live reference", "trl_switch", "ours_switch", 6.0, 7.0),
    _beside("dpo_best", "DPO, best of ours (bf16 products, filled cache); TRL as shipped (bf16 autocast, checkpointing)", "trl_shipped", "ours_best", 9.5, 12.0),
    _beside("dpo_best_fp32", "best of ours; TRL in fp32 (precision differs: for comparison only)", "trl_fp32", "ours_best", 9.5, 12.0),
    _memory("dpo_wide_memory", "DPO, 151,936 words: peak memory", "trl_wide", "ours_wide", 0.5),
    Row("dpo_wide_excess", "the same beyond imports, weights and optimiser", ("trl_wide", "ours_wide"), excess, 0.25, less=True),
    _beside("grpo_fp32", "GRPO, 8 samples of up to 64 tokens, fp32: completions a second, sampling and training", "trl_grpo_fp32", "ours_grpo_fp32", 2.3, 3.0),
    _beside("grpo_switch", "the same, bf16 products on both sides", "trl_grpo_switch", "ours_grpo_switch", 3.0, 4.0),
    _memory("grpo_switch_memory", "peak memory of it", "trl_grpo_switch", "ours_grpo_switch", 0.37, 0.31),
    _beside("sampling", "sampling, 8 a prompt, 64 rows, ends at end tokens, slots refilled; `transformers.generate`", "generate", "ours_sampling", 2.5, 3.0),
    _beside("scoring", "scoring a file; a length-sorted padded `transformers` loop", "padded_loop", "ours_scoring", 1.5, 2.0),
    Row("gemm_share", "share of the rate of plain fp32 products that the DPO step reaches", ("ours_fp32",), gemm_share, 0.60, 0.75, unit="%", counted=True, profiled=True),
    _alone("bookkeeping", "tokenising, packing, logging and checkpointing: share of a run's wall time", "ours_bookkeeping", "share", 0.05, "%"),
    _alone("help", "`trueline --help`", "ours_startup", "help", 1.0, "s"),
    _alone("import", "`import trueline`, without torch", "ours_startup", "import", 0.3, "s"),
    Row("growth_step", "growth: time a step, 10⁶ groups over 10² (flat)", ("growth_0", "growth_2"), step_growth, FLAT, less=True),
    Row("growth_prepare", "growth: time to the first step a group, 10⁶ over 10⁴ (flat)", ("growth_0", "growth_1", "growth_2"), prepare_growth, FLAT, less=True),
    Row("growth_memory", "growth: peak memory, 10⁶ groups over 10² (flat)", ("growth_0", "growth_2"), memory, FLAT, less=True),
    Row("sharing", "gain of sharing over its bound U/S, the worst of k = 2, 4, 8, 16 and prompt shares 0.1–0.9", ("ours_sharing",), of("efficiency"), 0.9, unit="%", profiled=True),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
