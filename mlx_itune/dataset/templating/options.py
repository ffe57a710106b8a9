"""How answer options are laid out, what the answer is called among them, and leaving them out."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from mlx_itune.dataset.templating.plan import OptionsMode
from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.patterns import pattern_table

OPTIONS = "options_"

_STYLES: dict[str, list[str]] = data_file(__file__, "wordings")["styles"]
_HEADERS, _BULLETS, _NAMED = (_STYLES[part] for part in ("headers", "bullets", "named"))


@dataclass(frozen=True)
class Style:
    """One way to lay out options; without a `marker` they are left out."""

    header: str
    marker: str

    def block(self, options: Sequence[str]) -> str:
        """The options as text: the header, then one item per line."""
        lines = [self._marked(number) + option for number, option in enumerate(options)]
        return "\n".join([self.header, *lines] if self.header else lines) if self.marker else ""

    def answer(self, options: Sequence[str], right: int) -> str:
        """What an option is called: by its name where the markers are names."""
        if self.marker not in _NAMED:
            return options[right]
        marked = self._marked(right).strip()
        return marked if marked[0] in "([" else marked.rstrip(").:")

    def _marked(self, number: int) -> str:
        kind = next((kind for kind in "Aa1" if kind in self.marker), "")
        return self.marker.replace(kind, _name(number, kind)) if kind else self.marker

    def confuses(self, options: Sequence[str]) -> bool:
        """Whether an option reads like an item's name: among "2" and "1" an answer "2" could mean
        either."""
        names = {self._marked(n).strip(" ().[]:").lower() for n in range(len(options))}
        return any(option.strip(" ().[]:").lower() in names for option in options)


LINES = Style(_HEADERS[0], _BULLETS[0])
LETTERS = Style(_HEADERS[0], _NAMED[0])
NO_OPTIONS = Style("", "")


def style_for(mode: OptionsMode, key: int, options: Sequence[str]) -> Style:
    """The style of one prompt; under "random" it is a pure function of `key` (64 bits)."""
    if mode != "random":
        return {"lines": LINES, "letters": LETTERS, "none": NO_OPTIONS}[mode]
    markers = _BULLETS + _NAMED
    start, header = divmod(key, len(_HEADERS))
    styles = (
        Style(_HEADERS[header], markers[(start + step) % len(markers)])
        for step in range(len(markers))
    )
    return next(
        style for style in styles if style.marker in _BULLETS or not style.confuses(options)
    )


def _name(number: int, kind: str) -> str:
    """The 0-based item as A..Z, AA, AB... or as 1, 2..."""
    if kind == "1":
        return str(number + 1)
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord(kind) + rest) + letters
    return letters


# While options are cut, a pattern is one string: fields as START name END, the options as LIST.
_START, _END, _LIST = "\x00", "\x01", "\x02"
_RE = pattern_table(data_file(__file__, "wordings")["options"])


def without_options(pattern: Pattern) -> tuple[Pattern, str]:
    """The pattern with no trace of its options, and "" or the wording that could not be cut. What
    goes: the list, the sentence that heads it, sentences without a field that speak of it."""
    if OPTIONS not in pattern.fields:
        return pattern, ""
    text = "".join(
        piece if not n % 2 else _LIST if piece == OPTIONS else f"{_START}{piece}{_END}"
        for n, piece in enumerate(pattern.pieces)
    )
    field = _RE["field"]
    stays = [match.group() for match in _RE["woven"].finditer(text)]
    lines: list[str] = []
    gap = True
    for line in _RE["heading"].sub(rf"\g<before>{_LIST}", text).split("\n"):
        units = _RE["unit"].findall(line)
        spoken = {
            unit
            for unit in units
            if unit == _LIST or _RE["mention"].search(_RE["field"].sub(" ", unit))
        }
        stays += [unit for unit in units if unit in spoken and _START in unit]
        kept = "".join(unit for unit in units if unit not in spoken or _START in unit)
        if spoken:
            line = re.sub("[ \t]+", " ", kept).strip()
            gap |= not line and not (lines and lines[-1].strip())
        if line.strip() or not (spoken or gap):
            lines.append(line)
        gap &= not line.strip()
    text = "\n".join(lines).strip("\n")
    if not text.strip():
        stays.append("{options_} alone")
    woven = (
        _RE["field"].sub(r"{\1}", stays[0]).replace(_LIST, "{options_}").strip() if stays else ""
    )
    return Pattern(tuple(field.split(text))), repr(woven) if stays else ""


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
