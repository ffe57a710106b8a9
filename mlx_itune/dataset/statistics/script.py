"""Which writing system a text is in: a cheap, dependency-free stand-in for its language."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

NONE = "no letters"
OTHER = "other"

# Scripts by the first word of their characters' Unicode names.
_KNOWN = {
    name.upper(): name
    for name in (
        "Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi "
        "Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar "
        "Georgian Hangul Ethiopic Cherokee Khmer Mongolian Han Kana Bopomofo"
    ).split()
} | {
    **dict.fromkeys(("CJK", "IDEOGRAPHIC"), "Han"),
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "Kana"),
}
# A Chinese text holds no kana; a Japanese one holds at least this share of it.
_KANA_SHARE = 0.05
_ASCII = bytes(range(128))
_NO_LETTERS = bytes(byte for byte in range(256) if byte >= 128 or not chr(byte).isalpha())


def main_script(texts: Iterable[str]) -> str:
    """The writing system of most letters: "Latin", "Cyrillic", "Han", "Japanese" ...

    "no letters" where there are none.
    """
    letters = letters_by_script(texts)
    kana, han = letters.pop("Kana", 0), letters.pop("Han", 0)
    if kana or han:
        letters["Japanese" if kana and kana >= _KANA_SHARE * (kana + han) else "Han"] = kana + han
    return max(sorted(letters), key=lambda name: letters[name]) if letters else NONE


def letters_by_script(texts: Iterable[str]) -> Counter[str]:
    """How many letters each writing system has, by Unicode's own names of the characters."""
    letters: Counter[str] = Counter()
    raw = "\n".join(texts).encode("utf-8", "ignore")
    # Every ASCII letter is Latin; only what is left has to be looked up.
    if latin := len(raw.translate(None, _NO_LETTERS)):
        letters["Latin"] = latin
    if not raw.isascii():
        for char, times in Counter(raw.translate(None, _ASCII).decode()).items():
            if script := _script(char):
                letters[script] += times
    return letters


@lru_cache(maxsize=1 << 14)
def _script(char: str) -> str:
    """The writing system of a letter, "" for any other character."""
    if not char.isalpha():
        return ""
    words = unicodedata.name(char, "").split()
    if words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    return _KNOWN.get(words[0], OTHER) if words else OTHER
