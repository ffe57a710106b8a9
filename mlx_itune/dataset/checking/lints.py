"""Lints: an editable list of texts that do not belong into instruction data (lints.toml)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.checking.chunk import split_words
from mlx_itune.dataset.conversation import ROLES
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.files import storage_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

DEFAULT_LINTS = Path(__file__).with_name("lints.toml")

_START_CHARS = 240
_EXCERPT_CHARS = 60
_LISTS = ("phrases", "patterns", "starts", "words", "opens", "texts")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "code": str,
    "message": str,
    "hint": str,
    "where": (str, list),
    **dict.fromkeys(_LISTS, list),
    "case": bool,
    "drop": bool,
    "max_chars": int,
    "rare": (int, float),
}


@dataclass(frozen=True)
class Lint:
    """One entry of the list; the fields are explained at the top of lints.toml."""

    code: str
    message: str
    hint: str
    where: frozenset[str]
    phrases: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    start: re.Pattern[str] | None = None
    words: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    case: bool = False
    max_chars: int | None = None
    rare: float | None = None
    drop: bool = False

    def find(self, role: str, text: str) -> str | None:
        """What of `text`, a turn's content, this lint objects to; None when it does not."""
        if role not in self.where or (self.max_chars is not None and len(text) > self.max_chars):
            return None
        for exact in self.texts:
            if exact in text:
                return exact
        if not (self.phrases or self.pattern or self.start):
            return text.strip() if self.max_chars is not None else None
        seen = text if self.phrases or self.pattern else text.lstrip()[:_START_CHARS]
        if not seen.isascii():
            seen = seen.replace("’", "'")
        if not self.case:
            seen = seen.lower()
        for phrase in self.phrases:
            if phrase in seen and (match := _whole(phrase).search(seen)):
                return match.group()
        if self.pattern and (match := self.pattern.search(seen)):
            return match.group()
        if self.start and (match := self.start.match(seen.lstrip()[:_START_CHARS])):
            return match.group()
        return None


def load_lints(path: Path | None = None) -> tuple[Lint, ...]:
    """The lints of a TOML file (None: the built-in list). Raises UsageError for a faulty one."""
    own = _read(path or DEFAULT_LINTS)
    if path is None or not own[1]:
        return own[0]
    merged = {lint.code: lint for lint in (*load_lints(), *own[0])}
    return tuple(merged.values())


def excerpt(text: str) -> str:
    """A find as it is shown: one line, not too long, in quotes."""
    line = " ".join(text.split())
    short = line if len(line) <= _EXCERPT_CHARS else f"{line[: _EXCERPT_CHARS - 3]}..."
    return repr(short)


def _whole(phrase: str) -> re.Pattern[str]:
    # re keeps compiled patterns; a phrase is looked up only once it was found as plain text.
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")


def _read(path: Path) -> tuple[tuple[Lint, ...], bool]:
    with storage_errors(path):
        raw = path.read_bytes()
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error
    extra = table.keys() - {"lint", "extend"}
    items, extend = table.get("lint", []), table.get("extend", False)
    if extra or not isinstance(extend, bool) or not isinstance(items, list):
        named = ", ".join(sorted(extra)) or "lint or extend"
        raise UsageError(
            f"unexpected {named}", where=str(path), hint="a file of [[lint]] entries is expected"
        )
    lints = []
    for number, item in enumerate(items, 1):
        code = item.get("code") if isinstance(item, dict) else None
        where = f"{path}: lint {number}" + (f" ({code})" if isinstance(code, str) else "")
        lints.append(_lint(item, where))
    codes = [lint.code for lint in lints]
    twice = {code for code in codes if codes.count(code) > 1}
    if twice:
        raise UsageError(f"the code {min(twice)!r} occurs twice", where=str(path))
    return tuple(lints), extend


def _lint(item: Any, where: str) -> Lint:
    if not isinstance(item, dict):
        raise UsageError("is not a table", where=where)
    _check_types(item, where)
    code = item["code"]
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", code):
        raise UsageError("the code must be lower-case words joined by hyphens", where=where)
    roles = item.get("where", "any")
    roles = [roles] if isinstance(roles, str) else roles
    for role in roles:
        if role not in (*ROLES, "any"):
            raise UsageError(
                f"'where' names {role!r}", where=where, hint=f"use {', '.join(ROLES)} or any"
            )
    if not {"phrases", "patterns", "starts", "texts", "max_chars"} & item.keys():
        raise UsageError("has neither phrases, patterns, starts, texts nor max_chars", where=where)
    for text in item.get("texts", ()):
        # What starts with something frequent would be looked at everywhere.
        if not text or text[0] == " " or text[0].islower() or not text[0].isprintable():
            raise UsageError(f"{text!r} must start with a sign or a capital letter", where=where)
    for word in (*item.get("words", ()), *item.get("opens", ())):
        if len(split_words([word.encode()]).keys) != 1:
            raise UsageError(f"{word!r} is not one word", where=where)
    return Lint(
        code=code,
        message=item.get("message", f"found by the lint {code!r}"),
        hint=item.get("hint", ""),
        where=frozenset(ROLES if "any" in roles else roles),
        phrases=tuple(" ".join(p.lower().split()) for p in item.get("phrases", ())),
        pattern=_compiled(item.get("patterns", ()), where),
        start=_compiled(item.get("starts", ()), where),
        words=tuple(item.get("words", ())),
        opens=tuple(item.get("opens", ())),
        texts=tuple(item.get("texts", ())),
        case=item.get("case", False),
        max_chars=item.get("max_chars"),
        rare=item.get("rare"),
        drop=item.get("drop", False),
    )


def _check_types(item: Mapping[str, Any], where: str) -> None:
    if "code" not in item:
        raise UsageError("has no code", where=where)
    for key, value in item.items():
        if key not in _TYPES:
            near = closest(key, _TYPES)
            hint = f"did you mean {near}?" if near else None
            raise UsageError(f"unknown key {key!r}", where=where, hint=hint)
        wrong = not isinstance(value, _TYPES[key]) or (
            isinstance(value, bool) and _TYPES[key] is not bool
        )
        if wrong or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise UsageError(f"{key!r} has the wrong type", where=where)


def _compiled(patterns: Iterable[str], where: str) -> re.Pattern[str] | None:
    parts = list(patterns)
    for part in parts:
        try:
            re.compile(part)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(f"the pattern {part!r} is faulty: {error}", where=where) from error
    # One alternation is scanned once; flags inside a part would leak into the others.
    try:
        return re.compile("|".join(f"(?:{part})" for part in parts)) if parts else None
    except re.error as error:
        raise UsageError(f"the patterns cannot be joined: {error}", where=where) from error
