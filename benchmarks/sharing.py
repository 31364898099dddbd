"""What sharing a prompt gains over the number of responses k and the prompt's share of the tokens, beside its bound.

The bound is U/S of the engine notes: k (P + R) tokens without sharing over P + k R with it. Time is forward and backward
of a body of four layers with a head of few words (the head reads response tokens only, shared or not). Both ways take the
same rows: shared as one group of k responses, unshared as k groups of one, end to end without padding.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.meter import Meter
from benchmarks.workload import Sizes

LAYERS = 4
VOCABULARY = 512
ROUNDS = 3


def bound(share: float, k: int, length: int) -> float:
    """U/S for prompts of round(share * length) tokens and k responses of the rest."""
    prompt = round(share * length)
    return k * length / (prompt + k * (length - prompt))


def groups_of(share: float, k: int, length: int, tokens: int) -> tuple[list[Any], list[Any]]:
    """Encoded groups (shared, apart) with at least `tokens` unshared tokens."""
    from trueline.groups import Group, Response

    draw = random.Random(0)
    prompt = round(share * length)

    def ids(count: int, first: int) -> list[int]:
        return [first, *(draw.randrange(VOCABULARY) for _ in range(count - 1))]

    shared, apart = [], []
    for _ in range(-(-tokens // (k * length))):
        start = ids(prompt, 0)
        rows = [ids(length - prompt, i) for i in range(k)]  # first tokens differ: no more than the prompt is shared
        shared.append(Group("", [Response(ids=r, mask=[True] * len(r)) for r in rows], prompt_ids=start))
        apart += [Group("", [Response(ids=r, mask=[True] * len(r))], prompt_ids=start) for r in rows]
    return shared, apart


def sharing(folder: Path, sizes: Sizes, meter: Meter) -> dict[str, Any]:
    """Every (k, share): the gain of each round, alternating. efficiency: gain over bound, of every round in the worst cell."""
    import torch
    from transformers import Qwen2ForCausalLM

    from trueline.engine.layout import Layout
    from trueline.engine.policy import Policy

    meter.loaded()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(sizes.model_config(layers=LAYERS, vocabulary=VOCABULARY))
    policy = Policy(model, max_length=sizes.shared_length).train()
    assert policy.mode == "shared", policy.probe_result

    def seconds(groups: list[Any]) -> float:
        layout = Layout.of(groups)
        policy.zero_grad(set_to_none=True)
        start = time.perf_counter()
        policy(layout).logp_N.sum().backward()
        return time.perf_counter() - start

    cells = []
    with meter.region():
        for k in sizes.widths:
            for share in sizes.shares:
                shared, apart = groups_of(share, k, sizes.shared_length, sizes.shared_tokens)
                seconds(shared), seconds(apart)  # first calls on these shapes
                gains = [seconds(apart) / seconds(shared) for _ in range(ROUNDS)]
                most = bound(share, k, sizes.shared_length)
                efficiency = [g / most for g in gains]
                cells.append(
                    {
                        "k": k,
                        "share": share,
                        "gain": statistics.median(gains),
                        "bound": most,
                        "efficiency": efficiency,
                    }
                )
    worst = min(cells, key=lambda c: statistics.median(c["efficiency"]))
    return {"units": len(cells), "cells": cells, "efficiency": worst["efficiency"]}
