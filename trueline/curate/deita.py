"""deita: demonstrations by complexity times quality, none too like a better one (arXiv 2312.15685).

    score = sum over turns t of  c_t q_t,        c_t, q_t = sum_{s=1..6} s p(s),   p = softmax over the digits 1..6
    take in descending order;  x is taken iff  max over taken s of cos(e(x), e(s)) <= similarity

c asks how complex the instruction of a turn is, q how good its response, each by a scorer model that was trained to answer
with a digit (`complexity`, `quality`: model folders); or both are given as columns of the data (`complexity_column`,
`quality_column`), one number a row. e is the last token's last hidden state of --model, normalised; without --model, hashed
word counts. similarity 0.9 is the paper's for hidden states; word counts are less alike, so a lower one may be wanted.

Where the released code departs, this does not follow it: a scorer whose vocabulary has no single token for a digit is
refused, and a score that cannot be read is missing (the released code takes 3.0 in silence); digit tokens are looked up, not
fixed to one tokenizer; the diversity scan is exact for any block size. Summing over turns favours long dialogues, as the
paper's does. If the pool runs out, fewer rows than the budget are taken and similarity is not relaxed.

The scorers' prompts are the released ones in meaning, not in words: give `complexity_template` and `quality_template`
(text files with {instruction}, and {response}) to match the scorer that you have. How scorers are trained (variants
evolved step by step, ranked together on 1 to 6) is curator `evolve`, whose `level` column is what to learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trueline.curate.contract import Floats, Pool, Scored, curator, numbers
from trueline.curating.selecting import CosineGate
from trueline.errors import TruelineError
from trueline.groups import Group, prompt_text, response_text

DIGITS = ("1", "2", "3", "4", "5", "6")
COMPLEXITY = (
    "You are a helpful assistant. Please identify the complexity score of the following user query.\n"
    "##Query: {instruction}\n##Complexity: "
)
QUALITY = (
    "You are a helpful assistant. Please identify the quality score of the response to the user query.\n"
    "#Query#:\n{instruction}\n#Response#:\n{response}\n##Quality: "
)


@curator(
    kind="select",
    reads="demonstrations",
    model="optional",
    arxiv="2312.15685",
    paper="What Makes Good Data for Alignment? (deita)",
)
def deita(
    pool: Pool,
    *,
    complexity: str | None = None,
    quality: str | None = None,
    complexity_column: str | None = None,
    quality_column: str | None = None,
    complexity_template: str | None = None,
    quality_template: str | None = None,
    similarity: float = 0.9,
) -> Scored:
    sides = (("complexity", complexity, complexity_column, complexity_template), ("quality", quality, quality_column, quality_template))  # fmt: skip
    for name, model, column, template in sides:
        if (model is None) == (column is None):
            raise TruelineError(
                f"deita needs either {name} (a scorer's folder) or {name}_column (a column of the data), not both or none."
            )
        if template and column:
            raise TruelineError(f"deita.{name}_template has no effect on a column. Leave it out.")
    turns = [_turns(group) for batch in pool.batches() for group in batch]
    c_NT = _scores(
        pool, turns, complexity, complexity_column, _template(complexity_template, COMPLEXITY, ("instruction",))
    )
    q_NT = _scores(
        pool, turns, quality, quality_column, _template(quality_template, QUALITY, ("instruction", "response"))
    )
    score_N = np.array([evol_score(c, q) for c, q in zip(c_NT, q_NT, strict=True)], dtype=np.float64)
    gate = CosineGate(_vectors(pool), similarity) if similarity < 1 else None
    missing = int(np.isnan(score_N).sum())
    return Scored(
        score_N,
        columns={"complexity": np.array([np.mean(c) for c in c_NT]), "quality": np.array([np.mean(q) for q in q_NT])},
        gate=gate,
        facts={"rows_without_a_score": missing},
        notes=[f"{missing} rows have no score and are left out."] if missing else [],
    )


def evol_score(c_T: Floats, q_T: Floats) -> float:
    """Sum over turns of complexity times quality."""
    if len(c_T) != len(q_T):
        raise ValueError(f"{len(c_T)} complexities and {len(q_T)} qualities")
    return float(np.sum(np.asarray(c_T) * np.asarray(q_T)))


def expected_digit(odds_ND: Floats) -> Floats:
    """sum of s p_s over the digits 1..6; NaN where the odds are not finite."""
    return odds_ND @ np.arange(1, len(DIGITS) + 1, dtype=np.float64)


def _scores(pool: Pool, turns: list[list[tuple[str, str]]], model: str | None, column: str | None, template: str) -> list[Floats]:  # fmt: skip
    """A number for each turn of each row, or one for the row where a column gives it."""
    if model is None:
        return [np.array([v]) for v in numbers(pool.values(str(column)), f"column '{column}'")]
    flat = [template.replace("{instruction}", i).replace("{response}", r) for row in turns for i, r in row]
    value = expected_digit(pool.workshop.digits(model, flat, DIGITS))
    ends = np.cumsum([len(row) for row in turns])[:-1]
    return [part for part in np.split(value, ends)]


def _turns(group: Group) -> list[tuple[str, str]]:
    """(instruction, response) of every assistant turn of a demonstration; a text row is one turn."""
    if not group.responses:
        raise TruelineError(f"{group.origin}: deita scores demonstrations, and this row has no response.")
    first = group.responses[0]
    messages = [*(group.prompt if isinstance(group.prompt, list) else []), *(first.messages or [])]
    if isinstance(group.prompt, str) or not first.messages:
        return [(prompt_text(group.prompt), response_text(first))]
    found, asked = [], ""
    for message in messages:
        if message["role"] == "user":
            asked = str(message["content"])
        elif message["role"] == "assistant":
            found.append((asked, str(message["content"])))
    return found


def _vectors(pool: Pool) -> Floats:
    texts = [f"{prompt_text(g.prompt)}\n{response_text(g.responses[0])}" for batch in pool.batches() for g in batch]
    if pool.workshop.given:
        return pool.workshop.embed(texts)
    from sklearn.random_projection import SparseRandomProjection

    from trueline.curating.embedding import word_vectors

    sparse = word_vectors(texts)
    return np.asarray(
        SparseRandomProjection(512, dense_output=True, random_state=0).fit_transform(sparse), dtype=np.float32
    )


def _template(file: str | None, default: str, fields: tuple[str, ...]) -> str:
    if file is None:
        return default
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TruelineError(f"deita's template '{file}' cannot be read ({error}).") from error
    missing = [f"{{{f}}}" for f in fields if f"{{{f}}}" not in text]
    if missing:
        raise TruelineError(f"deita's template '{file}' lacks {', '.join(missing)}.")
    return text
