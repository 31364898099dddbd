"""Proxy tuning: steer the policy by what tuning did to a small model.

    h = h_policy + weight (h_expert - h_anti_expert)

arXiv 2401.08565 (and DExperts, arXiv 2105.03023): expert and anti_expert are a small model after and before tuning, of the policy's vocabulary.
weight = 1 is the paper's. The same mixer as DeRa with another triple.
"""

from __future__ import annotations

from typing import Any

from trueline.decode.contract import decoder
from trueline.decoding.proposal import Mix, Term
from trueline.decoding.request import Request


@decoder(
    unit="token", hook="mix", models="expert anti_expert", arxiv="2401.08565", paper="Tuning Language Models by Proxy"
)
def proxy_tuning(engine: Any, request: Request, *, weight: float = 1.0) -> Mix:
    expert, anti = engine.role(request, "expert"), engine.role(request, "anti_expert")
    return Mix((Term("policy", 1.0), Term(expert, weight), Term(anti, -weight)))
