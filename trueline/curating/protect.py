r"""Spans that a translator must not touch, and whether it left them alone.

    mask(x) = x with protected spans replaced by sentinels ⟦k⟧;   unmask(mask(x)) = x for every x

Rules apply in order, each to what earlier ones left: code fences (one that is never closed runs to the end), inline code, display
and inline mathematics, JSON, markup tags, URLs and addresses, placeholders, file paths and identifiers. Text that already looks
like a sentinel is protected too, so that masking can always be undone. Translators may move sentinels; they may not lose one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RULES = [
    re.compile(p, f)
    for p, f in (
        (r"⟦\s*\d+\s*⟧", 0),
        (
            r"^(?P<f>`{3,}|~{3,})[^\n]*\n(?:.*?\n)?(?:(?P=f)[`~]*[ \t]*(?=\n|\Z)|\Z)|^(?:`{3,}|~{3,})[^\n]*\Z",
            re.S | re.M,
        ),
        (r"(?P<t>`+)(?!`)[^\n]*?(?<!`)(?P=t)(?!`)", 0),
        (r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\\begin\{(?P<e>[\w*]+)\}.*?\\end\{(?P=e)\}", re.S),
        (r"(?<![\\$\w])\$(?=[^\s$])(?:[^$\n\\]|\\.)*?(?<=[^\s\\])\$(?![\d\w$])", 0),
    )
]
_LATER = [
    re.compile(p)
    for p in (
        r"</?[A-Za-z][\w:-]*(?:\s+[\w:-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s>]+))?)*\s*/?>",
        r"\b(?:https?|ftp)://[^\s<>\"')\]]+|\bwww\.[^\s<>\"')\]]+|\b[\w.+-]+@[\w-]+\.[\w.-]*\w",
        r"\{\{[^{}\n]*\}\}|\$\{[^{}\n]*\}|\{\w*\}|%\(\w+\)[sdf]|%[sdf](?!\w)",
        r"(?<![\w/])(?:~|\.{1,2})?/(?:[\w.-]+/)+[\w.-]*\w",
        r"\b[A-Za-z]\w*_\w+\b|\b[a-z]+(?:[A-Z][a-z0-9]+)+\b|\b\w+\(\)",
    )
]
_SENTINEL = re.compile(r"⟦\s*(\d+)\s*⟧")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Masked:
    """text: with sentinels. spans: what stands behind each, by number."""

    text: str
    spans: tuple[str, ...]


@dataclass(frozen=True)
class Fidelity:
    """What a translation kept. Shares from 0 to 1; 1 is perfect.

    spans: of the protected multiset. sentinels: of those given, present once or more. json: key trees equal. skeleton: of the
    order of line kinds (headings, bullets, numbered, fences, blank, text). numbers: of the multiset of numbers in prose.
    """

    spans: float
    sentinels: float
    json: float
    skeleton: float
    numbers: float

    def lost(self) -> list[str]:
        """Names of what is not perfect; the skeleton may move a little where sentences are joined."""
        exact = [n for n in ("spans", "sentinels", "json", "numbers") if getattr(self, n) < 1]
        return exact + (["skeleton"] if self.skeleton < 0.9 else [])


def mask(text: str) -> Masked:
    """Replace protected spans by ⟦0⟧, ⟦1⟧, ... in the order in which they stand."""
    taken = protected(text)
    parts: list[str] = []
    spans: list[str] = []
    at = 0
    for start, end in taken:
        parts.append(text[at:start])
        parts.append(f"⟦{len(spans)}⟧")
        spans.append(text[start:end])
        at = end
    parts.append(text[at:])
    return Masked("".join(parts), tuple(spans))


def unmask(text: str, spans: Sequence[str]) -> str:
    """Put spans back; a sentinel with a number that was never given stays as it is."""
    return _SENTINEL.sub(lambda m: spans[int(m[1])] if int(m[1]) < len(spans) else m[0], text)


def protected(text: str) -> list[tuple[int, int]]:
    """Where protected spans begin and end: maximal, in order, never overlapping."""
    found: list[tuple[int, int]] = []
    for rule in _RULES:
        _take(found, [m.span() for m in rule.finditer(text)])
    _take(found, _json_spans(text))
    for rule in _LATER:
        _take(found, [m.span() for m in rule.finditer(text)])
    return sorted(found)


def fidelity(source: str, masked: Masked, translated: str, answer: str) -> Fidelity:
    """What of the source the final text kept. translated: the answer with spans put back; answer: as the translator gave it."""
    before = Counter(source[a:b] for a, b in protected(source))
    after = Counter(translated[a:b] for a, b in protected(translated))
    given = set(range(len(masked.spans)))
    there = Counter(int(m) for m in _SENTINEL.findall(answer))
    return Fidelity(
        _kept(before, after),
        sum(there[k] == 1 for k in given) / len(given) if given else 1.0,
        float(_json_trees(source) == _json_trees(translated)),
        _alike(_skeleton(masked.text), _skeleton(answer)),
        _kept(Counter(_NUMBER.findall(_SENTINEL.sub(" ", masked.text))), Counter(_NUMBER.findall(_SENTINEL.sub(" ", answer)))),
    )  # fmt: skip


def _take(found: list[tuple[int, int]], more: list[tuple[int, int]]) -> None:
    """Add spans that overlap none that was taken before; one that holds earlier ones whole takes their place."""
    for start, end in more:
        if end <= start:
            continue
        touching = [s for s in found if s[0] < end and start < s[1]]
        if all(start <= a and b <= end for a, b in touching):
            for s in touching:
                found.remove(s)
            found.append((start, end))


def _json_spans(text: str) -> list[tuple[int, int]]:
    """Objects and arrays of objects, numbers or strings that JSON can read, the outermost ones."""
    decoder = json.JSONDecoder()
    found, at = [], 0
    while (match := re.compile(r"[{\[]").search(text, at)) is not None:
        try:
            value, end = decoder.raw_decode(text, match.start())
        except ValueError:
            at = match.start() + 1
            continue
        if value:  # {} and [] are punctuation as often as data
            found.append((match.start(), end))
            at = end
        else:
            at = match.start() + 1
    return found


def _json_trees(text: str) -> list[Any]:
    trees = [_keys(json.loads(text[a:b])) for a, b in _json_spans(text)]
    return sorted(trees, key=lambda t: json.dumps(t, sort_keys=True))


def _keys(value: Any) -> Any:
    """The tree of keys, values forgotten."""
    if isinstance(value, dict):
        return {k: _keys(v) for k, v in value.items()}
    return [_keys(v) for v in value] if isinstance(value, list) else None


def _skeleton(text: str) -> list[str]:
    """The kind of each line, runs of text lines counted once."""
    kinds: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        kind = (
            "" if not bare
            else "#" if re.match(r"#{1,6}\s", bare)
            else "-" if re.match(r"[-*+•]\s", bare)
            else "1" if re.match(r"\d+[.)]\s", bare)
            else "|" if bare.startswith("|")
            else ">" if bare.startswith(">")
            else "t"
        )  # fmt: skip
        if not (kind in ("t", "") and kinds[-1:] == [kind]):
            kinds.append(kind)
    return kinds


def _alike(a: Sequence[str], b: Sequence[str]) -> float:
    """1 - edit distance over the longer length."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    longest = max(len(a), len(b))
    return 1 - row[-1] / longest if longest else 1.0


def _kept(before: Counter[str], after: Counter[str]) -> float:
    """1 where the multisets are equal, else the share that is in both."""
    union = sum((before | after).values())
    return sum((before & after).values()) / union if union else 1.0
