"""The words of many rows at once: one byte buffer, a few passes of numpy over it.

A word is a run of letters and digits, whatever its case; in scripts written without spaces every
character is a word. Everything that looks at words (near duplicates, the lints' first look) shares
one such reading of a chunk of rows.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
Index = NDArray[np.intp]

_PAD = bytes(16)
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX_SIZE = np.uint64(0xC2B2AE3D27D4EB4F)
_HALF = np.uint64(32)
_SPACE = 0x20
# Thai to Myanmar, Khmer, and everything from the CJK radicals on but Hangul, which has spaces.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xABFF))


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a chunk, in order. Row r owns words [first[r], first[r + 1]).

    `keys` are the first eight bytes of each word in lower case, `hashes` mix them with its length,
    `raw` is the buffer the words lie in, `offsets` (rows + 1) where each row starts in it, and
    `starts` where each word does.
    """

    raw: U8
    offsets: Index
    starts: Index
    first: Index
    keys: U64
    hashes: U32

    @property
    def counts(self) -> Index:
        """How many words each row has."""
        return np.diff(self.first)

    @property
    def rows(self) -> Index:
        """The row of each word."""
        return np.repeat(np.arange(len(self.first) - 1), self.counts)


def split_words(texts: Sequence[bytes]) -> Words:
    """The words of each text (UTF-8)."""
    joined = b"\x00".join(texts) + _PAD
    raw = np.frombuffer(joined, np.uint8)
    lengths = np.fromiter(map(len, texts), np.intp, len(texts))
    offsets = np.zeros(len(texts) + 1, np.intp)
    np.cumsum(lengths + 1, out=offsets[1:])
    if joined.isascii():
        folded = raw | np.uint8(0x20)
        starts, ends = _edges(_is_ascii_word(folded), None)
    else:
        folded, breaks = _fold_unicode(raw)
        is_word = _is_ascii_word(folded)
        is_word |= folded >= np.uint8(0x80)
        starts, ends = _edges(is_word, breaks)
    window: U64 = np.ndarray((len(folded) - 8,), np.dtype("<u8"), folded, strides=(1,))
    sizes = ends - starts
    keys = window[starts]
    keys &= _MASKS[np.minimum(sizes, 8)]
    # Of a long word its start and its length count: enough to tell texts apart.
    mixed = sizes.view(np.uint64) * _MIX_SIZE
    mixed ^= keys
    mixed *= _MIX
    mixed >>= _HALF
    first = np.searchsorted(starts, offsets)
    return Words(raw, offsets, starts, first, keys, mixed.astype(np.uint32))


def _is_ascii_word(folded: U8) -> NDArray[np.bool_]:
    found = (folded - np.uint8(0x61)) < np.uint8(26)
    found |= (folded - np.uint8(0x30)) < np.uint8(10)
    return np.asarray(found, np.bool_)


def _edges(is_word: NDArray[np.bool_], breaks: NDArray[np.bool_] | None) -> tuple[Index, Index]:
    """Where words start and end (exclusive); `breaks` are positions where a new one must start."""
    if breaks is None:
        # The buffer ends in padding, so that changes come in pairs once the first is settled.
        changes = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
        if is_word[0]:
            changes = np.concatenate(([0], changes))
        return changes[0::2], changes[1::2]
    starts = is_word.copy()
    starts[1:] &= ~is_word[:-1] | breaks[1:]
    ends = is_word[:-1] & (~is_word[1:] | breaks[1:])
    return np.flatnonzero(starts), np.flatnonzero(ends) + 1


def _fold_unicode(raw: U8) -> tuple[U8, NDArray[np.bool_] | None]:
    """Lower case, with what is no letter, digit or mark as spaces; and where words must break."""
    ascii_case = (raw < np.uint8(0x80)).view(np.uint8) << np.uint8(5)
    folded = raw | ascii_case
    fold, unspaced = _tables()
    two = np.flatnonzero((raw >= 0xC2) & (raw <= 0xDF))
    if len(two):
        point = (raw[two] & 0x1F).astype(np.intp) << 6 | raw[two + 1] & 0x3F
        low = fold[point]
        letter = low != _SPACE
        folded[two] = np.where(letter, 0xC0 | low >> 6, _SPACE)
        folded[two + 1] = np.where(letter, 0x80 | low & 0x3F, _SPACE)
    three = np.flatnonzero((raw >= 0xE0) & (raw <= 0xEF))
    if not len(three):
        return folded, None
    point = (raw[three] & 0x0F).astype(np.intp) << 12
    point |= (raw[three + 1] & 0x3F).astype(np.intp) << 6 | raw[three + 2] & 0x3F
    low = fold[point]
    letter = low != _SPACE
    folded[three] = np.where(letter, 0xE0 | low >> 12, _SPACE)
    folded[three + 1] = np.where(letter, 0x80 | low >> 6 & 0x3F, _SPACE)
    folded[three + 2] = np.where(letter, 0x80 | low & 0x3F, _SPACE)
    alone = three[unspaced[point] & letter]
    if not len(alone):
        return folded, None
    breaks = np.zeros(len(folded), np.bool_)
    breaks[alone] = True
    breaks[alone + 3] = True
    return folded, breaks


@functools.cache
def _tables() -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Per code point of the basic plane: its lower case (a space for no word), and unspaced."""
    fold = np.full(0x10000, _SPACE, np.uint16)
    for point in range(0x80, 0x10000):
        char = chr(point)
        if unicodedata.category(char)[0] in "LNM":
            low = char.lower()
            same = len(low) == 1 and len(low.encode("utf-8", "surrogatepass")) == (
                2 if point < 0x800 else 3
            )
            fold[point] = ord(low) if same else point
    unspaced = np.zeros(0x10000, np.bool_)
    for start, end in _UNSPACED:
        unspaced[start : end + 1] = True
    return fold, unspaced
