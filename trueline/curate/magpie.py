"""Magpie: prompt an aligned model with nothing, and it writes the question; then ask it that question (arXiv 2406.08464).

    x ~ pi(. | template up to where a user's words begin)        y ~ pi(. | x), greedy
    keep: quality good or excellent;  reward > `least_reward`;  x does not end with ":";  no near-duplicate before it

Instructions are drawn at temperature 1, top_p 1; responses greedily. The prefix is found by rendering a sentinel and cutting at
it, so default system prompts are part of it and no BOS is doubled. An instruction counts only if it ended by itself, holds no
special token and is no template junk. `judge` (a folder or MODEL@URL) rates input quality, one of five words; `reward` (any
judge of `trueline align`, such as reward:PATH) scores the response. Without them those filters are off, and the page says so.
The reward's threshold is that of one reward model: -10 is the released default and means nothing for another.

Near-duplicates: d^2 < 0.05 between unit vectors, that is cosine > 0.975 (the released default, in squared distance), by
connected component: the first of each stays. The released rule drops whoever has an earlier neighbour, dropped or not, and can
lose a whole group. Vectors are last states of --model (released: all-mpnet-base-v2; set `similarity` anew for each).

Score: the length of the response, as the released filter takes the longest 300 K with --budget. That is a bias to verbosity;
the page shows it. responses > 1 makes pairs: that many draws at temperature 1, chosen the best reward, rejected the worst,
and a row whose rewards tie is refused. What the teacher's licence says of its outputs is for you to find out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from trueline.curate.contract import Made, Pool, curator, positive
from trueline.curating.neighbours import first_of_each
from trueline.errors import TruelineError
from trueline.groups import Group, Response

QUALITIES = ("very poor", "poor", "average", "good", "excellent")
RATE = (
    "Rate the quality of the request below by how clear, specific and coherent it is: very poor, poor, average, good or "
    "excellent. Answer with the rating alone, in double brackets, for example [[average]].\n\n<request>\n{instruction}\n</request>"
)
_JUNK = re.compile(r"<\|[^|>]{1,40}\|>|\[/?INST\]|<<?/?SYS>>?|^\s*(?:user|assistant|system)\s*[:\n]", re.I)
_VERDICT = re.compile(r"\[\[\s*([a-z ]+?)\s*\]\]", re.I)
BATCH = 64


@curator(kind="make", reads="nothing", model="needed", arxiv="2406.08464", paper="Magpie: alignment data synthesis by prompting aligned models with nothing")  # fmt: skip
def magpie(
    pool: Pool,
    *,
    count: int = 100,
    responses: int = 1,
    judge: str | None = None,
    reward: str | None = None,
    least_reward: float = -10.0,
    similarity: float = 0.975,
) -> Iterator[Made]:
    positive("magpie", count=count, responses=responses)
    if responses > 1 and reward is None:
        raise TruelineError(
            "magpie with several responses pairs the best with the worst and needs --reward, such as reward:PATH."
        )
    if reward is None and least_reward != -10.0:
        raise TruelineError("magpie.least_reward has no effect without --reward. Give one, or leave it out.")
    shop = pool.workshop
    prefix = shop.prefix()
    drawn = shop.answers([prefix] * count, number=range(count), must_end=True)
    proposals = [(text or "").strip() for text in drawn]
    reasons = [None if d is not None else "the instruction did not end by itself" for d in drawn]
    reasons = [r or _unusable(p) for r, p in zip(reasons, proposals, strict=True)]
    _duplicates(pool, proposals, reasons, similarity)
    if judge is not None:
        _rate(pool, judge, proposals, reasons)
    alive = [i for i, r in enumerate(reasons) if r is None]
    answered = _answered(pool, [proposals[i] for i in alive], responses)
    rewards = shop.feedback(reward, answered) if reward is not None else None
    rows = {i: _row(g, rewards[k] if rewards else None, least_reward) for k, (i, g) in enumerate(zip(alive, answered, strict=True))}  # fmt: skip
    for i, (text, reason) in enumerate(zip(proposals, reasons, strict=True)):
        yield rows[i] if i in rows else Made({"prompt": [{"role": "user", "content": text}]}, reason, prompt=text)


def _unusable(text: str) -> str | None:
    if not text:
        return "empty instruction"
    if _JUNK.search(text):
        return "template junk in the instruction"
    return "the instruction ends with a colon" if text.endswith(":") else None


def _duplicates(pool: Pool, proposals: list[str], reasons: list[str | None], similarity: float) -> None:
    alive = [i for i, r in enumerate(reasons) if r is None]
    if similarity >= 1 or len(alive) < 2:
        return
    first = first_of_each(pool.workshop.embed([proposals[i] for i in alive]), similarity)
    for k, i in enumerate(alive):
        if first[k] != k:
            reasons[i] = "near-duplicate of an earlier instruction"


def _rate(pool: Pool, judge: str, proposals: list[str], reasons: list[str | None]) -> None:
    alive = [i for i, r in enumerate(reasons) if r is None]
    asked: Any = [[{"role": "user", "content": RATE.replace("{instruction}", proposals[i])}] for i in alive]
    for i, answer in zip(alive, pool.workshop.answers(asked, temperature=0.0, by=judge), strict=True):
        found = {v.lower() for v in _VERDICT.findall(answer or "")} & set(QUALITIES)
        if len(found) != 1:
            reasons[i] = "no readable quality rating"
        elif not found & {"good", "excellent"}:
            reasons[i] = f"quality rated {found.pop()}"


def _answered(pool: Pool, instructions: list[str], responses: int) -> list[Group]:
    """One greedy answer each, or several draws."""
    prompts: Any = [[{"role": "user", "content": text}] for text in instructions]
    if responses == 1:
        texts = [pool.workshop.answers(prompts, temperature=0.0, must_end=True)]
    else:
        texts = [pool.workshop.answers(prompts, number=k, must_end=True) for k in range(responses)]
    return [
        Group(p, [Response(text=t[i] or "", messages=[{"role": "assistant", "content": t[i] or ""}]) for t in texts])
        for i, p in enumerate(prompts)
    ]


def _row(group: Group, rewards: list[float | None] | None, least: float) -> Made:
    texts = [r.text for r in group.responses]
    asked = str(group.prompt[-1]["content"]) if isinstance(group.prompt, list) else group.prompt
    row: dict[str, Any] = {"prompt": group.prompt, "completion": [{"role": "assistant", "content": texts[0]}]}
    if not all(t.strip() for t in texts):
        return Made(row, "a response is empty or did not end", prompt=asked)
    if rewards is None:
        return Made(row, None, float(len(texts[0])), asked)
    known = [r for r in rewards if r is not None]
    if len(known) < len(rewards):
        return Made(row, "no reward", prompt=asked)
    best, worst = int(np.argmax(known)), int(np.argmin(known))
    if len(texts) > 1:
        said = [[{"role": "assistant", "content": texts[i]}] for i in (best, worst)]
        row = {"prompt": group.prompt, "chosen": said[0], "rejected": said[1], "score_chosen": known[best], "score_rejected": known[worst]}  # fmt: skip
        if texts[best] == texts[worst]:  # one and the same where all rewards tie
            return Made(row, "all responses are rated alike", prompt=asked)
    else:
        row["reward"] = known[0]
    reason = None if known[best] > least else "reward too low"
    return Made(row, reason, float(len(texts[best])), asked)
