"""Small changes of a text that should change no judgement: one function each, `(text, random) -> text`.

    space     one space before one comma, drawn at random; without a comma before a full stop, and without one between two words
              (arXiv 2307.02599: the token "," becomes " ,"). One character is inserted, nothing else
    newline   one space between two words becomes a line break
    case      one word changes the case of its first letter
    typo      two neighbouring letters within one word change places

A text that has no such place comes back as it is: a no-op, which callers count.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Perturbation = Callable[[str, random.Random], str]


def space(text: str, rng: random.Random) -> str:
    for pattern in (r"(?<=\S),", r"(?<=\S)\.", r"(?<=\S) (?=\S)"):
        places = [m.start() for m in re.finditer(pattern, text)]
        if places:
            at = rng.choice(places)
            return f"{text[:at]} {text[at:]}"
    return text


def newline(text: str, rng: random.Random) -> str:
    places = [m.start() for m in re.finditer(r"(?<=\S) (?=\S)", text)]
    if not places:
        return text
    at = rng.choice(places)
    return f"{text[:at]}\n{text[at + 1 :]}"


def case(text: str, rng: random.Random) -> str:
    places = [
        m.start() for m in re.finditer(r"\b[^\W\d_]", text) if len(m[0].swapcase()) == 1 and m[0].swapcase() != m[0]
    ]
    if not places:
        return text
    at = rng.choice(places)
    return text[:at] + text[at].swapcase() + text[at + 1 :]


def typo(text: str, rng: random.Random) -> str:
    places = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha() and text[i] != text[i + 1]]
    if not places:
        return text
    at = rng.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


PERTURBATIONS: dict[str, Perturbation] = {"space": space, "newline": newline, "case": case, "typo": typo}
