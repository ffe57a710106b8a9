"""Scores of one answer against its reference: exact match and token-F1."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from typing import Any

from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import parse_object

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Unicode NFC, outer whitespace stripped, each inner run of whitespace one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(answer: str, reference: str) -> bool:
    """Are both the same text after :func:`normalize`?

    Where the reference is a JSON object the answer is compared as JSON: key order, spacing and
    ``1`` against ``1.0`` do not matter; a repeated key does.
    """
    wanted = _json_object(reference)
    if wanted is not None:
        given = _json_object(answer)
        return given is not None and _canonical(given) == _canonical(wanted)
    return normalize(answer) == normalize(reference)


def token_f1(answer: str, reference: str) -> float:
    """Bag-of-words F1 as in SQuAD (1606.05250 section 6.1), but articles count.

    Words are lower-cased and lose ASCII punctuation. Two empty texts score 1, one empty text 0.
    """
    given, wanted = Counter(_words(answer)), Counter(_words(reference))
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def _words(text: str) -> list[str]:
    return normalize(text).lower().translate(_PUNCTUATION).split()


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        return parse_object(text, where=None, error=DataError)
    except DataError:
        return None


def _canonical(value: Any) -> Any:
    """The value with its types told apart (``True`` is not ``1``) and its strings normalized."""
    if isinstance(value, dict):
        return {normalize(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, str):
        return normalize(value)
    return (isinstance(value, bool), value)
