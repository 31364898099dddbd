"""What an objective sees and what it returns.

An objective is a pure function of scored responses: it never sees padding, packing, adapters, devices, gradient
accumulation or logging. Shape suffixes: _N response tokens that count, _R responses, _P pairs, _G groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trueline.errors import TruelineError
from trueline.groups import Group
from trueline.registry import method

PAIRS = "PAIRS"
DEMONSTRATIONS = "DEMONSTRATIONS"


def objective(
    *,
    needs: str,
    arxiv: str | None = None,
    paper: str | None = None,
    reference: bool = True,
    head: str = "lm",
    couples_rows: bool = False,
) -> Callable[[Callable[..., Loss]], Callable[..., Loss]]:
    """Register an objective.

    needs: the view it takes (PAIRS, DEMONSTRATIONS). reference: whether it reads reference log-probs.
    head: "lm" for token log-probs, "scalar" for a reward model's one number a response.
    couples_rows: its value is not a sum over rows, so a split batch needs the exact two-pass route.
    """
    register = method(
        "objectives",
        needs=needs,
        arxiv=arxiv,
        paper=paper,
        reference=reference,
        head=head,
        couples_rows=couples_rows,
    )
    return lambda call: register(_checked(call))


# Options that mean the same in every objective, and the values that make sense: a negative beta would train backwards.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "beta": (lambda value: value > 0, "a number above 0"),
    "tau": (lambda value: value > 0, "a number above 0"),
    "epsilon": (lambda value: 0 <= value < 0.5, "the share of wrong labels, at least 0 and below 0.5"),
}


def _checked(call: Callable[..., Loss]) -> Callable[..., Loss]:
    """The objective, refusing option values outside their range."""

    @functools.wraps(call)
    def checked(view: Any, **options: Any) -> Loss:
        for name, (holds, expected) in _RANGES.items():
            if name in options:
                require(holds(options[name]), f"{call.__name__}.{name} is {options[name]}; expected {expected}.")
        return call(view, **options)

    return checked


def require(holds: bool, message: str) -> None:
    """Raise TruelineError with this message unless the condition holds."""
    if not holds:
        raise TruelineError(message)


@dataclass
class Term:
    """One addend of a loss: values [n] of one unit, summed and divided by the global count of that unit.

    unit: "pair" | "response" | "token" | "group" | "constant". For "constant" the divisor is `constant`.
    """

    values: Tensor
    unit: str
    weight: float = 1.0
    constant: float | None = None


class Loss:
    """A sum of terms. `Loss(values)` is one term per pair; add losses or scale them to combine."""

    def __init__(self, values: Tensor | None = None, unit: str = "pair", *, terms: list[Term] | None = None):
        self.terms = terms if terms is not None else [Term(values, unit)]  # type: ignore[arg-type]

    def __add__(self, other: Loss) -> Loss:
        return Loss(terms=self.terms + other.terms)

    def __mul__(self, weight: float) -> Loss:
        scaled = [Term(t.values, t.unit, t.weight * weight, t.constant) for t in self.terms]
        return Loss(terms=scaled)

    __rmul__ = __mul__

    def counts(self) -> list[float]:
        """The divisor each term would have if this batch were the whole batch."""
        return [t.constant if t.constant is not None else float(t.values.numel()) for t in self.terms]

    def reduce(self, counts: list[float]) -> Tensor:
        """Sum of terms, each divided by the given (global) count; a term of count 0 contributes nothing."""
        parts = [t.weight * t.values.sum() / c for t, c in zip(self.terms, counts, strict=True) if c]
        return torch.stack(parts).sum() if parts else torch.zeros(())


@dataclass
class Scored:
    """A batch of groups with the numbers an engine computed for it.

    logp_N: policy log-prob of each counted response token, with gradient. reference_N: same tokens, no gradient.
    owner_N: which response (0..R-1, groups in order, responses in order) a token belongs to.
    value_R: a scalar head's output, with gradient. length_R: counted tokens of each response.
    """

    groups: list[Group]
    owner_N: Tensor
    length_R: Tensor
    logp_N: Tensor | None = None
    reference_N: Tensor | None = None
    value_R: Tensor | None = None

    def __post_init__(self) -> None:
        if self.reference_N is not None:
            self.reference_N = self.reference_N.detach()  # no objective may train its reference

    def rows(self, index: list[int] | Tensor) -> Rows:
        device = self.owner_N.device
        return Rows(self, torch.as_tensor(index, dtype=torch.long, device=device))

    def per_response(self, values_N: Tensor) -> Tensor:
        """Sum of a per-token quantity over each response: [N] -> [R]."""
        total = values_N.new_zeros(len(self.length_R))
        return total.index_add(0, self.owner_N, values_N)

    @cached_property
    def sum_logp_R(self) -> Tensor:
        return self.per_response(_present(self.logp_N, "policy log-probs"))

    @cached_property
    def sum_reference_R(self) -> Tensor:
        return self.per_response(_present(self.reference_N, "reference log-probs"))


def _present(tensor: Tensor | None, what: str) -> Tensor:
    if tensor is None:
        raise RuntimeError(f"The objective reads {what}, which its declaration did not ask for.")
    return tensor


@dataclass
class Rows:
    """Some responses of a scored batch, in a fixed order. Statistics are named as in the papers."""

    scored: Scored
    index: Tensor  # [n]

    @property
    def logp(self) -> Tensor:
        """S = sum over tokens of log pi(y_t | x, y_<t), [n]."""
        return self.scored.sum_logp_R[self.index]

    @property
    def reference_logp(self) -> Tensor:
        """S^r, the same sum under the reference, [n], no gradient."""
        return self.scored.sum_reference_R[self.index]

    @property
    def log_ratio(self) -> Tensor:
        """rho = S - S^r, [n]."""
        return self.logp - self.reference_logp

    @property
    def length(self) -> Tensor:
        """Counted tokens L, [n], as float."""
        return self.scored.length_R[self.index].to(torch.get_default_dtype())

    @property
    def mean_logp(self) -> Tensor:
        """S / L, [n]."""
        return self.logp / self.length

    @property
    def mean_log_ratio(self) -> Tensor:
        """rho / L, [n]."""
        return self.log_ratio / self.length

    @property
    def value(self) -> Tensor:
        """A scalar head's output, [n]."""
        return _present(self.scored.value_R, "a scalar head")[self.index]

    @property
    def reward(self) -> Tensor:
        """The scores that the data or a judge gave, [n], no gradient. A response without one is a TruelineError."""
        scores = [(r.reward, g.origin or g.prompt) for g in self.scored.groups for r in g.responses]
        own = [scores[i] for i in self.index.tolist()]
        for score, where in own:
            require(
                score is not None,
                f"The objective compares scores, and a response of {str(where)[:80]!r} has none. Use data with scores or give a judge (--feedback).",
            )
        return torch.tensor([s for s, _ in own], dtype=torch.get_default_dtype(), device=self.index.device)

    def log_ratio_of_first(self, count: Tensor) -> Tensor:
        """rho of the first `count` counted tokens of each response: [n] whole numbers -> [n].

        Tokens of a response stand together in N, responses in order. _M: the tokens taken, of all rows together.
        """
        count = count.long()
        length_R = self.scored.length_R
        row_M = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        position_M = torch.arange(len(row_M), device=count.device) - (count.cumsum(0) - count)[row_M]
        token_M = (length_R.cumsum(0) - length_R)[self.index][row_M] + position_M
        logp_N = _present(self.scored.logp_N, "policy log-probs")
        ratio_M = logp_N[token_M] - _present(self.scored.reference_N, "reference log-probs")[token_M]
        return ratio_M.new_zeros(len(count)).index_add(0, row_M, ratio_M)

    @property
    def token_logp(self) -> Tensor:
        """Log-probs of all counted tokens of these responses, flat; a response that stands in two pairs counts once."""
        chosen_R = torch.zeros(len(self.scored.length_R), dtype=torch.bool, device=self.index.device)
        chosen_R[self.index] = True
        return _present(self.scored.logp_N, "policy log-probs")[chosen_R[self.scored.owner_N]]


@dataclass
class Pairs:
    """Preferred and rejected responses, aligned: chosen.index[i] beats rejected.index[i]. Both [P]."""

    chosen: Rows
    rejected: Rows


@dataclass
class Demonstrations:
    """Responses to imitate."""

    responses: Rows


def metric(value: Any) -> float:
    """A detached float for logging."""
    return float(value.detach().mean()) if isinstance(value, Tensor) else float(value)
