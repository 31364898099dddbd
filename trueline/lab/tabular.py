"""A language model small enough to enumerate: the oracle for objectives and decoders.

Three letters and EOS, at most 5 tokens with EOS forced last: 1 + 3 + 9 + 27 + 81 = 121 sequences. The model
pi0(. | prefix) is a softmax of unit normal logits per prefix, and gold is

    r(y) = tanh(w . counts) - 1/2 #(equal neighbours) - .1 (|y| - 3)^2 + 1/2 e_y,     |y| with its EOS.

Everything an aligned model can be asked is a sum over 121 terms, exact to rounding: the optimum of KL-regularised
reward, pi*(y) proportional to pi0(y) exp(r(y) / beta), its KL, win rates with ties as one half, soft values anywhere.
Tokens are 0, 1, 2 (a, b, c) and 3 (EOS). Shapes: _Y sequences.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from trueline.errors import TruelineError
from trueline.randomness import derive

LETTERS, EOS, LENGTH = 3, 3, 5
Sequence = tuple[int, ...]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class TabularWorld:
    """pi0 and gold of one seed. logits: prefix (without EOS) to the logits of its next token [4]."""

    logits: dict[Sequence, Array]
    sequences: tuple[Sequence, ...]
    reward_Y: Array

    def next_logp(self, prefix: Sequence) -> Array:
        """log pi0(token | prefix), [4]; after four letters only EOS is left."""
        if prefix not in self.logits:
            raise TruelineError(f"{prefix} is not a prefix of this world: at most {LENGTH - 1} letters out of 0, 1, 2.")
        if len(prefix) == LENGTH - 1:
            return np.where(np.arange(LETTERS + 1) == EOS, 0.0, -np.inf)
        return log_softmax(self.logits[prefix])

    @cached_property
    def log_pi0_Y(self) -> Array:
        """log pi0 of every sequence."""
        return np.array([sum(self.next_logp(y[:t])[y[t]] for t in range(len(y))) for y in self.sequences])

    def optimum(self, beta: float) -> Array:
        """log pi*(y): the exact maximiser of E r - beta KL(pi || pi0), [Y]."""
        return log_softmax(self.log_pi0_Y + self.reward_Y / beta)

    def soft_value(self, prefix: Sequence, beta: float) -> float:
        """beta log E[exp(r / beta) | prefix] under pi0: the value of a prefix to an optimal regularised decoder."""
        inside = np.array([y[: len(prefix)] == prefix for y in self.sequences])
        if not inside.any():
            raise TruelineError(f"No sequence of this world starts with {prefix}.")
        logp = self.log_pi0_Y[inside]
        return float(beta * (logsumexp(logp + self.reward_Y[inside] / beta) - logsumexp(logp)))

    def optimal_next_logp(self, prefix: Sequence, beta: float) -> Array:
        """log pi*(token | prefix) = log pi0 + (V(prefix + token) - V(prefix)) / beta, [4]."""
        base = self.next_logp(prefix)
        open_ = np.flatnonzero(np.isfinite(base))
        result = np.full(LETTERS + 1, -np.inf)
        here = self.soft_value(prefix, beta)
        for token in open_:
            result[token] = base[token] + (self.soft_value((*prefix, int(token)), beta) - here) / beta
        return result

    def expected_reward(self, log_pi_Y: Array) -> float:
        return float(np.exp(log_pi_Y) @ self.reward_Y)

    def kl(self, log_pi_Y: Array, log_other_Y: Array | None = None) -> float:
        """KL(pi || other) in nats; other defaults to pi0."""
        other = self.log_pi0_Y if log_other_Y is None else log_other_Y
        return float(np.exp(log_pi_Y) @ (log_pi_Y - other))

    def win_rate(self, log_pi_Y: Array, log_other_Y: Array | None = None) -> float:
        """Probability that a draw of pi has more reward than an independent draw of other, ties as one half."""
        other = self.log_pi0_Y if log_other_Y is None else log_other_Y
        wins_YY = (np.sign(self.reward_Y[:, None] - self.reward_Y[None, :]) + 1) / 2
        return float(np.exp(log_pi_Y) @ wins_YY @ np.exp(other))


def tabular(seed: int) -> TabularWorld:
    """The tabular world of this seed."""
    rng = np.random.default_rng(derive(seed, "tabular"))
    bodies = [b for n in range(LENGTH) for b in itertools.product(range(LETTERS), repeat=n)]
    logits = {body: rng.standard_normal(LETTERS + 1) for body in bodies}
    sequences = tuple((*body, EOS) for body in bodies)
    weights = rng.standard_normal(LETTERS)
    noise_Y = rng.standard_normal(len(sequences))
    counts_YL = np.array([[body.count(letter) for letter in range(LETTERS)] for body in bodies], dtype=float)
    equal_Y = np.array([sum(a == b for a, b in itertools.pairwise(body)) for body in bodies], dtype=float)
    length_Y = np.array([len(y) for y in sequences], dtype=float)
    reward_Y = np.tanh(counts_YL @ weights) - 0.5 * equal_Y - 0.1 * (length_Y - 3) ** 2 + 0.5 * noise_Y
    return TabularWorld(logits, sequences, reward_Y)
