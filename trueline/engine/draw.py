"""The law a token is drawn from, and the draw itself.

The law is: logits divided by the temperature, then top-k, then top-p on what top-k left, renormalised. Two log-probs
of the drawn token are recorded, because truncation belongs to the sampler and never to the policy:

    behaviour  log-prob under exactly this law, the one the token was drawn from
    full       log-prob at the same temperature without truncation

At temperature 1 without truncation both are the policy's own log-prob. At temperature 0 the law is a point mass on
the most likely token, so both are 0.0. A token as likely as the last one that top-k or top-p keeps is kept too: the
law then depends on the probabilities alone and never on the order in which a sort leaves equal ones.

Shape suffixes: B rows drawn together, V vocabulary, K blocks of the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trueline.errors import TruelineError

BLOCK = 128  # vocabulary entries summed together; two short searches replace a cumulative sum over the vocabulary
NUCLEUS = 512  # candidates first looked at for top-p; most nuclei are smaller, so the vocabulary is rarely sorted


@dataclass
class Drawn:
    """One token per row: ids_B (int64), behaviour_B and full_B (log-probs, at least float32)."""

    ids_B: Tensor
    behaviour_B: Tensor
    full_B: Tensor


@dataclass(frozen=True)
class Law:
    """Temperature, top-k and top-p. temperature 0 is greedy; top_k 0 and top_p 1 mean no truncation."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise TruelineError(f"temperature is {self.temperature}; expected a finite number, 0 (greedy) or above.")
        if not 0 < self.top_p <= 1:
            raise TruelineError(f"top_p is {self.top_p}; expected 0 < top_p <= 1 (1 keeps every token).")
        if self.top_k < 0:
            raise TruelineError(f"top_k is {self.top_k}; expected 0 (every token) or a positive number of tokens.")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            raise TruelineError(
                f"top_p={self.top_p} and top_k={self.top_k} have no effect at temperature 0, which always takes the "
                "most likely token. Leave them at 1 and 0, or raise the temperature."
            )

    def draw(self, logits_BV: Tensor, uniform_B: Tensor) -> Drawn:
        """One token per row by inverse CDF: the row's uniform number in [0, 1) decides and nothing else.

        Raises TruelineError where a logit is not finite, naming the row and the token.
        """
        z_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        low_B, high_B = z_BV.amin(-1), z_BV.amax(-1)  # both carry a NaN; aminmax over rows is 15 times slower
        if not bool((low_B.isfinite() & high_B.isfinite()).all()):
            raise _not_finite(z_BV)
        if self.temperature == 0:
            zero_B = torch.zeros_like(high_B)
            return Drawn(z_BV.argmax(-1), zero_B, zero_B)
        weight_BV = z_BV - high_B[:, None]  # 0 at the most likely token, so the sum lies in [1, V]
        if self.temperature != 1:
            weight_BV.div_(self.temperature)
        weight_BV.exp_()
        sums_BK = _block_sums(weight_BV)
        total_B = kept_B = sums_BK.sum(-1, dtype=torch.float64)
        if self.top_k or self.top_p < 1:
            weight_BV = self._truncated(weight_BV, total_B)
            sums_BK = _block_sums(weight_BV)
            kept_B = sums_BK.sum(-1, dtype=torch.float64)
        ids_B = _inverse_cdf(weight_BV, sums_BK, uniform_B)
        log_weight_B = (z_BV.gather(1, ids_B[:, None])[:, 0] - high_B).double() / self.temperature
        behaviour_B, full_B = log_weight_B - kept_B.log(), log_weight_B - total_B.log()
        return Drawn(ids_B, behaviour_B, full_B)

    def _truncated(self, weight_BV: Tensor, total_B: Tensor) -> Tensor:
        """The weights with zeros outside top-k and then outside top-p of what top-k left."""
        vocabulary = weight_BV.shape[1]
        if 0 < self.top_k < vocabulary:
            kth_B1 = weight_BV.topk(self.top_k).values[:, -1:]
            weight_BV = weight_BV.where(weight_BV >= kth_B1, 0)
            total_B = weight_BV.sum(-1, dtype=torch.float64)
        if self.top_p < 1:
            weight_BV = weight_BV.where(weight_BV >= _nucleus_edge(weight_BV, self.top_p * total_B), 0)
        return weight_BV


def _nucleus_edge(weight_BV: Tensor, mass_B: Tensor) -> Tensor:
    """The smallest weight in each row's nucleus, [B, 1]: the shortest run of largest weights that reaches mass_B."""
    candidates, vocabulary = min(NUCLEUS, weight_BV.shape[1]), weight_BV.shape[1]
    while True:
        top_BC = weight_BV.topk(candidates).values
        reached_BC = top_BC.cumsum(-1, dtype=torch.float64)
        if candidates == vocabulary or bool((reached_BC[:, -1] >= mass_B).all()):
            last_B = (reached_BC < mass_B[:, None]).sum(-1).clamp(max=candidates - 1)
            return top_BC.gather(1, last_B[:, None])
        candidates = min(candidates * 8, vocabulary)


def _block_sums(weight_BV: Tensor) -> Tensor:
    """Sums over blocks of the vocabulary, [B, K]; the last block may be short."""
    whole = weight_BV.shape[1] // BLOCK * BLOCK
    sums_BK = weight_BV[:, :whole].unflatten(1, (whole // BLOCK, BLOCK)).sum(-1) if whole else weight_BV[:, :0]
    return sums_BK if whole == weight_BV.shape[1] else torch.cat([sums_BK, weight_BV[:, whole:].sum(-1, True)], 1)


def _inverse_cdf(weight_BV: Tensor, sums_BK: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds uniform × total, [B]: its block first, then inside the block.

    A strict comparison can never land on a weight of zero, as long as the target stays below the total; the clamp
    in `_first_above` keeps it there when the block's sum and its cumulative sum round differently.
    """
    edges_BK = sums_BK.cumsum(-1, dtype=torch.float64)
    target_B = uniform_B.to(edges_BK) * edges_BK[:, -1]
    block_B = _first_above(edges_BK, target_B)
    before_B = torch.where(block_B > 0, edges_BK.gather(1, (block_B - 1).clamp(min=0)[:, None])[:, 0], 0)
    token_BW = block_B[:, None] * BLOCK + torch.arange(BLOCK, device=weight_BV.device)
    inside_BW = weight_BV.gather(1, token_BW.clamp(max=weight_BV.shape[1] - 1)).double()
    inside_BW.masked_fill_(token_BW >= weight_BV.shape[1], 0)
    return block_B * BLOCK + _first_above(inside_BW.cumsum(-1), target_B - before_B)


def _first_above(edges_BN: Tensor, target_B: Tensor) -> Tensor:
    """Index of the first edge above the target, per row; edges do not fall and the last one is positive."""
    below_last_B = torch.nextafter(edges_BN[:, -1], torch.zeros_like(target_B))
    return torch.searchsorted(edges_BN, torch.minimum(target_B, below_last_B)[:, None], right=True)[:, 0]


def _not_finite(z_BV: Tensor) -> TruelineError:
    row, token = (~z_BV.isfinite()).nonzero()[0].tolist()
    return TruelineError(
        f"The logit of token {token} is {z_BV[row, token].item()} in row {row} of {z_BV.shape[0]}; expected a finite "
        "number. The weights have probably diverged: look at the last steps' losses and gradient norms, and go back to "
        "a checkpoint from before."
    )
