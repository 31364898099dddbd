"""ISARA: from fewer than a hundred examples, a base model writes more of the same kind (arXiv 2401.06785).

Each round, from a pool that starts with the data: (1) `shots` random questions in a row, and the model goes on with another;
(2) for each new question the k = `shots` nearest pairs of the pool; (3) those pairs and the question, and the model writes
the answer; (4) near-duplicates of the pool, empty and malformed ones are refused; (5) what is left joins the pool.

Prompts hold questions and answers and no word of instruction, so a base model will do. Nearest is by cosine of hashed
words (`by` words) or of last states of --model (`by` hidden); a question never retrieves itself. A new question is refused where
its cosine to the pool exceeds `similarity`. rounds 0 gives nothing beyond the data; shots 0 asks without examples.
The paper's loop trains the model on seeds and new pairs between rounds, and finds that rounds beat one large one: train with
`trueline align --objective sft` on data and result, and call this again with the new model (that is rounds 1 each
time, the pool being what was written so far). Within one call the model stays the same. Defaults for shots, similarity and
temperature are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from trueline.curate.contract import Made, Pool, curator
from trueline.curating.embedding import word_vectors
from trueline.curating.neighbours import most_alike, nearest
from trueline.curating.text import plain_prompt
from trueline.curating.writing import repeats
from trueline.errors import TruelineError
from trueline.groups import response_text
from trueline.randomness import derive

QUESTION, ANSWER = "Question:", "Answer:"


@curator(kind="make", reads="demonstrations", model="needed", arxiv="2401.06785", paper="Human-instruction-free self-alignment with limited samples (ISARA)")  # fmt: skip
def isara(
    pool: Pool,
    *,
    rounds: int = 2,
    per_round: int = 64,
    shots: int = 4,
    similarity: float = 0.8,
    by: Literal["words", "hidden"] = "words",
) -> Iterator[Made]:
    if rounds < 1 or per_round < 1 or shots < 0:
        raise TruelineError("isara: rounds and per_round must be 1 or more, shots 0 or more.")
    known = [
        (plain_prompt(g.prompt).strip(), response_text(g.responses[0]).strip())
        for b in pool.batches()
        for g in b
        if g.responses
    ]
    if not known:
        raise TruelineError(
            "isara needs seed pairs of a question and an answer (prompt and completion); no row has both."
        )
    before: dict[str, int] = {}
    for turn in range(rounds):
        rng = np.random.Generator(np.random.PCG64(derive(pool.seed, "isara", turn)))
        shown = [[known[i][0] for i in _some(rng, len(known), shots)] for _ in range(per_round)]
        asked = [question_prompt(questions) for questions in shown]
        found = pool.workshop.answers(asked, number=repeats(asked, before))
        questions = [first_line(text) for text in found]
        reasons = _refused(pool, questions, known, similarity, by)
        alive = [q for q, reason in zip(questions, reasons, strict=True) if reason is None]
        answers = iter(_answers(pool, alive, known, shots, by))
        fresh = []
        for question, reason in zip(questions, reasons, strict=True):
            answer = next(answers) if reason is None else ""
            if reason is None:
                reason = _bad(answer, question)
            row: dict[str, Any] = {"prompt": question, "completion": answer, "round": turn + 1}
            if reason is None:
                fresh.append((question, answer))
            yield Made(row, reason, prompt=question)
        known += fresh


def question_prompt(questions: list[str]) -> str:
    """Questions one after another, and the start of the next. Without any: the bare start."""
    return "".join(f"{QUESTION} {q}\n\n" for q in questions) + QUESTION


def answer_prompt(pairs: list[tuple[str, str]], question: str) -> str:
    """Pairs, then the question and where its answer begins."""
    return "".join(f"{QUESTION} {q}\n{ANSWER} {a}\n\n" for q, a in pairs) + f"{QUESTION} {question}\n{ANSWER}"


def retrieved(pool: Pool, questions: list[str], known: list[tuple[str, str]], shots: int, by: str) -> list[list[tuple[str, str]]]:  # fmt: skip
    """The nearest pairs of each question, the nearest last, next to the question."""
    if not shots or not questions:
        return [[] for _ in questions]
    vectors = _vectors(pool, [*questions, *(q for q, _ in known)], by)
    rows, _ = nearest(vectors[: len(questions)], vectors[len(questions) :], shots)
    return [[known[i] for i in reversed(row)] for row in rows]


def first_line(text: str | None) -> str:
    """What the model wrote up to the next marker or line end."""
    cut = (text or "").strip().split(QUESTION)[0].split(ANSWER)[0].strip()
    return cut.splitlines()[0].strip() if cut else ""


def _some(rng: np.random.Generator, n: int, k: int) -> list[int]:
    return rng.choice(n, min(k, n), replace=False).tolist()


def _answers(pool: Pool, questions: list[str], known: list[tuple[str, str]], shots: int, by: str) -> list[str]:
    prompts = [
        answer_prompt(p, q) for p, q in zip(retrieved(pool, questions, known, shots, by), questions, strict=True)
    ]
    return [(text or "").split(QUESTION)[0].strip() for text in pool.workshop.answers(prompts, temperature=0.0)]


def _refused(pool: Pool, questions: list[str], known: list[tuple[str, str]], similarity: float, by: str) -> list[str | None]:  # fmt: skip
    """Reasons: empty, too like the pool, or too like an earlier one of this round that was itself kept."""
    filled = [i for i, q in enumerate(questions) if q]
    reasons: list[str | None] = ["empty question" if not q else None for q in questions]
    if not filled:
        return reasons
    vectors = _vectors(pool, [*(questions[i] for i in filled), *(q for q, _ in known)], by)
    own, old = vectors[: len(filled)], vectors[len(filled) :]
    alike = most_alike(own, old)
    kept: list[int] = []
    for k, i in enumerate(filled):
        if alike[k] > similarity or (kept and most_alike(own[[k]], own[kept])[0] > similarity):
            reasons[i] = "too like a question of the pool"
        else:
            kept.append(k)
    return reasons


def _bad(answer: str, question: str) -> str | None:
    if not answer:
        return "empty answer"
    return "the answer repeats the question" if answer == question else None


def _vectors(pool: Pool, texts: list[str], by: str) -> Any:
    return pool.workshop.embed(texts) if by == "hidden" else word_vectors(texts)
