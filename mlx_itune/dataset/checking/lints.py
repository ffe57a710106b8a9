"""Lints: an editable list of texts that do not belong into instruction data (lints.toml)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from mlx_itune.dataset.conversation import ROLES, Turn
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.json_files import read_toml, to_record
from mlx_itune.kit.patterns import compiled

_BUILT_IN = Path(__file__).with_name("lints.toml")

_START_CHARS = 240
_EXCERPT_CHARS = 60
# What a pattern, which may be a stranger's, can take on one text.
_PATTERN_S = 1.0


@dataclass(frozen=True)
class Lint:
    """One entry of the list; the fields are explained at the top of lints.toml."""

    code: str
    message: str = ""
    hint: str = ""
    where: str | tuple[str, ...] = "any"
    phrases: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    case: bool = False
    max_chars: int | None = None
    rare: float | None = None
    drop: bool = False

    @functools.cached_property
    def roles(self) -> tuple[str, ...]:
        """The roles of the turns that it looks at."""
        named = (self.where,) if isinstance(self.where, str) else self.where
        return ROLES if "any" in named else named

    def find(self, turn: Turn) -> str | None:
        """What in a turn it objects to; None when it does not."""
        if turn.role not in self.roles:
            return None
        text = turn.content
        if self.max_chars is not None:
            # What a turn that calls tools says besides may well be short, or nothing.
            if len(text) > self.max_chars or turn.tool_calls:
                return None
            if not (self.texts or self.phrases or self.patterns or self.starts):
                return text.strip()
        if (exact := next((exact for exact in self.texts if exact in text), None)) is not None:
            return exact
        if not (self.phrases or self.patterns):
            text = text.lstrip()[:_START_CHARS]
        low = _low(text)
        match = None
        if self.phrase and any(sign in low for sign in self._signs):
            match = self.phrase.search(low)
        if match is None and (not self.words or any(word in low for word in self.words)):
            seen = _plain(text) if self.case else low
            match = self.pattern and self._timed(self.pattern.search, seen)
            head = seen.lstrip()[:_START_CHARS]
            if match is None and self.start and head.startswith(self.opens or ("",)):
                match = self._timed(self.start.match, head)
        return match.group() if match else None

    def _timed(self, look: Callable[..., Any], text: str) -> Any:
        """What a pattern finds in a text. Raises UsageError where that takes too long."""
        try:
            return look(text, timeout=_PATTERN_S)
        except TimeoutError:
            raise UsageError(
                f"a pattern of the lint {self.code!r} takes too long on a text of "
                f"{len(text):,} characters",
                hint="simplify it: no repetition within a repetition",
            ) from None

    @functools.cached_property
    def _signs(self) -> list[str]:
        """Words of which a text has to hold one for any of the phrases."""
        return [max(phrase.lower().split(), key=len) for phrase in self.phrases]

    @functools.cached_property
    def phrase(self) -> re.Pattern[str] | None:
        """The phrases as one pattern."""
        escaped = (r"\s+".join(map(re.escape, phrase.lower().split())) for phrase in self.phrases)
        whole = "|".join(rf"(?:(?<!\w){phrase}(?!\w))" for phrase in escaped)
        return re.compile(whole) if whole else None

    @functools.cached_property
    def pattern(self) -> regex.Pattern[str] | None:
        """The patterns as one."""
        return _joined(self.patterns)

    @functools.cached_property
    def start(self) -> regex.Pattern[str] | None:
        """The starts as one."""
        return _joined(self.starts)


def find_lints(lints: Sequence[Lint], turns: Sequence[Turn]) -> Iterator[tuple[int, Lint, str]]:
    """The first hit of each lint in some turns: the turn (from 0), the lint, what it found."""
    for lint in lints:
        for number, turn in enumerate(turns):
            if (found := lint.find(turn)) is not None:
                yield number, lint, found
                break


@functools.lru_cache(16)
def _plain(text: str) -> str:
    return text if text.isascii() else text.replace("’", "'")


@functools.lru_cache(16)
def _low(text: str) -> str:
    return _plain(text).lower()


@dataclass(frozen=True)
class _File:
    lint: tuple[Lint, ...] = ()
    extend: bool = False


def load_lints(path: Path | None = None) -> tuple[Lint, ...]:
    """The lints of a TOML file (None: the built-in list). Raises UsageError for a faulty one."""
    where = str(path or _BUILT_IN)
    table, _ = read_toml(path or _BUILT_IN, error=UsageError)
    file = to_record(table, _File, where=where, error=UsageError, unknown="refuse")
    codes = [lint.code for lint in file.lint]
    for lint in file.lint:
        problem = "occurs twice" if codes.count(lint.code) > 1 else _problem(lint)
        if problem:
            raise UsageError(f"{lint.code!r} {problem}", where=where)
    built_in = load_lints() if path is not None and file.extend else ()
    return tuple({lint.code: lint for lint in (*built_in, *file.lint)}.values())


def excerpt(text: str) -> str:
    """A find as it is shown: one line, not too long, in quotes."""
    line = " ".join(text.split())
    return repr(line if len(line) <= _EXCERPT_CHARS else f"{line[: _EXCERPT_CHARS - 3]}...")


def _problem(lint: Lint) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", lint.code):
        return "is no code: lower-case words joined by hyphens"
    unknown = [role for role in lint.roles if role not in ROLES]
    if unknown:
        return f"looks at {unknown[0]!r}, which is none of {', '.join(ROLES)} or any"
    if not (lint.phrases or lint.patterns or lint.starts or lint.texts or lint.max_chars):
        return "has neither phrases, patterns, starts, texts nor max_chars"
    if not all(text.strip() for text in (*lint.phrases, *lint.texts)):
        return "looks for a text that is empty"
    for pattern in (*lint.patterns, *lint.starts):
        try:
            compiled(pattern)
        except ValueError as error:
            return f"has a faulty pattern {pattern!r}: {error}"
    try:
        _ = lint.pattern, lint.start
    except ValueError as error:
        return f"has patterns that cannot be joined: {error}"
    return None


def _joined(patterns: Sequence[str]) -> regex.Pattern[str] | None:
    # One alternation is scanned once; flags inside a part would leak into the others.
    return compiled("|".join(f"(?:{part})" for part in patterns)) if patterns else None
