"""What a corrector reads, and how it is trained: (question, answer, correction) as text. Nothing here imports torch.

A corrector is a language model fine-tuned (objective sft) to write the correction after question and answer. The text before the correction
is the same at training (reader `correction`) and at decoding (methods aligner, aligners):

    aligner    BEGINNING OF CONVERSATION: USER: ##Question: q\\n##Answer: a\\n##Correction:  ASSISTANT:     (arXiv 2402.02416, two spaces included)
    aligners   q [INIT] a [ALIGNED]                                                                         (arXiv 2403.04224)

The three markers of the second ([DONE] ends a correction) are special tokens there: train with
`--add_tokens "[INIT]" "[ALIGNED]" "[DONE]" --eos_tokens "[DONE]"`.

Preference pairs are such triples already: the rejected response corrected to the chosen one. A corrector that has only seen bad answers
corrects good ones too, so it is warmed up on copies, where the correction is the answer:

    python -m trueline.corrections PAIRS --output DIR         copies.jsonl, corrections.jsonl, inspector.jsonl
    trueline align --recipe aligner --model BASE --output runs/aligner --stages.copy.data DIR/copies.jsonl --stages.correct.data DIR/corrections.jsonl
    trueline align --objective pointwise_rm --model BASE --data DIR/inspector.jsonl --output runs/inspector
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from trueline.errors import TruelineError, nearest
from trueline.groups import Group, Prompt, prompt_text, response_text
from trueline.randomness import derive

MARKERS = ("[INIT]", "[ALIGNED]", "[DONE]")
TEMPLATES = ("aligner", "aligners")
DEFAULT = "aligner"
Row = dict[str, object]


def corrector_prompt(question: str, answer: str, template: str = DEFAULT) -> str:
    """What a corrector reads before it writes the correction."""
    if template == "aligner":
        return f"BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {answer}\n##Correction:  ASSISTANT:"
    if template == "aligners":
        return f"{question} {MARKERS[0]} {answer} {MARKERS[1]}"
    raise TruelineError(f"There is no corrector template '{template}'. {nearest(template, TEMPLATES)}")


def question_of(prompt: Prompt) -> str:
    """The question of a prompt: a text as it is, a single user turn's words, a longer conversation as 'role: content' lines."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[0].get("content", "")) if len(prompt) == 1 else prompt_text(prompt)


def triples(groups: Iterable[Group]) -> list[Row]:
    """(question, answer, correction) of every preference: the worse response corrected to the best one."""
    rows: list[Row] = []
    for group in groups:
        ranked = [r for r in group.responses if r.rank is not None]
        best = min(ranked, key=lambda r: r.rank or 0, default=None)
        for worse in ranked:
            if best is not None and (worse.rank or 0) > (best.rank or 0):
                rows.append(_row(group, response_text(worse), response_text(best)))
    if not rows:
        raise TruelineError(
            "No group has a better and a worse response; corrections are made of preferences (chosen, rejected)."
        )
    return rows


def copies(rows: Sequence[Row], share: float = 1.0, seed: int = 0) -> list[Row]:
    """Copy rows (q, a, a) of a share of the triples, alternating between an answer and its correction: both are to be copied first."""
    if not 0 < share <= 1:
        raise TruelineError(f"The share of copies is {share}; expected a number above 0, up to 1.")
    order = sorted(range(len(rows)), key=lambda i: derive(seed, "copy", i))[: max(1, round(share * len(rows)))]
    kept: list[Row] = []
    for place, i in enumerate(sorted(order)):
        said = rows[i]["answer"] if place % 2 else rows[i]["correction"]
        kept.append({"question": rows[i]["question"], "answer": said, "correction": said})
    return kept


def inspections(rows: Sequence[Row]) -> list[Row]:
    """What an inspector is trained on: the answer is not aligned, its correction is."""
    labelled = [
        (row["question"], row[column], column == "correction") for row in rows for column in ("answer", "correction")
    ]
    return [{"prompt": q, "completion": text, "label": label} for q, text, label in dict.fromkeys(labelled)]


def _row(group: Group, answer: str, correction: str) -> Row:
    return {"question": question_of(group.prompt), "answer": answer, "correction": correction}


def main(arguments: Sequence[str] | None = None) -> int:
    """Preference pairs of any known format -> files to train a corrector and an inspector on."""
    from trueline.readers import read
    from trueline.wholefile import write_lines

    parser = argparse.ArgumentParser(prog="python -m trueline.corrections", description=main.__doc__)
    parser.add_argument("pairs", nargs="+", help="files with preferences, as for `trueline align`")
    parser.add_argument(
        "--output", required=True, help="folder for copies.jsonl, corrections.jsonl and inspector.jsonl"
    )
    parser.add_argument("--copies", type=float, default=0.5, help="share of the triples that the warm-up copies")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        rows = triples(read(given.pairs)[0])
        files = {"copies": copies(rows, given.copies, given.seed), "corrections": rows, "inspector": inspections(rows)}
        folder = Path(given.output)
        folder.mkdir(parents=True, exist_ok=True)
        for name, made in files.items():
            write_lines(folder / f"{name}.jsonl", made)
            print(f"{folder / name}.jsonl: {len(made)} rows")
    except TruelineError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
