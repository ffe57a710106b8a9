"""The same text, character for character, in the plain spelling that the detectors read.

Digits of other scripts, full-width letters, odd hyphens and odd spaces become ASCII; every
character stays where it was, so a position found in the view is a position in the text.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=1)
def _table() -> dict[int, str]:
    plain: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for code in range(0x80, 0x1FBFA):
        digit = unicodedata.decimal(chr(code), None)
        if digit is not None:
            plain[code] = str(digit)
    plain |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\u00ad"), "-")
    spaces = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000"
    plain |= dict.fromkeys(map(ord, spaces), " ")
    plain |= {ord("\u2019"): "'", ord("\u2018"): "'", ord("\u201c"): '"', ord("\u201d"): '"'}
    # The one letter whose lower case is longer than itself.
    plain[ord("\u0130")] = "I"
    return plain


def plain_view(text: str) -> str:
    """`text` in plain spelling, of the same length."""
    if not text.isascii():
        text = text.translate(_table())
    if "\\" in text:
        # Text inside JSON or source code: "Tel.\\n030 ..." is a line break, not a letter n.
        for escape in ("\\n", "\\t", "\\r"):
            text = text.replace(escape, "  ")
    return text
