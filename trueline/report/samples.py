"""Texts to read: which prompts are shown, the same prompt before, after and by the rivals, and what differs.

Prompts are picked by the change in reward of the texts that are shown (the first sample of each side), so that what is
called most improved is seen to be; as many are drawn at random from the rest, and the most worsened always appear.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from trueline.randomness import permutation
from trueline.report.numbers import short
from trueline.report.record import Record, Sample, judge_name

EACH = 3  # prompts of each kind
RIVALS = 4  # columns beside the start; more cannot be read side by side
FOLD = 900  # characters shown before the rest is folded
KEEP = 20_000  # characters kept at all
DIFF_WORDS = 600  # difflib is quadratic: words beyond are not compared
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202d\u202e\ud800-\udfff]")


@dataclass(frozen=True)
class Piece:
    """A stretch of text; new: not in the text it is compared with."""

    text: str
    new: bool = False


@dataclass
class Shown:
    """One text with its numbers. rest: what is folded away. cut: characters that were left out altogether."""

    who: str
    index: int | None
    pieces: list[Piece]
    rest: list[Piece]
    length: int
    cut: int
    rewards: list[tuple[str, str]]
    attributes: dict[str, str]
    tokens: int | None


@dataclass
class Prompt:
    """One prompt with its texts: the start first."""

    prompt: str
    prompt_rest: str
    change: str
    texts: list[Shown] = field(default_factory=list)

    @property
    def attributes(self) -> list[tuple[str, list[str]]]:
        """Each attribute with its value for every text, in the order of the texts."""
        names = dict.fromkeys(name for text in self.texts for name in text.attributes)
        return [(name, [text.attributes.get(name, "–") for text in self.texts]) for name in names]


@dataclass
class Section:
    """Prompts picked the same way."""

    title: str
    why: str
    prompts: list[Prompt]


def sections(runs: Sequence[Record], order: Sequence[Record], judge: str | None) -> list[Section]:
    """Most improved, most worsened and random prompts of the first run, with the others beside it.

    runs: those to show, the one that changes are measured for first.
    """
    lead, columns = runs[0], list(runs[:RIVALS])
    shared = set(lead.before) & set(lead.after)
    for run in columns[1:]:
        shared &= set(run.after)
    prompts = sorted(shared)
    if not prompts:
        return []
    gains = {p: _gain(lead, p, judge) for p in prompts} if judge else {}
    ranked = sorted((p for p in prompts if math.isfinite(gains.get(p, math.nan))), key=lambda p: (-gains[p], p))
    best = [p for p in ranked[:EACH] if gains[p] > 0]
    worst = [p for p in reversed(ranked[-EACH:]) if gains[p] < 0]
    rest = [p for p in prompts if p not in best and p not in worst]
    drawn = [rest[i] for i in permutation(len(rest), 0, "report samples")[:EACH]]
    by = f"by {judge_name(lead, judge)} reward of the texts shown" if judge else ""
    found = [
        ("Most improved", f"The largest gains of {lead.name} over the start, {by}.", best),
        ("Most worsened", f"The largest losses of {lead.name} against the start, {by}.", worst),
        ("Random", "Drawn at random from the remaining prompts.", drawn),
    ]
    return [
        Section(title, why, [_prompt(p, lead, columns, order, judge, gains) for p in chosen])
        for title, why, chosen in found
        if chosen
    ]


def _gain(run: Record, prompt_id: str, judge: str) -> float:
    before, after = (side[prompt_id][0].rewards.get(judge) for side in (run.before, run.after))
    return math.nan if before is None or after is None else after - before


def _prompt(
    prompt_id: str,
    lead: Record,
    columns: Sequence[Record],
    order: Sequence[Record],
    judge: str | None,
    gains: dict[str, float],
) -> Prompt:
    start = lead.before[prompt_id][0]
    gain = gains.get(prompt_id, math.nan)
    change = ""
    if math.isfinite(gain) and judge:
        change = (
            f"{lead.name}: {judge_name(lead, judge)} reward {'+' if gain > 0 else ''}{short(gain)} against the start"
        )
    text = clean(start.prompt)[0]
    found = Prompt(text[:FOLD], text[FOLD:], change, [shown_text("start", None, lead, start, None)])
    for run in columns:
        index = next(i for i, r in enumerate(order) if r is run)
        found.texts.append(shown_text(run.name, index, run, run.after[prompt_id][0], start))
    return found


def shown_text(who: str, index: int | None, run: Record, sample: Sample, other: Sample | None) -> Shown:
    """A sample ready for the page, its words compared with another sample's where one is given."""
    text, cut = clean(sample.text)
    pieces = marked(text, clean(other.text)[0]) if other else [Piece(text)]
    head, rest = folded(pieces, FOLD)
    rewards = [(judge_name(run, j), "not applicable" if r is None else short(r)) for j, r in sample.rewards.items()]
    attributes = {name.replace("_", " "): _attribute(v) for name, v in sample.attributes.items()}
    return Shown(who, index, head, rest, len(text), cut, rewards, attributes, sample.length)


def _attribute(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return short(float(value)) if isinstance(value, int | float) else str(value)


def clean(text: str) -> tuple[str, int]:
    """Text that any page can hold, and how many characters were left out: controls, direction
    overrides and lone surrogates become U+FFFD."""
    return CONTROL.sub("\ufffd", text[:KEEP]), max(0, len(text) - KEEP)


def marked(text: str, other: str) -> list[Piece]:
    """The text in pieces, with the words that the other text does not have at that place marked as new."""
    tokens = re.findall(r"^\s+|\S+\s*", text)  # a word and the space after it, so that spacing alone is no difference
    words, others = ([t.strip() for t in ts[:DIFF_WORDS]] for ts in (tokens, re.findall(r"^\s+|\S+\s*", other)))
    matcher = difflib.SequenceMatcher(None, others, words, autojunk=len(words) > 200)
    pieces: list[Piece] = []
    for operation, _, _, start, end in matcher.get_opcodes():
        stretch = "".join(tokens[start:end])
        body = stretch.rstrip()
        if operation != "equal" and body:
            pieces += [Piece(body, True), Piece(stretch[len(body) :])]
        else:
            pieces.append(Piece(stretch))
    pieces.append(Piece("".join(tokens[DIFF_WORDS:])))
    return [p for p in pieces if p.text]


def folded(pieces: Sequence[Piece], limit: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces cut in two after `limit` characters, unless little would be folded."""
    total = sum(len(p.text) for p in pieces)
    if total <= 1.2 * limit:
        return list(pieces), []
    head: list[Piece] = []
    rest: list[Piece] = []
    left = limit
    for piece in pieces:
        if left > 0:
            head.append(Piece(piece.text[:left], piece.new))
        if len(piece.text) > left:
            rest.append(Piece(piece.text[max(left, 0) :], piece.new))
        left -= len(piece.text)
    return head, rest
