"""Split and merge (PORTIA, arXiv 2310.01432): two responses cut into matching parts, and the judge that reads them so.

A response is cut only where a sentence ends; a code block and a list are one unit each. Two cuts into k parts are tried:

    length      the i-th cut is at the sentence end nearest to i/k of the characters
    semantic    the cuts of both responses that maximise sum_i sim(A_i, B_i), by dynamic programming over
                F(i, p, q) = max over p' > p, q' > q of sim(A[p:p'], B[q:q']) + F(i - 1, p', q')

sim is the share of words in common, |A and B| / |A or B| over sets of lower-case words, 1 for equal sets; or a function of
two texts. Of equally good cuts the one whose first parts end earliest is taken (A before B), then the second, and so on.
Parts concatenate to the response, character for character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trueline.errors import TruelineError
from trueline.feedback import _verdict
from trueline.feedback._judging import Asker

Array = NDArray[np.float64]
Similarity = Callable[[str, str], float]
Question = tuple[str, str, str]  # prompt, first response, second response

_BLOCK = re.compile(
    r"```.*?(?:```[^\n]*(?:\n|\Z)|\Z)"  # a fenced block, to its fence or the end of the text
    r"|(?:^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+[^\n]*(?:\n|\Z)(?:[ \t]+\S[^\n]*(?:\n|\Z)|\n(?=[ \t]*(?:[-*+•]|\d+[.)])[ \t]))*)+",
    re.DOTALL | re.MULTILINE,
)
_SENTENCE = re.compile(r"\s+|\S.*?(?:[.!?…]+[\"'”’)\]]*\s+|[。！？]+[”』」]*\s*|\n+|\Z)", re.DOTALL)
_WORD = re.compile(r"\w", re.UNICODE)
_WORDS = re.compile(r"[一-鿿぀-ヿ]|[^\W_]+")


def sentences(text: str) -> list[str]:
    """The units that a text may be cut between; they concatenate to it."""
    found: list[str] = []
    at = 0
    for block in _BLOCK.finditer(text):
        found += _SENTENCE.findall(text[at : block.start()])
        found.append(block[0])
        at = block.end()
    found += _SENTENCE.findall(text[at:])
    units: list[str] = []
    for piece in found:
        if units and not (_WORD.search(piece) and _WORD.search(units[-1])):
            units[-1] += piece  # white space and rules of dashes are no unit of their own
        else:
            units.append(piece)
    return units


def length_cuts(units: Sequence[str], k: int) -> list[int]:
    """Places [k - 1] before which the units are cut: nearest to equal lengths, every part with a unit, earlier on a tie."""
    ends = np.cumsum([len(u) for u in units])
    cuts: list[int] = []
    for i in range(1, k):
        free = range((cuts[-1] if cuts else 0) + 1, len(units) - (k - i) + 1)
        cuts.append(min(free, key=lambda c: (abs(ends[c - 1] - i * ends[-1] / k), c)))
    return cuts


def semantic_cuts(
    first: Sequence[str], second: Sequence[str], k: int, similarity: Similarity | None = None
) -> tuple[list[int], list[int], float]:
    """The cuts [k - 1] of both that maximise the sum of similarities of corresponding parts, and that sum."""
    n, m = len(first), len(second)
    if not 1 <= k <= min(n, m):
        raise TruelineError(f"{k} parts cannot be cut out of {n} and {m} sentences.")
    table = _Segments(first, second, similarity)
    best = np.full((k + 1, n + 1, m + 1), -np.inf)  # best[i, p, q]: of the units from p and from q on, in i parts
    best[0, n, m] = 0.0
    for p in range(n - 1, -1, -1):
        for end in range(p + 1, n + 1):
            sim = table.row(p, end)
            for i in range(1, k + 1):
                best[i, p] = np.maximum(best[i, p], (sim + best[i - 1, end][None, :]).max(axis=1))
    cuts: tuple[list[int], list[int]] = ([], [])
    p = q = 0
    for i in range(k, 1, -1):
        for end in range(p + 1, n + 1):
            total = table.row(p, end)[q] + best[i - 1, end]
            good = np.flatnonzero(total >= best[i, p, q] - 1e-9)
            if good.size:
                break
        p, q = end, int(good[0])
        cuts[0].append(p)
        cuts[1].append(q)
    return *cuts, float(best[k, 0, 0])


class _Segments:
    """Similarities of every run of units of one text with every run of the other's."""

    def __init__(self, first: Sequence[str], second: Sequence[str], similarity: Similarity | None):
        self.first, self.second, self.similarity = first, second, similarity
        m = len(second)
        self.runs = [(q, end) for q in range(m) for end in range(q + 1, m + 1)]
        if similarity is None:
            words_1, words_2 = ([set(_WORDS.findall(u.lower())) for u in units] for units in (first, second))
            place = {w: i for i, w in enumerate(sorted(set().union(*words_1, *words_2)))}
            self.has_1, has_2 = (_incidence(words, place) for words in (words_1, words_2))
            self.has_2 = np.stack([has_2[q:end].max(axis=0) for q, end in self.runs])
            self.size_2 = self.has_2.sum(axis=1)

    def row(self, p: int, end: int) -> Array:
        """[m + 1, m + 1]: the run p:end of the first text with each run q:q' of the second; -inf where q' <= q."""
        m = len(self.second)
        found = np.full((m + 1, m + 1), -np.inf)
        q, q_end = np.array(self.runs).T
        if self.similarity is None:
            own = self.has_1[p:end].max(axis=0)
            common = self.has_2 @ own
            union = self.size_2 + own.sum() - common
            found[q, q_end] = np.where(union > 0, common / np.maximum(union, 1.0), 1.0)
        else:
            text = "".join(self.first[p:end])
            found[q, q_end] = [self.similarity(text, "".join(self.second[a:b])) for a, b in self.runs]
        return found


def _incidence(words: Sequence[set[str]], place: dict[str, int]) -> Array:
    table = np.zeros((len(words), max(len(place), 1)))
    for i, own in enumerate(words):
        table[i, [place[w] for w in own]] = 1.0
    return table


def parts(units: Sequence[str], cuts: Sequence[int]) -> list[str]:
    """The texts between the cuts."""
    ends = [0, *cuts, len(units)]
    return ["".join(units[a:b]) for a, b in pairwise(ends)]


# ---- asking ----------------------------------------------------------------------------------------------------------

_HEAD, _, _ = _verdict.PAIRWISE.partition("<response_a>")
_ASK = "Explain your judgement briefly, then end with "
_BEGINNING, _, _ = _HEAD.partition(_ASK)
_REQUEST = "\n\n<request>\n{prompt}\n</request>\n\n"
FORMS = {
    "relation": _HEAD,
    "score": _BEGINNING
    + _ASK
    + "the ratings of both on a line of their own, A before B, numbers from 1 (worst) to 10 (best) in double brackets, for "
    "example [[1, 1]]." + _REQUEST,
    "likert": _BEGINNING
    + _ASK
    + "your verdict on a line of its own, a number in double brackets: [[1]] response A is much better, [[2]] A is somewhat "
    "better, [[3]] they are equally good, [[4]] B is somewhat better, [[5]] B is much better." + _REQUEST,
}
_IN_PARTS = (
    "Both responses are shown in {k} parts each, one after the other in turn. Judge each response as the whole that its "
    "parts make.\n\n"
)


def question(form: str, prompt: str, first: Sequence[str], second: Sequence[str]) -> str:
    """What the judge is asked about two responses in parts; one part each is the plain pairwise question."""
    body = []
    several = len(first) > 1
    for i, (a, b) in enumerate(zip(first, second, strict=True), start=1):
        of = f' part="{i} of {len(first)}"' if several else ""
        body += [f"<response_a{of}>\n{a}\n</response_a>\n", f"<response_b{of}>\n{b}\n</response_b>\n"]
    head = _verdict.fill(FORMS[form], prompt=prompt)
    return head + (_IN_PARTS.replace("{k}", str(len(first))) if several else "") + "\n".join(body)


def read(form: str, answer: str) -> float | None:
    """The first response's share, 1, 0 or 1/2; None for a malformed answer."""
    if form == "relation":
        return _verdict.comparison(answer)
    found = set(re.findall(r"\[\[\s*([^\[\]]*?)\s*\]\]", answer))
    if len(found) != 1:
        return None
    try:
        numbers = [float(x) for x in found.pop().split(",")]
    except ValueError:
        return None
    if form == "likert":
        known = len(numbers) == 1 and numbers[0] in (1, 2, 3, 4, 5)
        return float((1 - np.sign(numbers[0] - 3)) / 2) if known else None
    in_range = len(numbers) == 2 and all(1 <= x <= 10 for x in numbers)
    return float((1 + np.sign(numbers[0] - numbers[1])) / 2) if in_range else None


@dataclass
class Calibrated:
    """What a judge said of a pair. forward: the first's share standing first; backward: the second's, standing first.

    plain: without splitting; final: after it. stage: what settled it: plain, length, semantic, or none.
    """

    plain: tuple[float | None, float | None]
    final: tuple[float | None, float | None]
    stage: str = "none"
    questions: int = 2

    @property
    def verdict(self) -> float | None:
        """The first's share; a tie where the orders disagree still, None where one of them gave no verdict."""
        return _verdict.both_orders(*self.final)


@dataclass
class SplitMerge:
    """The calibrated judge. parts: k, fewer where a response has fewer sentences (with one part there is nothing to split).

    Counters: comparisons, split (pairs asked again in parts), fixed (of those, agreed on then), malformed answers.
    """

    asker: Asker
    form: str = "relation"
    k: int = 3
    similarity: Similarity | None = None
    counters: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("comparisons", "split", "fixed", "malformed"), 0.0)
    )

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise TruelineError(f"portia: form is '{self.form}'; expected {', '.join(FORMS)}.")
        if self.k < 2:
            raise TruelineError(f"portia: parts is {self.k}; splitting needs 2 or more (the paper tries 2 to 4).")

    def judge(self, pairs: Sequence[Question]) -> list[Calibrated]:
        """Plain questions first, then length alignment, then semantic: each only for what is not settled."""
        self.counters["comparisons"] += len(pairs)
        plain = self._asked([(x, [a], [b]) for x, a, b in pairs])
        found = [Calibrated(both, both) for both in plain]
        for pair in found:
            if _consistent(pair.plain):
                pair.stage = "plain"
        for stage in ("length", "semantic"):
            again = []
            for i, (prompt, a, b) in enumerate(pairs):
                split = self._split(stage, a, b) if found[i].stage == "none" else None
                if split is not None:
                    again.append((i, (prompt, *split)))
            for (i, _), both in zip(again, self._asked([asked for _, asked in again]), strict=True):
                self.counters["split"] += stage == "length"
                found[i].final, found[i].questions = both, found[i].questions + 2
                if _consistent(both):
                    found[i].stage = stage
                    self.counters["fixed"] += 1
        return found

    def _split(self, stage: str, a: str, b: str) -> tuple[list[str], list[str]] | None:
        """Both responses in parts; None where one of them has a single sentence."""
        first, second = sentences(a), sentences(b)
        k = min(self.k, len(first), len(second))
        if k < 2:
            return None
        if stage == "length":
            return parts(first, length_cuts(first, k)), parts(second, length_cuts(second, k))
        cuts_a, cuts_b, _ = semantic_cuts(first, second, k, self.similarity)
        return parts(first, cuts_a), parts(second, cuts_b)

    def _asked(self, pairs: Sequence[tuple[str, list[str], list[str]]]) -> list[tuple[float | None, float | None]]:
        """Verdicts in both orders; the labels of the parts are exchanged with the responses."""
        questions = [question(self.form, x, *order) for x, a, b in pairs for order in ((a, b), (b, a))]
        answers = self.asker.ask(questions) if questions else []
        verdicts = [None if answer is None else read(self.form, answer) for answer in answers]
        self.counters["malformed"] += sum(a is not None and v is None for a, v in zip(answers, verdicts, strict=True))
        return list(zip(verdicts[::2], verdicts[1::2], strict=True))


def _consistent(both: tuple[float | None, float | None]) -> bool:
    forward, backward = both
    return forward is not None and backward is not None and forward == 1 - backward
