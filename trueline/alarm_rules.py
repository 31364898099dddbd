"""The rules behind the alarms: what each looks at, when it fires, and what it tells the user.

Drifts in the noisy metrics of steps are judged by a two-window test: the first steps against the latest ones, in
standard errors. Drifts in readings are judged by their intervals. A rule counts as watching only once the numbers it
needs have appeared. A new rule is a class here and an entry in `RULES`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple


@dataclass(frozen=True)
class Thresholds:
    """When a rule fires. window: steps a window; z: standard errors between two windows that count as a drift."""

    window: int = 20
    z: float = 5.0
    displacement: float = 1.0  # nats the chosen log-ratio must have fallen
    length_factor: float = 1.5  # sampled length against its start, either way
    entropy_share: float = 0.5  # of the starting entropy
    moved: float = 0.5  # share of the entries with a gradient that a step must change
    identical_samples: float = 0.5  # share of groups whose samples are all the same, mean of three steps
    truncation: float = 1e-5  # nats a token by which the law of the draw may differ from the policy
    reference_tolerance: float = 1e-4  # nats a token by which the reference may differ from the start
    spectral_diversity: float = 0.02  # sign diversity that counts as collapsed, on two looks in a row
    spectral_baseline: float = (
        0.2  # median diversity of a layer's first five looks, without which its own is no collapse
    )
    spectral_rise: float = 2.0  # of |mean spectral alignment| over its median of those looks
    gradient_factor: float = 4.0  # gradient norm against the median of the latest window, in three of five steps


@dataclass(frozen=True)
class Facts:
    """What the rules must know about the run beside its numbers; see `Alarms`."""

    kl_budget: float | None
    starts_at_reference: bool
    initial_loss: float | None
    learning_rate: float | None
    training_judges: frozenset[str]


class Reading(NamedTuple):
    """A measured value and its interval; an interval that could not be made is unbounded and proves nothing."""

    value: float
    low: float
    high: float


@dataclass
class Windows:
    """The first `size` values of a series and its latest `size`, which do not overlap."""

    size: int
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        if len(self.first) < self.size:
            self.first.append(value)
            return
        self.last.append(value)
        del self.last[: -self.size]

    @property
    def full(self) -> bool:
        return len(self.last) == self.size

    @property
    def start(self) -> float:
        return _mean(self.first)

    @property
    def now(self) -> float:
        return _mean(self.last)

    def shift(self) -> float:
        """(now - start) in standard errors of the difference; infinite for noiseless series that moved."""
        difference = self.now - self.start
        error = math.hypot(_standard_error(self.first), _standard_error(self.last))
        return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0


class Rule:
    """One alarm. `seen`: its numbers have appeared, so its silence means something. `memory` is JSON."""

    name: ClassVar[str]
    looks_at: ClassVar[str]

    def __init__(self, facts: Facts, thresholds: Thresholds):
        self.facts, self.limits = facts, thresholds
        self.seen = False
        self.fired = False
        self.windows: dict[str, Windows] = {}
        self.memory: dict[str, Any] = {}

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        return None

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        return None

    def window(self, name: str) -> Windows:
        return self.windows.setdefault(name, Windows(self.limits.window))

    def latest(self, name: str, value: float | None, size: int) -> list[float]:
        """Remember a finite value; the last `size` of them."""
        held: list[float] = self.memory.setdefault(name, [])
        if value is not None and math.isfinite(value):
            held.append(value)
            del held[:-size]
        return held


class Displacement(Rule):
    name = "displacement"
    looks_at = "chosen log-ratio falling while margins grow"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        chosen, margins = _number(metrics, "log_ratio/chosen"), _number(metrics, "rewards/margins")
        if chosen is None or margins is None:
            return None
        self.seen = True
        ratio, margin = self.window("chosen"), self.window("margins")
        ratio.add(chosen)
        margin.add(margins)
        if not (ratio.full and margin.full and ratio.shift() < -self.limits.z and margin.shift() > self.limits.z):
            return None
        return self._message(ratio.start, ratio.now) if ratio.now - ratio.start < -self.limits.displacement else None

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        chosen, rejected = _reading(readings, "log_ratio_chosen"), _reading(readings, "log_ratio_rejected")
        if chosen is None or rejected is None:
            return None
        self.seen = True
        start, margin = self.memory.setdefault("start", [chosen.value, chosen.value - rejected.value])
        fell = chosen.high < start - self.limits.displacement
        return self._message(start, chosen.value) if fell and chosen.value - rejected.value > margin else None

    def _message(self, start: float, now: float) -> str:
        return (
            f"The chosen responses' log-ratio fell from {start:.2f} to {now:.2f} nats while the margins grew: the "
            "margin comes from pushing the rejected down faster, and the freed probability goes to texts nobody "
            "chose (likelihood displacement). Add a likelihood term (--objective dpo:1,sft:0.2), raise beta or "
            "lower the learning rate."
        )


class KlBudget(Rule):
    name = "kl_budget"
    looks_at = "KL to the reference against kl_budget"

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        kl, budget = _reading(readings, "kl"), self.facts.kl_budget
        if kl is None or budget is None:
            return None
        self.seen = True
        if kl.value <= budget:
            return None
        return (
            f"KL to the reference is {kl.value:.2f} nats ({kl.low:.2f} to {kl.high:.2f}), over the budget of "
            f"{budget:g}: the policy is further from its start than you allowed. Stop here or take an earlier "
            "checkpoint; raise beta or lower the learning rate for the next run."
        )


class LengthDrift(Rule):
    name = "length_drift"
    looks_at = "length of sampled responses against the start"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        length = _number(metrics, "length/sampled")
        if length is None:
            return None
        self.seen = True
        lengths = self.window("sampled")
        lengths.add(length)
        if not (lengths.full and abs(lengths.shift()) > self.limits.z):
            return None
        return self._message(lengths.start, lengths.now)

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        length = _reading(readings, "length")
        if length is None:
            return None
        self.seen = True
        start = Reading(*self.memory.setdefault("start", list(length)))
        apart = length.low > start.high or length.high < start.low
        return self._message(start.value, length.value) if apart else None

    def _message(self, start: float, now: float) -> str | None:
        factor = self.limits.length_factor
        if start / factor <= now <= start * factor:
            return None
        way = "longer" if now > start else "shorter"
        return (
            f"Sampled responses became {way}: {start:.1f} tokens at the start, {now:.1f} now. Judges often reward "
            "length itself, and summed log-ratios grow with it. Compare win rates at equal length, look at the "
            "samples, and consider a per-token statistic or a judge without length bias."
        )


class OverOptimisation(Rule):
    """Keeps every evaluation of every judge. The judge in training counts also where only steps measure it, by the
    mean of the latest steps."""

    name = "over_optimisation"
    looks_at = "a judge falling from its best while the judge trained on rises"

    TRAINING = "the training reward"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        self.latest("since", _number(metrics, "reward/mean"), self.limits.window)
        return None

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        names = [n.removeprefix("reward/") for n in readings if n.startswith("reward/")]
        now = {n: r for n in names if (r := _reading(readings, f"reward/{n}")) is not None}
        since = self.memory.pop("since", [])
        if len(since) > 1:
            mean, error = _mean(since), _standard_error(since)
            now[self.TRAINING] = Reading(mean, mean - 2 * error, mean + 2 * error)
        history: list[dict[str, Any]] = self.memory.setdefault("history", [])
        history.append({"step": step, "rewards": {n: list(r) for n, r in now.items()}})
        pupils = self.facts.training_judges | {self.TRAINING} if self.facts.training_judges else set(now)
        self.seen = self.seen or len(now) > 1
        for judge, reading in now.items():
            if judge in self.facts.training_judges or judge == self.TRAINING:
                continue
            best = max((h for h in history if judge in h["rewards"]), key=lambda h: h["rewards"][judge][0])
            if reading.high >= Reading(*best["rewards"][judge]).low:
                continue
            for other in sorted(pupils & set(now) & set(best["rewards"]) - {judge}):
                before = Reading(*best["rewards"][other])
                if now[other].low > before.high:
                    return self._message(judge, best, reading, other, before, now[other])
        return None

    def _message(
        self, judge: str, best: dict[str, Any], fell: Reading, other: str, before: Reading, rose: Reading
    ) -> str:
        return (
            f"Reward by '{judge}' fell from {best['rewards'][judge][0]:.3f} at step {best['step']} to {fell.value:.3f} "
            f"while '{other}' rose from {before.value:.3f} to {rose.value:.3f}: they part ways, so the policy exploits "
            f"what one of them gets wrong. If '{judge}' is the one you trust this is over-optimisation: take "
            f"the checkpoint near step {best['step']} (best_metric picks it), raise beta, or train '{other}' on samples "
            "of this policy."
        )


class Overfitting(Rule):
    name = "overfitting"
    looks_at = "held-out loss and accuracy getting worse while the training loss falls"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        self.latest("since", _number(metrics, "loss"), self.limits.window)
        return None

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        since = self.memory.pop("since", [])
        if not since:
            return None
        trained = _mean(since)
        for name, sign in (("eval_loss", -1), ("reward_accuracy", 1)):
            reading = _reading(readings, name)
            if reading is None:
                continue
            self.seen = True
            best = self.memory.setdefault(name, [step, trained, *reading])
            at, loss, before = best[0], best[1], Reading(*best[2:])
            if sign * reading.value > sign * before.value:
                self.memory[name] = [step, trained, *reading]
            worse = reading.high < before.low if sign > 0 else reading.low > before.high
            if worse and trained < loss:
                return (
                    f"Held-out {name} went from {before.value:.3f} at step {at} to {reading.value:.3f} while the "
                    f"training loss fell from {loss:.3f} to {trained:.3f}: the policy is learning these rows, not "
                    f"the preference. Take the checkpoint near step {at} (best_metric: {name}, early_stop), use "
                    "fewer epochs or more data."
                )
        return None


class ReferenceIdentical(Rule):
    name = "reference_identical"
    looks_at = "log-ratios still exactly zero after updates"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        ratios = [_number(metrics, f"log_ratio/{side}") for side in ("chosen", "rejected")]
        if step < 3 or None in ratios or not (_number(metrics, "grad_norm") or 0.0) > 0:
            return None
        self.seen = True
        zero = all(abs(r) <= 1e-6 for r in ratios if r is not None)
        self.memory["zeros"] = self.memory.get("zeros", 0) + 1 if zero else 0
        if self.memory["zeros"] < 3:
            return None
        return (
            f"Policy and reference give the same log-probs after {step - 1} updates (log-ratio {ratios[0]:.1g} and "
            f"{ratios[1]:.1g}): either they share their weights, so the reference moves along, or no update "
            "arrives. The loss cannot learn. Check the reference (a copy made before training?), the adapter and "
            "the learning rate."
        )


class ReferenceDiffers(Rule):
    name = "reference_differs"
    looks_at = "policy equal to the reference before the first update"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        ratios = {n: r for n in ("log_ratio/chosen", "log_ratio/rejected") if (r := _number(metrics, n)) is not None}
        if not self.facts.starts_at_reference or step != 1 or not ratios:
            return None
        self.seen = True
        for name, ratio in ratios.items():
            tokens = _number(metrics, name.replace("log_ratio", "length")) or 1.0
            if not abs(ratio) <= self.limits.reference_tolerance * max(tokens, 10.0):
                return self._message(f"{name} is {ratio:.3g} nats")
        loss, expected = _number(metrics, "loss"), self.facts.initial_loss
        if loss is not None and expected is not None and not abs(loss - expected) <= 1e-3 * max(abs(expected), 1e-3):
            return self._message(f"the loss is {loss:.5g}, expected {expected:.5g}")
        return None

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        kl = _reading(readings, "kl")
        if not self.facts.starts_at_reference or step != 0 or kl is None:
            return None
        self.seen = True
        tokens = _reading(readings, "length")
        allowed = self.limits.reference_tolerance * max(tokens.value if tokens else 1.0, 10.0)
        return None if abs(kl.value) <= allowed else self._message(f"KL is {kl.value:.3g} nats")

    def _message(self, found: str) -> str:
        return (
            f"Before any update {found}: the policy does not start at its reference, so every margin carries an "
            "offset that is not learning. Check that the reference is the starting model (a pre-trained adapter "
            "belongs to it), that dropout is off, and that cached scores are this reference's."
        )


class EntropyCollapse(Rule):
    name = "entropy_collapse"
    looks_at = "entropy of the policy against the start"

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        entropy = _reading(readings, "entropy")
        if entropy is None:
            return None
        self.seen = True
        start = self.memory.setdefault("start", entropy.value)
        if not entropy.high < self.limits.entropy_share * start:
            return None
        return (
            f"Entropy fell from {start:.3f} to {entropy.value:.3f} nats a token: the policy is settling on few "
            "texts, samples of a prompt become alike and online learning loses its signal. Lower the learning "
            "rate, raise beta, or take an earlier checkpoint."
        )


class WeightsNotMoving(Rule):
    name = "weights_not_moving"
    looks_at = "share of the weights that a step changes"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        moved, rate = _number(metrics, "moved"), _number(metrics, "learning_rate")
        peak = self.facts.learning_rate
        if moved is None or (peak is not None and rate is not None and rate < peak / 2):
            return None  # during warm-up and at the end of the decay small moves are meant
        self.seen = True
        if moved >= self.limits.moved:
            return None
        rate_text = "" if rate is None else f" at learning rate {rate:.2g}"
        return (
            f"This step changed only {moved:.0%} of the weights that have a gradient{rate_text}: the updates round "
            "away. Train in float32 (master weights) or raise the learning rate."
        )


class NonFinite(Rule):
    name = "non_finite"
    looks_at = "loss and gradient norm being finite"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        bad = []
        for name in ("loss", "grad_norm"):
            value = _number(metrics, name)
            self.seen = self.seen or value is not None
            if value is not None and not math.isfinite(value):
                bad.append(f"{name} is {value}")
        if not bad:
            return None
        return (
            f"At this step {' and '.join(bad)}; the step was not taken and its batch was kept. One such step is "
            "harmless, a repeating one ends the run. Look at the rows of that batch; lower the learning rate."
        )


class WeakJudge(Rule):
    name = "weak_judge"
    looks_at = "judges' accuracy on held-out pairs against the policy's own"

    def on_eval(self, step: int, readings: Mapping[str, Mapping[str, Any]]) -> str | None:
        own = _reading(readings, "reward_accuracy")
        if own is None or step == 0:
            return None
        counts: dict[str, int] = self.memory.setdefault("in a row", {})
        for name in (n for n in readings if n.startswith("judge_accuracy/")):
            judge, label = _reading(readings, name), name.removeprefix("judge_accuracy/")
            if judge is None or (self.facts.training_judges and label not in self.facts.training_judges):
                continue
            self.seen = True
            counts[label] = counts.get(label, 0) + 1 if own.value >= judge.value else 0
            if counts[label] >= 2 or own.low >= judge.value:  # one evaluation alone must be clear
                return (
                    f"The policy orders {own.value:.1%} of held-out pairs as people did, its judge '{label}' "
                    f"{judge.value:.1%}: a judge that knows no more than its pupil cannot teach it, only its "
                    "errors are left to learn. Train a better judge (more pairs, a larger model), or learn from "
                    "the pairs directly."
                )
        return None


class IdenticalSamples(Rule):
    name = "identical_samples"
    looks_at = "groups whose samples are all the same"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        share = _number(metrics, "identical_samples")
        if share is None:
            return None
        self.seen = True
        latest = self.latest("shares", share, 3)
        if len(latest) < 3 or _mean(latest) < self.limits.identical_samples:
            return None
        return (
            f"In {_mean(latest):.0%} of the groups of the last three steps all samples of a prompt are "
            "the same text: they tie, so those prompts teach nothing. Check the temperature and the sampling "
            "seed; if both are as meant, the policy has collapsed."
        )


class NothingToLearn(Rule):
    name = "nothing_to_learn"
    looks_at = "steps in which no response could be compared or imitated"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        tokens = _number(metrics, "tokens")
        if tokens is None:
            return None
        self.seen = True
        if tokens:
            return None
        return (
            f"This step had nothing to learn from and changed no weight: {metrics.get('ties', 0)} ties, "
            f"{metrics.get('unjudged', 0)} groups that nobody judged. If this repeats, the run trains nothing: look at the "
            "rewards of the judge (None and equal rewards teach nothing), sample more per prompt, or lower pairing_margin."
        )


class TruncatedDraws(Rule):
    name = "truncated_draws"
    looks_at = "samples drawn from a truncated law that a ratio objective does not correct"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        gap = _number(metrics, "kl/truncation")
        if gap is None:
            return None
        self.seen = True
        if gap <= self.limits.truncation or "importance/mean" in metrics:
            return None
        return (
            f"Samples were drawn from a truncated law (top_p, top_k): the drawn tokens were {gap:.3g} nats likelier than "
            "under the policy, and the objective's ratios take them for the policy's own. Draw with top_p 1 and top_k 0, "
            "or give importance_cap, which weighs each token by what it was drawn from."
        )


class SpectralCollapse(Rule):
    """Each layer against its own first looks: some layers have little diversity from the start and stay healthy."""

    name = "spectral_collapse"
    looks_at = "inputs of a layer gathering on one side of its largest singular direction"

    BASELINE = 5

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        layers = [n.removeprefix("spectral/diversity/") for n in metrics if n.startswith("spectral/diversity/")]
        found = None
        for layer in layers:
            self.seen = True
            diversity, mean = (
                _number(metrics, f"spectral/diversity/{layer}"),
                _number(metrics, f"spectral/mean/{layer}"),
            )
            if diversity is None or mean is None:
                continue
            held = self.memory.setdefault(layer, {"diversity": [], "mean": [], "low": 0})
            if len(held["diversity"]) < self.BASELINE:
                held["diversity"].append(diversity)
                held["mean"].append(mean)
                continue
            before = statistics.median(held["diversity"])
            low = diversity < self.limits.spectral_diversity and before >= self.limits.spectral_baseline
            risen = mean > self.limits.spectral_rise * statistics.median(held["mean"])
            held["low"] = held["low"] + 1 if low and risen else 0
            if held["low"] >= 2 and found is None:
                found = (
                    f"Nearly all inputs of layer {layer} now lie on one side of its largest singular direction (sign "
                    f"diversity {diversity:.3f}, {before:.2f} at the start): that weight grows with every step, and a loss "
                    "explosion often follows. Lower the learning rate and go on from an earlier checkpoint; look at the "
                    "gradient norm and the loss of the next steps."
                )
        return found


class GradientGrowth(Rule):
    name = "gradient_growth"
    looks_at = "gradient norm against its latest window"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        norm = _number(metrics, "grad_norm")
        if norm is None or not math.isfinite(norm) or norm == 0.0:
            return None
        self.seen = True
        before = self.latest("norms", None, self.limits.window)
        usual = statistics.median(before) if len(before) >= self.limits.window else math.inf
        high = self.latest("high", float(norm > self.limits.gradient_factor * usual), 5)
        self.latest("norms", norm, self.limits.window)
        if sum(high) < 3:
            return None
        return (
            f"In three of the last five steps the gradient norm was more than {self.limits.gradient_factor:g} times its usual "
            f"{usual:.3g} (now {norm:.3g}): the run is about to leave the region it was learning in. Clipping bounds the "
            "step, not its direction. Lower the learning rate, and look at the batches of these steps."
        )


class TokenEntropy(Rule):
    """Only where training starts at a reference: text learnt from scratch loses most of its entropy and should."""

    name = "token_entropy"
    looks_at = "entropy of the predictions on the batches of training"

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        entropy = _number(metrics, "entropy/tokens")
        compares = "log_ratio/chosen" in metrics or "reward/mean" in metrics
        if entropy is None or not math.isfinite(entropy) or not (self.facts.starts_at_reference and compares):
            return None
        self.seen = True
        start: list[float] = self.memory.setdefault("start", [])
        if len(start) < 3:
            start.append(entropy)
            return None
        usual, latest = statistics.median(start), self.latest("latest", entropy, 3)
        if len(latest) < 3 or max(latest) >= self.limits.entropy_share * usual:
            return None
        return (
            f"On the batches of training the policy's entropy fell from {usual:.3f} to {latest[-1]:.3f} nats a token: it "
            "settles on few continuations. Lower the learning rate, raise beta, or take an earlier checkpoint."
        )


RULES: tuple[type[Rule], ...] = (
    Displacement,
    KlBudget,
    LengthDrift,
    OverOptimisation,
    Overfitting,
    ReferenceIdentical,
    ReferenceDiffers,
    EntropyCollapse,
    WeightsNotMoving,
    NonFinite,
    WeakJudge,
    IdenticalSamples,
    NothingToLearn,
    TruncatedDraws,
    SpectralCollapse,
    GradientGrowth,
    TokenEntropy,
)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: list[float]) -> float:
    """Of the mean; needs two values."""
    mean, n = _mean(values), len(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return None if value is None else float(value)


def _reading(readings: Mapping[str, Mapping[str, Any]], name: str) -> Reading | None:
    """A reading that has a value; one that could not be measured (NaN, None) is no reading."""
    held = readings.get(name) or {}
    value = held.get("value")
    if value is None or not math.isfinite(float(value)):
        return None
    low, high = (math.nan if held.get(end) is None else float(held[end]) for end in ("low", "high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = -math.inf, math.inf
    return Reading(float(value), low, high)
