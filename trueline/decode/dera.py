"""DeRa: decoding-time realignment, the strength of an aligned model chosen at decoding time.

    h = (1 - sum_i weight_i) h_policy + sum_i weight_i h_aligned_i,      next token ~ softmax(h)

arXiv 2402.02992. With the policy as the reference and one model aligned at beta, weight w approximates the model aligned at beta / w: w = 0 is
the policy, 1 the aligned model, above 1 stronger than was trained. Exact for sequences would be pi0^(1-w) pi_beta^w; token by token it
differs by the prefixes' normalisers (equal for responses of one token). Mixed in fp32 before masks, temperature and truncation.

weight: of the model in the role `aligned`. weights: several models by name, as 'dpo=0.5,harmless=0.3', in place of it. The default 1.0 is the
aligned model itself.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.proposal import Mix, Term
from trueline.decoding.request import Request
from trueline.errors import TruelineError


@decoder(
    unit="token",
    hook="mix",
    models="aligned?",
    arxiv="2402.02992",
    paper="Decoding-time Realignment of Language Models",
)
def dera(engine: Any, request: Request, *, weight: float = 1.0, weights: str = "") -> Mix:
    shares = {engine.role(request, "aligned"): weight} if not weights else {}
    for part in filter(None, weights.split(",")):
        name, _, value = part.partition("=")
        try:
            shares[engine.role(request, name.strip())] = float(value)
        except ValueError as error:
            raise TruelineError(
                f"dera.weights has '{part}'; expected NAME=NUMBER, as in dpo=0.5,harmless=0.3."
            ) from error
    rest = 1.0 - sum(shares.values())
    return Mix((Term("policy", rest), *(Term(name, share) for name, share in shares.items())))
