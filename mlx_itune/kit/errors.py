"""Errors a user can act on: one line each, one exit code per kind; 1 is a bug of ours."""

from __future__ import annotations

import contextlib
import difflib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import ClassVar

# Cc control, Cf format (bidi overrides), Cs lone surrogates, Zl/Zp line and paragraph separators:
# each of them could break a line in two or repaint a terminal.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def one_line(text: str) -> str:
    """`text` on one terminal-safe line: control and format characters become escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSAFE else char
        for char in text
    )


class ItuneError(Exception):
    """An expected failure: what happened, where, and what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return one_line(f"{text}; {self.hint}" if self.hint else text)


class UsageError(ItuneError):
    """A flag, config key or argument is wrong."""

    exit_code = 2


class DataError(ItuneError):
    """Rows are broken, or nothing is left to learn from."""

    exit_code = 3


class ModelError(ItuneError):
    """A model, tokenizer or adapter is missing, broken, unsafe or incompatible."""

    exit_code = 4


class StorageError(ItuneError):
    """The disk, its permissions or a lock said no."""

    exit_code = 5


class DivergedError(ItuneError):
    """Training produced non-finite numbers it could not recover from."""

    exit_code = 6


class ResourceError(ItuneError):
    """The work does not fit this machine, or it stalled."""

    exit_code = 7


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
    """Give a place to the error of the block, where it names none. Raises what the block raises."""
    try:
        yield
    except ItuneError as error:
        error.where = error.where or (str(where) if where else None)
        raise


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up under Python (pyo3's PanicException, which is no Exception)."""
    return not isinstance(error, Exception) and type(error).__name__ == "PanicException"


@contextlib.contextmanager
def panics_as(error: type[ItuneError], what: str, where: str) -> Iterator[None]:
    """Raise `error` ("`what`: reason") for a panic of the block; of the block, stderr is silent. A
    panic writes its stack to descriptor 2 before Python hears of it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except BaseException as raised:
        if not is_panic(raised):
            raise
        reason = " ".join(str(raised).split())[:300]
        raise error(f"{what}: {reason}", where=where) from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option a typo most likely meant, or None when nothing is near."""
    by_folded = {option.lower().replace("-", "_"): option for option in options}
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), by_folded, 1, 0.6)
    return by_folded[matches[0]] if matches else None
