"""One side of a template: literal text with `{fields}`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


class PatternError(ValueError):
    """The text is no pattern: one line."""


class Pattern:
    """Literal text and fields; `{{` and `}}` are literal braces.

    `text` is the pattern as written, `pieces` alternates literal and field: (literal, field,
    literal, ..., literal), `fields` names each field once. Raises PatternError.
    """

    __slots__ = ("_format", "_order", "fields", "pieces", "text")

    def __init__(self, text: str) -> None:
        stray = _CONTROL.search(text)
        if stray:
            raise PatternError(f"a control character {stray.group()!r}")
        pieces = [""]
        for piece in _PIECE.finditer(text):
            written, name = piece.group(), piece.group(1)
            if name is not None:
                if not name:
                    raise PatternError("{} names no field (write {{}} for literal braces)")
                pieces += [name, ""]
            elif written in ("{", "}"):
                shown = text[max(0, piece.start() - 12) : piece.start() + 12]
                raise PatternError(
                    f"a lone {written!r} in {shown!r} (write {written * 2} for a literal brace)"
                )
            else:
                pieces[-1] += written[0] if written in ("{{", "}}") else written
        self._fill(text, tuple(pieces))

    @classmethod
    def of_pieces(cls, pieces: tuple[str, ...]) -> Pattern:
        """The pattern of alternating literals and fields."""
        text = "".join(
            "{" + piece + "}" if number % 2 else piece.replace("{", "{{").replace("}", "}}")
            for number, piece in enumerate(pieces)
        )
        made = cls.__new__(cls)
        made._fill(text, pieces)
        return made

    def _fill(self, text: str, pieces: tuple[str, ...]) -> None:
        self.text = text
        self.pieces = pieces
        self._order = pieces[1::2]
        self.fields = tuple(dict.fromkeys(self._order))
        # Values go through one "%s" each: whatever braces or percents they hold stay as they are.
        self._format = "%s".join(literal.replace("%", "%%") for literal in pieces[::2])

    @property
    def literals(self) -> tuple[str, ...]:
        """What stands between the fields, braces unescaped."""
        return self.pieces[::2]

    def render(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced by its value, verbatim."""
        return self._format % tuple([values[name] for name in self._order])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.pieces == other.pieces

    def __hash__(self) -> int:
        return hash(self.pieces)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"
