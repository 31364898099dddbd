"""I-SHEEP, its data side: a base model writes tasks and answers and grades them itself (arXiv 2408.08072).

(1) three random tasks of the data, and the model goes on with another (`examples` 3); (2) it answers it without examples;
(3) rules drop empty texts, leaked roles and answer-choice debris; (4) it grades quality and instruction following from 1 to
10, each as `score||explanation`; a row stays iff both are greater than `above`.

`above` 8 is the released script's threshold; -1 is no grading; 10 keeps nothing. A grade that cannot be read refuses the row: it is
never taken for a good one. `grader` is another model (folder or MODEL@URL); the default is the writer itself. `earlier` names
files of earlier rounds that nothing may repeat. `criteria` both, quality or following are the released ablations.

Between rounds the paper trains the *base* model anew on the rows of this round, not the model of the last round (its `one_step`
switch; training on compounds a style): `trueline align --model BASE --objective sft --data this/data.jsonl`, then call
this again with the result. The prompts' wording is ours; temperature 1 for tasks and 0 for answers and grades.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from trueline.curate.contract import Made, Pool, curator
from trueline.curating.pool import FilePool
from trueline.curating.text import plain_prompt, text_key
from trueline.curating.writing import repeats
from trueline.errors import TruelineError
from trueline.randomness import derive

TASK = "### Task:"
GRADES = {
    "quality": "how helpful, correct, complete and clear the response is",
    "following": "how exactly the response does what the instruction asks for, no more and no less",
}
GRADE = (
    "Grade {what}, from 1 to 10. Answer with the number, two bars and a short explanation, like this: 7||because ...\n\n"
    "Instruction: {instruction}\n\nResponse: {response}"
)
_ROLES = re.compile(r"(^|\n)\s*(human|user|assistant|system|###)\s*:", re.I)
_CHOICES = re.compile(r"^\s*(?:[A-E][.)]\s*){1,5}$|^\s*(?:option|choice)s?\s*[:.]?\s*$", re.I)
_SCORE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*\|\|")


@curator(kind="make", reads="prompts", model="needed", arxiv="2408.08072", paper="I-SHEEP: self-alignment of LLM from scratch (data side)")  # fmt: skip
def i_sheep(
    pool: Pool,
    *,
    count: int = 100,
    examples: int = 3,
    above: float = 8.0,
    criteria: Literal["both", "quality", "following"] = "both",
    grader: str | None = None,
    earlier: list[str] = [],  # noqa: B006
) -> Iterator[Made]:
    if count < 1 or examples < 1:
        raise TruelineError("i_sheep: count and examples must be 1 or more.")
    if above < 0 and (grader or criteria != "both"):
        raise TruelineError("i_sheep: with `above` below 0 nothing is graded; grader and criteria have no effect.")
    seeds = [plain_prompt(g.prompt).strip() for batch in pool.batches() for g in batch]
    rng = np.random.Generator(np.random.PCG64(derive(pool.seed, "i_sheep")))
    shown = [[seeds[i] for i in rng.choice(len(seeds), min(examples, len(seeds)), replace=False)] for _ in range(count)]
    asked_for = [task_prompt(s) for s in shown]
    drawn = pool.workshop.answers(asked_for, number=repeats(asked_for, {}))
    tasks = [(text or "").split(TASK)[0].strip() for text in drawn]
    known = {text_key(s) for s in seeds} | {
        text_key(plain_prompt(g.prompt)) for path in earlier for b in FilePool.open([path], seed=0).batches() for g in b
    }
    reasons: list[str | None] = []
    for task in tasks:
        reason = rule(task) or ("a task that was there before" if text_key(task) in known else None)
        known.add(text_key(task))
        reasons.append(reason)
    alive = [i for i, r in enumerate(reasons) if r is None]
    asked: Any = [[{"role": "user", "content": tasks[i]}] for i in alive]
    answers = [(a or "").strip() for a in pool.workshop.answers(asked, temperature=0.0)]
    rows = {i: {"prompt": tasks[i], "completion": a} for i, a in zip(alive, answers, strict=True)}
    for i, answer in zip(alive, answers, strict=True):
        reasons[i] = rule(answer)
    grades = _graded(pool, {i: rows[i] for i in alive if reasons[i] is None}, criteria, grader) if above >= 0 else {}
    for i, task in enumerate(tasks):
        row: dict[str, Any] = rows.get(i, {"prompt": task, "completion": ""})
        given = grades.get(i, {})
        reason = reasons[i] or graded_out(given, above)
        told = [v for v in given.values() if v is not None]
        yield Made(
            {**row, **{f"grade_{k}": v for k, v in given.items()}}, reason, float(np.mean(told)) if told else None, task
        )


def task_prompt(tasks: list[str]) -> str:
    """Tasks, and the start of the next."""
    return "".join(f"{TASK} {t}\n\n" for t in tasks) + TASK


def rule(text: str) -> str | None:
    """Why a task or an answer is no text at all; None where it may be one."""
    if not text.strip():
        return "empty"
    if _ROLES.search(text):
        return "a role leaked into the text"
    return "answer choices without a question" if _CHOICES.match(text) else None


def graded_out(grades: dict[str, float | None], threshold: float) -> str | None:
    """A missing grade refuses, and so does one that is not above the threshold."""
    if any(v is None for v in grades.values()):
        return "a grade that cannot be read"
    low = [name for name, v in grades.items() if v is not None and v <= threshold]
    return f"{low[0]} graded {threshold:g} or lower" if low else None


def read_grade(answer: str | None) -> float | None:
    """The number before the bars, from 1 to 10."""
    found = _SCORE.match(answer or "")
    value = float(found[1]) if found else 0.0
    return value if 1 <= value <= 10 else None


def _graded(pool: Pool, rows: dict[int, dict[str, Any]], criteria: str, grader: str | None) -> dict[int, dict[str, float | None]]:  # fmt: skip
    names = list(GRADES) if criteria == "both" else [criteria]
    found: dict[int, dict[str, float | None]] = {i: {} for i in rows}
    for name in names:
        asked: Any = [
            [
                {
                    "role": "user",
                    "content": GRADE.format(what=GRADES[name], instruction=r["prompt"], response=r["completion"]),
                }
            ]
            for r in rows.values()
        ]
        for i, answer in zip(rows, pool.workshop.answers(asked, temperature=0.0, by=grader), strict=True):
            found[i][name] = read_grade(answer)
    return found
