"""One side of a template: literal text with `{fields}`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

# Longer ones are no templates, and what looks for wordings in them would take its time.
_MOST_CHARS = 50_000
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


class PatternError(ValueError):
    """The text is no pattern: one line."""


@dataclass(frozen=True)
class Pattern:
    """Literals and fields in turn: (literal, field, literal, ..., literal)."""

    pieces: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Each field once."""
        return tuple(dict.fromkeys(self.pieces[1::2]))

    def render(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced by its value, verbatim."""
        return "".join(values[p] if n % 2 else p for n, p in enumerate(self.pieces))

    def __str__(self) -> str:
        return "".join(
            "{" + piece + "}" if number % 2 else piece.replace("{", "{{").replace("}", "}}")
            for number, piece in enumerate(self.pieces)
        )


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Pattern:
    """The pattern that is written so; `{{` and `}}` are literal braces. Raises PatternError."""
    if len(text) > _MOST_CHARS:
        raise PatternError(f"more than {_MOST_CHARS:,} characters")
    if stray := _CONTROL.search(text):
        raise PatternError(f"a control character {stray.group()!r}")
    pieces = [""]
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            pieces[-1] += literal
            if name is not None:
                name += f"!{conversion}" if conversion else ""
                name += f":{spec}" if spec else ""
                if not name or "{" in name:
                    raise ValueError("{} names no field")
                pieces += [name, ""]
    except ValueError as error:
        raise PatternError(f"a lone brace: {error} (write {{{{ and }}}} for braces)") from None
    return Pattern(tuple(pieces))
