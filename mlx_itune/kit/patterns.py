"""Regular expressions of our data files, and of strangers: compiling and searching those ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import regex

_MOST = 1 << 16
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\Z)|\{(\d+)[^}]*\}|.", re.DOTALL)


_REFERENCE = re.compile(r"%([\w.]+)%")


def pattern_table(
    texts: Mapping[str, str], words: Callable[[str], str] = str
) -> dict[str, re.Pattern[str]]:
    """Patterns by name; the lines of one are joined, %name% is one before it, else of `words`."""
    made: dict[str, str] = {}
    for name, text in texts.items():
        made[name] = _REFERENCE.sub(
            lambda found: made.get(found[1]) or words(found[1]), text.replace("\n", "")
        )
    return {name: re.compile(text) for name, text in made.items()}


def compiled(pattern: str) -> regex.Pattern[str]:
    """The pattern; its methods take a `timeout`. Raises ValueError, which says what is wrong."""
    if len(pattern) > _MOST or _elements(pattern) > _MOST:
        raise ValueError(f"it has more than {_MOST:,} elements, repeated ones counted")
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _elements(pattern: str) -> int:
    """How long a pattern is once `a{3}` is `aaa`, which is how it is compiled."""
    groups, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        text, times = token.group(), token.group(1)
        if text == "(":
            groups.append(0)
            continue
        if times is not None:
            groups[-1] += last * (int(times[:10]) - 1)
            last *= int(times[:10])
            continue
        last = groups.pop() if text == ")" and len(groups) > 1 else 1
        groups[-1] += last
    return max(groups)
