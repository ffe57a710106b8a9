"""Which split a file belongs to, as its name or its folder says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "development": "valid",
    "test": "test",
    "testing": "test",
    "heldout": "test",
}
_ORDER = {"train": 0, "valid": 1, "test": 2, None: 3}


def split_of(path: Path) -> str | None:
    """train, valid or test where the file's name has such a word, or its folder is named so.

    `train-00000-of-00002.parquet`, `alpaca_test.json` and `dev/part1.jsonl` do.
    """
    stem = path.name.split(".", 1)[0].lower()
    named = next((word for word in re.findall(r"[a-z]+", stem) if word in _NAMES), None)
    return _NAMES.get(named or path.absolute().parent.name.lower())


def in_split_order(paths: Iterable[Path]) -> list[Path]:
    """Training files first, so that of two equal rows the held-out one is the repeated one."""
    return sorted(paths, key=lambda path: _ORDER[split_of(path)])
