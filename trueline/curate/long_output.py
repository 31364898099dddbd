r"""Long-form demonstrations whose length is what was asked for (minimum tuning for long output, arXiv 2410.10210).

    S(x, y) = 100 max(0, 1 - (y / x - 1) / 3)    where y > x
    S(x, y) = 100 max(0, 1 - (x / y - 1) / 2)    where y <= x

x is the length that the prompt asks for and y that of the response, in words (a Chinese character is a word). Kept are rows
whose prompt names exactly one length and with S >= `least`. 80 is the released filter's: up to 1.6 times too long, down to
x / 1.4. From LongWriter-6k it leaves 1,748 rows with a length and 666 of those by S. S is also the metric S_l of LongBench-Write.

Lengths are recognised as digits or Chinese numerals before 字, and as "N words" (also "N-word", "1,000 words", "2k words").
Text in quotation marks is not the request and is not read. Only the last user turn is; where an earlier turn asks as well, or
two different lengths are named, the row says no one length and is dropped. Responses are the score's y as they stand: one that
was cut off by a length limit should be removed before.
"""

from __future__ import annotations

import re

import numpy as np

from trueline.curate.contract import Pool, Scored, curator
from trueline.curating.text import last_question, words
from trueline.errors import TruelineError
from trueline.groups import Prompt, response_text

DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
UNITS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(
    r"([零〇一二两三四五六七八九十百千万\d.,]*[零〇一二两三四五六七八九十百千万\d])\s*(?:个|多|余)?\s*字(?!母|体|节|符|典|幕|段)"
)
_WORDS = re.compile(r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)\s*(k)?[\s-]*(?:words?\b)", re.I)
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”]*”|「[^」]*」|《[^》]*》|`[^`]*`")


@curator(
    kind="select",
    reads="demonstrations",
    model="none",
    arxiv="2410.10210",
    paper="Minimum tuning to unlock long output",
)
def long_output(pool: Pool, *, least: float = 80.0) -> Scored:
    if not 0 <= least <= 100:
        raise TruelineError(f"long_output.least is {least:g}; the length score lies between 0 and 100.")
    score, asked, written, none, several = [], [], [], [], []
    for batch in pool.batches():
        for group in batch:
            found = requested_lengths(group.prompt)
            x = found.pop() if len(found) == 1 else 0
            y = len(words(response_text(group.responses[0]))) if group.responses else 0
            none.append(not found and x == 0)
            several.append(len(found) > 1)
            asked.append(x)
            written.append(y)
            score.append(length_score(x, y) if x and y else np.nan)
    score_N = np.array(score, dtype=np.float64)
    return Scored(
        score_N,
        dropped={
            "the prompt asks for no length": np.array(none),
            "the prompt asks for several lengths": np.array(several),
            "the response is not of the length asked for": score_N < least,
        },
        columns={"asked": np.array(asked), "written": np.array(written)},
    )


def length_score(x: float, y: float) -> float:
    """S for x words asked for and y written, both above 0."""
    if x <= 0:
        raise TruelineError(f"The length asked for is {x:g}; expected above 0.")
    if y <= 0:
        return 0.0
    return 100 * max(0.0, 1 - (y / x - 1) / 3) if y > x else 100 * max(0.0, 1 - (x / y - 1) / 2)


def requested_lengths(prompt: Prompt) -> set[int]:
    """Every different length that the user asks for; an earlier turn that asks as well makes them several."""
    found = _lengths(last_question(prompt))
    if isinstance(prompt, list):
        for message in prompt[:-1]:
            if message.get("role") == "user" and (earlier := _lengths(str(message.get("content", "")))):
                found |= earlier | {-1}  # which of the turns holds is not for a rule to say
    return found


def _lengths(text: str) -> set[int]:
    text = _QUOTED.sub(" ", text)
    found = {chinese_number(match) for match in _CHINESE.findall(text)}
    for digits, thousands in _WORDS.findall(text):
        found.add(round(float(digits.replace(",", "")) * (1000 if thousands else 1)))
    return {x for x in found if x}


def chinese_number(text: str) -> int:
    """'三千' -> 3000, '一万二千' -> 12000, '1.5万' -> 15000, '800' -> 800; 0 where it is no number."""
    text = text.replace(",", "")
    head, wan, tail = text.partition("万")
    if wan:
        high, low = chinese_number(head), chinese_number(tail) if tail else 0
        if re.fullmatch(r"\d+\.\d+", head):
            return round(float(head) * 10_000) + low
        if len(tail) == 1 and tail in DIGITS:  # 一万二 is 12,000
            low = DIGITS[tail] * 1000
        return high * 10_000 + low
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return round(float(text))
    if not set(text) & set(UNITS):  # digits one by one: 二〇二四
        return int("".join(str(DIGITS.get(c, c)) for c in text)) if text else 0
    total = digit = 0
    for c in text:
        if c in UNITS:
            total += (digit or 1) * UNITS[c]
            digit = 0
        else:
            digit = 10 * digit + (DIGITS[c] if c in DIGITS else int(c))
    if digit and text[-2] in UNITS:  # 三千五 is 3,500, where 三千零五 is 3,005
        return total + digit * UNITS[text[-2]] // 10
    return total + digit
