"""The objectives' equations in plain NumPy, written from the papers' formulas and not from the package.

An oracle is named as its objective and takes the whole batch with every option given: a list of `Pair`s, or of
demonstrations (arrays of per-token log-probs). It returns the batch's loss. Nothing here is stable at large arguments.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass
class Pair:
    """Per-token log-probs of chosen (w) and rejected (l) response under the policy (y) and the reference, the responses'
    scores, and a scalar head's outputs."""

    y_w: np.ndarray
    y_l: np.ndarray
    ref_w: np.ndarray | None = None
    ref_l: np.ndarray | None = None
    score_w: float = 0.0
    score_l: float = 0.0
    value_w: float = 0.0
    value_l: float = 0.0

    @property
    def rho_w(self):
        return np.sum(self.y_w) - np.sum(self.ref_w)

    @property
    def rho_l(self):
        return np.sum(self.y_l) - np.sum(self.ref_l)

    @property
    def h(self):
        return self.rho_w - self.rho_l


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def surprise(z):
    """-log sigmoid(z)"""
    return np.log(1 + np.exp(-z))


def mean_over_pairs(one):
    """The batch's loss from the loss of one pair."""

    @functools.wraps(one)
    def batch(pairs, **options):
        return np.mean([one(p, **options) for p in pairs])

    return batch


# ---- demonstrations and scalar heads ---------------------------------------------------------------------------------


def sft(demonstrations):
    return -sum(np.sum(d) for d in demonstrations) / sum(len(d) for d in demonstrations)


@mean_over_pairs
def bt(p, center, margin):
    return surprise(p.value_w - p.value_l - margin) + center * (p.value_w + p.value_l) ** 2


# ---- the margin h and a link -----------------------------------------------------------------------------------------


@mean_over_pairs
def dpo(p, beta):
    return surprise(beta * p.h)


@mean_over_pairs
def cdpo(p, beta, epsilon):
    return np.dot([1 - epsilon, epsilon], [surprise(beta * p.h), surprise(-beta * p.h)])


@mean_over_pairs
def robust_dpo(p, beta, epsilon):
    clean, flipped = surprise(beta * p.h), surprise(-beta * p.h)
    return ((1 - epsilon) * clean - epsilon * flipped) / (1 - 2 * epsilon)


@mean_over_pairs
def ipo(p, beta):
    return (p.h - 1 / (2 * beta)) ** 2


@mean_over_pairs
def hinge(p, beta):
    return max(0.0, 1 - beta * p.h)


@mean_over_pairs
def exo(p, beta, epsilon):
    policy = np.array([sigmoid(beta * p.h), sigmoid(-beta * p.h)])
    label = np.array([1 - epsilon, epsilon])
    return np.sum(policy * np.log(policy / label))


@mean_over_pairs
def discopop(p, beta, tau):
    z = beta * p.h
    m = sigmoid(z / tau)
    return (1 - m) * surprise(z) + m * np.exp(-z)


@mean_over_pairs
def r_dpo(p, beta, alpha):
    return surprise(beta * p.h + alpha * (len(p.y_w) - len(p.y_l)))


@mean_over_pairs
def dpop(p, beta, penalty):
    fallen = max(0.0, np.sum(p.ref_w) - np.sum(p.y_w))
    return surprise(beta * (p.h - penalty * fallen))


@mean_over_pairs
def dpo_margin(p, beta, alpha, offset):
    difference = p.score_w - p.score_l
    return surprise(beta * p.h - alpha * {"linear": difference, "log": np.log(difference)}[offset])


@mean_over_pairs
def dpo_gamma(p, beta, gamma):
    against = np.sum(p.ref_l) - np.sum(p.ref_w)
    return surprise(beta * (np.sum(p.y_w) - np.sum(p.y_l) + gamma * against))


@mean_over_pairs
def ld_dpo(p, beta, alpha):
    n = min(len(p.y_w), len(p.y_l))

    def split(own, reference):
        ratio = np.asarray(own) - np.asarray(reference)
        return ratio[:n].sum() + alpha * ratio[n:].sum()

    return surprise(beta * (split(p.y_w, p.ref_w) - split(p.y_l, p.ref_l)))


@mean_over_pairs
def rpo(p, beta, alpha, per_token):
    likelihood = np.mean(p.y_w) if per_token else np.sum(p.y_w)
    return surprise(beta * p.h) - alpha * likelihood


@mean_over_pairs
def f_dpo(p, beta, divergence, alpha):
    def derivative(u):
        if divergence == "reverse_kl":
            return np.log(u)
        if divergence == "forward_kl":
            return 1 - 1 / u
        if divergence == "js":
            return np.log(2 * u / (1 + u))
        return (u ** (alpha - 1) - 1) / (alpha - 1)

    return surprise(beta * (derivative(np.exp(p.rho_w)) - derivative(np.exp(p.rho_l))))


# ---- per-token means -------------------------------------------------------------------------------------------------


@mean_over_pairs
def ln_dpo(p, beta):
    return surprise(beta * (p.rho_w / len(p.y_w) - p.rho_l / len(p.y_l)))


@mean_over_pairs
def simpo(p, beta, gamma):
    return surprise(beta * np.mean(p.y_w) - beta * np.mean(p.y_l) - gamma)


# ---- each response by itself -----------------------------------------------------------------------------------------


@mean_over_pairs
def nca(p, beta):
    return surprise(beta * p.rho_w) + surprise(-beta * p.rho_w) / 2 + surprise(-beta * p.rho_l) / 2


@mean_over_pairs
def bco_pair(p, beta):
    return surprise(beta * p.rho_w) + surprise(-beta * p.rho_l)


@mean_over_pairs
def apo_zero(p, beta):
    return (1 - sigmoid(beta * p.rho_w)) + sigmoid(beta * p.rho_l)


@mean_over_pairs
def apo_down(p, beta):
    return sigmoid(beta * p.rho_w) + (1 - sigmoid(beta * p.h))


@mean_over_pairs
def sppo(p, beta):
    eta, won, lost = 1 / beta, 1.0, 0.0
    return (p.rho_w - eta * (won - 0.5)) ** 2 + (p.rho_l - eta * (lost - 0.5)) ** 2


# ---- without a reference, or with a likelihood term over the batch's tokens ------------------------------------------


@mean_over_pairs
def slic(p, margin, anchor):
    return max(0.0, margin - np.sum(p.y_w) + np.sum(p.y_l)) - anchor * np.sum(p.y_w)


def orpo(pairs, weight):
    def odds(logp):
        return np.exp(np.mean(logp)) / (1 - np.exp(np.mean(logp)))

    ratios = [np.log(odds(p.y_w) / odds(p.y_l)) for p in pairs]
    return sft([p.y_w for p in pairs]) + weight * np.mean([surprise(r) for r in ratios])


def cpo(pairs, beta, alpha):
    preference = [surprise(beta * (np.sum(p.y_w) - np.sum(p.y_l))) for p in pairs]
    return np.mean(preference) + alpha * sft([p.y_w for p in pairs])


# ---- the batch as two distributions ----------------------------------------------------------------------------------


def aot(pairs, beta, epsilon, paired):
    if paired:
        upper = np.sort([np.sum(p.y_w) - np.sum(p.y_l) for p in pairs])
        lower = np.sort([np.sum(p.ref_w) - np.sum(p.ref_l) for p in pairs])
    else:
        upper, lower = np.sort([p.rho_w for p in pairs]), np.sort([p.rho_l for p in pairs])
    z = beta * (upper - lower)
    return np.mean((1 - epsilon) * surprise(z) + epsilon * surprise(-z))
