"""The language of a text, from its script and its commonest words: coarse, quick, and unsure where it should be.

Scripts that one language dominates name it (Greek 'el', Hangul 'ko', kana 'ja', Han without kana 'zh', Thai 'th', Hebrew
'he'); Cyrillic, Arabic and Devanagari are told apart no further and reported as scripts. Latin text is told by function words.
'?' is what stays undecided, short texts above all. It is a heuristic for a mix over many rows, not a verdict on one.
"""

from __future__ import annotations

import re
from collections import Counter

READ = 600  # characters of a text that are looked at
_SCRIPTS = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "Cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
}
_LATIN = re.compile(r"[a-zà-ÿāăąćčďđēęěğīıłńňōőřśšşťūůűźżž]+")
_OTHER = re.compile(r"[\u0370-\uffff]")
_COMMON = {
    "en": "the of and to in is that it was for on are with as be this have or by not what how you do can your i a my",
    "de": "der die und das ist nicht ein eine ich zu den mit von sich auf für dem auch wie es im sie wir du werden oder",
    "fr": "le la les et est une un des pour dans que qui ne pas vous je il sur au ce avec plus sont du de comment",
    "es": "el los las y es una un por para con que no del se lo su más como pero en de la qué cómo está al",
    "pt": "o os as e é uma um por para com que não do da se em no na mais como mas você são de ao está",
    "it": "il lo gli e è una un per con che non del della si di più come ma nel sono la le al questo cosa",
    "nl": "de het een en is niet van ik dat op te zijn voor met die aan er maar ook als bij hoe wat je wij",
    "sv": "och att det som en på är av för med den inte till jag har de om ett men var hur vad kan du",
    "da": "og at det som en på er af for med den ikke til jeg har de om et men var hvordan hvad kan du",
    "pl": "i w na z się nie do to jest że jak o po za od ale co czy dla przez tak są jego ten",
    "tr": "ve bir bu için ile de da ne olarak çok daha en gibi mi değil var ben sen o nasıl ama kadar",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada bisa apa anda",
    "vi": "và của là có không được cho một các trong với người những này để đã khi tôi bạn như",
}
_WORDS = {language: frozenset(text.split()) for language, text in _COMMON.items()}
_INDEX: dict[str, tuple[str, ...]] = {}
for _language, _set in _WORDS.items():
    for _word in _set:
        _INDEX[_word] = (*_INDEX.get(_word, ()), _language)


def language(text: str) -> str:
    """A code ('en', 'zh', ...), a script ('Cyrillic', ...), or '?'."""
    text = text[:READ]
    if not text.isascii() and _OTHER.search(text):
        letters = sum(map(str.isalpha, text))
        counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
        if counts["ja"] and counts["ja"] + counts["zh"] > 0.3 * letters:
            return "ja"
        name, most = max(counts.items(), key=lambda item: item[1])
        if most > 0.3 * letters:
            return name
    return _latin(text)


def _latin(text: str) -> str:
    votes: Counter[str] = Counter()
    found = _LATIN.findall(text.lower())
    for word in found:
        for name in _INDEX.get(word, ()):
            votes[name] += 1
    if not votes:
        return "?"
    (first, most), *rest = votes.most_common(2)
    second = rest[0][1] if rest else 0
    return first if most > second and most >= max(1, 0.08 * len(found)) else "?"
