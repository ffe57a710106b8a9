"""MinHash signatures of a chunk of rows: one permutation, 64 bins, a byte each.

A row's set is its pairs of neighbouring words. Each pair's hash picks a bin and competes for its
minimum there; an empty bin borrows from another one, chosen by the bin alone (Shrivastava,
"Optimal Densification for Fast and Accurate Minwise Hashing", 2017). The low byte of each minimum
is kept, so that eight bins are one 64-bit column, and 64 bytes say how alike two rows are to about
0.05 of Jaccard similarity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.checking.chunk import U8, U32, U64, Index, Words

COLUMNS = 8
BINS = COLUMNS * 8
# Below this many words a row has too few pairs to tell "nearly the same" from "another one".
MIN_WORDS = 5
# Two rows are compared when five bins of a column agree, the first or the last ones.
BANDS = (np.uint64(0x000000FFFFFFFFFF), np.uint64(0xFFFFFFFFFF000000))

_EMPTY = np.uint32(0xFFFFFFFF)
_SHIFT = 6
_PROBES = np.random.default_rng(20240607).integers(0, BINS, (16, BINS)).astype(np.intp)


def pair_hashes(words: Words) -> tuple[U32, Index]:
    """A hash for each word and the one after it, and the words that end a row, which have none."""
    pairs = words.hashes * np.uint32(0x85EBCA6B)
    pairs[:-1] += words.hashes[1:]
    pairs ^= pairs >> np.uint32(16)
    pairs *= np.uint32(0x7FEB352D)
    pairs ^= pairs >> np.uint32(15)
    pairs *= np.uint32(0x846CA68B)
    pairs ^= pairs >> np.uint32(16)
    ends = words.first[1:] - 1
    return pairs, ends[words.counts > 0]


def signatures(words: Words) -> U64:
    """(rows, COLUMNS) uint64; a row with fewer than MIN_WORDS words has zeros."""
    counts = words.counts
    known = counts >= MIN_WORDS
    out = np.zeros((len(counts), COLUMNS), np.uint64)
    if not known.any():
        return out
    pairs, ends = pair_hashes(words)
    places = np.repeat(np.arange(len(counts)) << _SHIFT, counts)
    places += pairs >> np.uint32(32 - _SHIFT)
    places[ends] = len(counts) << _SHIFT
    table = np.full((len(counts) << _SHIFT) + 1, _EMPTY, np.uint32)
    np.minimum.at(table, places, pairs)
    table = table[:-1]
    _densify(table, known)
    low: U8 = table.astype(np.uint8).reshape(-1, BINS)
    out[known] = low.view(np.uint64)[known]
    return out


def similarity(first: U64, second: U64) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of signatures, row by row."""
    same = (first.view(np.uint8) == second.view(np.uint8)).mean(axis=1)
    # One byte in 256 agrees by chance.
    return np.asarray((same - 1 / 256) / (1 - 1 / 256))


def _densify(table: U32, known: NDArray[np.bool_]) -> None:
    """Fill the empty bins of the known rows from filled ones of the same row."""
    filled = table.copy()
    empty = np.flatnonzero(table == _EMPTY)
    if not known.all():
        empty = empty[known[empty >> _SHIFT]]
    for probe in _PROBES:
        if not len(empty):
            return
        bins = empty & (BINS - 1)
        found = filled[empty - bins + probe[bins]]
        table[empty] = found
        empty = empty[found == _EMPTY]
    if len(empty):
        _rotate(table.reshape(-1, BINS), filled.reshape(-1, BINS), np.unique(empty >> _SHIFT))


def _rotate(table: U32, filled: U32, rows: Index) -> None:
    """What is still empty after every probe takes the next filled bin, around the end."""
    twice = np.concatenate([filled[rows]] * 2, axis=1)
    places = np.where(twice != _EMPTY, np.arange(2 * BINS), 2 * BINS)
    following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :BINS]
    borrowed = np.take_along_axis(twice, following, axis=1)
    now = table[rows]
    table[rows] = np.where(now == _EMPTY, borrowed, now)
