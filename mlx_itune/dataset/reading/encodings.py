"""Text files that are not UTF-8: UTF-16 by its mark or its NULs, tables of Windows and the Mac by
which letters their bytes would be."""

from __future__ import annotations

import codecs

from mlx_itune.kit.errors import UsageError

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF16 = ("utf-16-le", "utf-16-be")
NAMES = {"cp1252": "Windows-1252", "mac_roman": "MacRoman", **dict.fromkeys(_UTF16, "UTF-16")}
_USUAL = frozenset("äöüßÄÖÜéèêàâçîïôûùëñáíóúìòãõåæøœÅÆØÉÈÀÇ€–—‘’“”„…«»°§·£©®™¿¡½²³µ×\u00a0")
# What stands between the letters of one word.
_WITHIN = frozenset("‘’–—·\u00ad")
_LEAST_NULS = 0.3


def checked(name: str) -> str:
    """The codec of a name that a user gave. Raises UsageError."""
    try:
        return codecs.lookup(name).name
    except LookupError:
        hint = "for instance utf-8, utf-16, cp1252 or mac_roman"
        raise UsageError(f"there is no encoding {name!r}", hint=hint) from None


def utf16(head: bytes) -> str | None:
    """UTF-16 of one order of bytes, if a file that begins so is that."""
    halves = head[1:2048:2], head[:2048:2]
    for mark, name, zeros, other in zip(UTF16_MARKS, _UTF16, halves, halves[::-1], strict=True):
        is_half_empty = len(zeros) > 8 and zeros.count(0) > _LEAST_NULS * len(zeros)
        if head.startswith(mark) or (is_half_empty and not other.count(0)):
            return name
    return None


def legacy(chunk: bytes) -> str | None:
    """The encoding in which a piece of a file, which is not UTF-8, reads best; None if in none."""
    if not chunk.decode("utf-8", "ignore").isascii():
        return None  # UTF-8 that is damaged
    found = {name: _score(chunk.decode(name, "replace")) for name in ("cp1252", "mac_roman")}
    best = max(found, key=lambda name: found[name])
    return best if found[best] > 0 else None


def _score(text: str) -> int:
    score = 0
    for at, char in enumerate(text):
        if char.isascii():
            continue
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        score += 1 if char in _USUAL else -2
        shouts = char.isupper() and before.islower()
        is_sign = not char.isalpha() and char not in _WITHIN
        score -= 2 * (shouts or (is_sign and before.isalpha() and after.isalpha()))
    return score
