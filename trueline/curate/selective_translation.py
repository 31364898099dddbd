"""Selective translation: another language, with code, mathematics, JSON and names as they were (arXiv 2507.14304).

    mask(x) -> translate -> unmask,      kept only if  P(y) = P(x)  and every sentinel came back

P(x) are the protected spans (`trueline/curating/protect.py`): fenced and inline code, LaTeX, JSON, tags, URLs,
placeholders, paths, identifiers. They are taken out before the translator sees the text, so any translator will do, and what
came back is checked: spans and numbers as multisets, each sentinel exactly once (order is free, grammar moves words), key trees of
JSON, the skeleton of lines, the length ratio within `shortest`..`longest`, and the language where it can be told.

Prompt and every response of a row are translated and all must pass: with only the chosen side fluent, a pair would teach
fluency. `share` of the rows is translated (whole prompts, by hash); the others are written as they are, because the paper mixes both.
`judge` (folder or MODEL@URL; better not the translator, which likes its own work) rates each translation from 1 to 5 and must give
`least`. The paper's rubric is called FAITH: fluency, accuracy, idiomaticity, terminology, handling of format (its
expansion could not be checked); the wording here is ours. A prompt *about* English text should not be translated: `skip` is a
regular expression, and rows whose prompt it matches are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trueline.curate.contract import Made, Pool, curator
from trueline.curating.language import language as language_of
from trueline.curating.protect import Masked, fidelity, mask, unmask
from trueline.curating.text import plain_prompt, text_key
from trueline.curating.writing import from_parent, row_of, with_texts
from trueline.errors import TruelineError
from trueline.groups import Group, response_text

ASK = (
    "Translate the text below into {language}. Marks such as ⟦0⟧ stand for parts that must not be translated: keep each of them "
    "exactly once, where it belongs. Keep line breaks, lists and numbers. Write the translation and nothing else.\n\n{text}"
)
GRADE = (
    "Rate this translation into {language} from 1 (unusable) to 5 (flawless) by fluency, accuracy, idiom, terminology and handling "
    "of format together. Answer with the number alone, in double brackets, for example [[3]].\n\n"
    "<source>\n{source}\n</source>\n\n<translation>\n{translation}\n</translation>"
)
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")


@curator(kind="make", reads="any", model="needed", arxiv="2507.14304", paper="LLM-based selective translation")
def selective_translation(
    pool: Pool,
    *,
    language: str = "Hindi",
    code: str | None = None,
    share: float = 1.0,
    shortest: float = 0.3,
    longest: float = 3.0,
    judge: str | None = None,
    least: float = 4.0,
    skip: str | None = None,
) -> Iterator[Made]:
    if not 0 <= share <= 1:
        raise TruelineError(f"selective_translation.share is {share:g}; expected from 0 to 1.")
    if not 0 < shortest <= longest:
        raise TruelineError("selective_translation: shortest must be above 0 and not above longest.")
    if judge is None and least != 4.0:
        raise TruelineError("selective_translation.least has no effect without --judge.")
    unwanted = re.compile(skip) if skip else None
    for batch in pool.batches(64):
        chosen = [text_key(plain_prompt(g.prompt)) / 2**64 < share for g in batch]
        wanted = [g for g, c in zip(batch, chosen, strict=True) if c and not _skipped(g, unwanted)]
        done = iter(_translated(pool, wanted, language, code, (shortest, longest), judge, least))
        for group, c in zip(batch, chosen, strict=True):
            asked = plain_prompt(group.prompt)
            if not c:
                yield Made({**row_of(group), **from_parent(group), "translated": False}, prompt=asked)
            elif _skipped(group, unwanted):
                yield Made({**row_of(group), **from_parent(group)}, "a prompt that `skip` names", prompt=asked)
            else:
                yield next(done)


def _skipped(group: Group, unwanted: re.Pattern[str] | None) -> bool:
    return unwanted is not None and bool(unwanted.search(plain_prompt(group.prompt)))


def _translated(pool: Pool, groups: list[Group], language: str, code: str | None, ratio: tuple[float, float], judge: str | None, least: float) -> Iterator[Made]:  # fmt: skip
    sources = [_texts(g) for g in groups]
    flat = [text for texts in sources for text in texts]
    masked = [mask(text) for text in flat]
    asked: Any = [
        [{"role": "user", "content": ASK.replace("{language}", language).replace("{text}", m.text)}] for m in masked
    ]
    given = pool.workshop.answers(asked, temperature=0.0, must_end=True) if flat else []
    checked = [_checked(s, m, a, code, ratio) for s, m, a in zip(flat, masked, given, strict=True)]
    if judge is not None:
        _judge(pool, judge, language, least, flat, checked)
    at = 0
    for group, texts in zip(groups, sources, strict=True):
        part = checked[at : at + len(texts)]
        at += len(texts)
        reason = next((why for _, why in part if why), None)
        translated = _with(group, [text for text, _ in part])
        row = {**row_of(translated), **from_parent(group), "translated": True}
        yield Made(row, reason, prompt=plain_prompt(group.prompt))


def _texts(group: Group) -> list[str]:
    """Every message of the prompt (or the prompt), then every response; several turns in a response are refused."""
    if any(len(r.messages or ()) > 1 for r in group.responses):
        raise TruelineError(
            f"{group.origin}: a response of several turns cannot be translated as one. Split the row into turns."
        )
    said = [group.prompt] if isinstance(group.prompt, str) else [str(m["content"]) for m in group.prompt]
    return [*said, *(response_text(r) for r in group.responses)]


def _with(group: Group, texts: list[str]) -> Group:
    count = len(texts) - len(group.responses)
    prompt: Any = texts[0] if isinstance(group.prompt, str) else [
        {**m, "content": t} for m, t in zip(group.prompt, texts[:count], strict=True)
    ]  # fmt: skip
    return with_texts(group, prompt, texts[count:])


def _checked(source: str, masked: Masked, answer: str | None, code: str | None, ratio: tuple[float, float]) -> tuple[str, str | None]:  # fmt: skip
    """(the translation, why it is refused)."""
    if not source.strip():
        return source, None
    if answer is None or not answer.strip():
        return "", "no translation came, or it was cut off"
    text = unmask(answer, masked.spans)
    lost = fidelity(source, masked, text, answer).lost()
    if lost:
        return text, f"lost {lost[0]}"
    if not ratio[0] <= len(answer) / max(1, len(masked.text)) <= ratio[1]:
        return text, "length far from the source's"
    found = language_of(answer)
    if code is not None and found not in (code, "?"):
        return text, f"the language looks like {found}"
    return text, None


def _judge(pool: Pool, judge: str, language: str, least: float, sources: list[str], checked: list[tuple[str, str | None]]) -> None:  # fmt: skip
    alive = [i for i, (_, why) in enumerate(checked) if why is None and sources[i].strip()]
    asked: Any = [
        [{"role": "user", "content": GRADE.replace("{language}", language).replace("{source}", sources[i]).replace("{translation}", checked[i][0])}]
        for i in alive
    ]  # fmt: skip
    for i, answer in zip(alive, pool.workshop.answers(asked, temperature=0.0, by=judge) if asked else [], strict=True):
        found = set(_RATING.findall(answer or ""))
        if len(found) != 1:
            checked[i] = (checked[i][0], "no readable rating of the translation")
        elif float(found.pop()) < least:
            checked[i] = (checked[i][0], "translation rated too low")
