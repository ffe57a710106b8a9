"""The same text, character for character, in the plain spelling that the detectors read.

Digits of other scripts, full-width letters, odd hyphens and odd spaces become ASCII; every
character stays where it was, so a position found in the view is a position in the text.
"""

from __future__ import annotations

from functools import lru_cache

# The zeros of Arabic, Persian, N'Ko, the scripts of India, Thai, Lao, Tibetan, Burmese, Khmer,
# Mongolian; ten digits follow each.
_ZEROS = (
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x17E0, 0x1810,
)  # fmt: skip


@lru_cache(maxsize=1)
def _table() -> dict[int, str]:
    plain: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    plain |= {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
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
