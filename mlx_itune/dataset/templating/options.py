"""How answer options are laid out, and what the answer is called among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

OptionsMode = Literal["random", "lines", "letters", "none"]
OPTIONS_MODES: tuple[OptionsMode, ...] = ("random", "lines", "letters", "none")

_HEADERS = (
    "OPTIONS:",
    "Options:",
    "Possible answers:",
    "Choose from:",
    "Choices:",
    "Answer choices:",
    "Answer options:",
    "Pick one:",
    "Choose one:",
    "Select one of these:",
    "Select an answer:",
    "Available answers:",
    "Your choices are:",
    "Candidates:",
    "One of these is the answer:",
    "",
)


class Marker(NamedTuple):
    """What stands before an item: `before` + its name + `after`; no names when `names` is "".

    `names` is "A", "a" or "1". The answer is called `said_before` + name + `said_after`.
    """

    before: str
    names: str = ""
    after: str = " "
    said_before: str = ""
    said_after: str = ""

    @property
    def is_unique(self) -> bool:
        """Whether an item can be told by its marker alone."""
        return bool(self.names)


_BULLETS = (Marker("-"), Marker("*"), Marker("•"), Marker("+"))
_NAMED = (
    Marker("(", "A", ") ", "(", ")"),
    Marker("", "A", ". "),
    Marker("", "A", ") "),
    Marker("", "A", ": "),
    Marker("[", "A", "] ", "[", "]"),
    Marker("(", "a", ") ", "(", ")"),
    Marker("", "a", ") "),
    Marker("", "a", ". "),
    Marker("(", "1", ") ", "(", ")"),
    Marker("", "1", ") "),
    Marker("", "1", ". "),
    Marker("[", "1", "] ", "[", "]"),
)
_MARKERS = (*_BULLETS, *_NAMED)


class Style(NamedTuple):
    """One way to lay out options; `marker` None leaves them out."""

    header: str
    marker: Marker | None


LINES = Style("OPTIONS:", _BULLETS[0])
LETTERS = Style("OPTIONS:", _NAMED[0])
NO_OPTIONS = Style("", None)


def style_for(mode: OptionsMode, key: int, options: Sequence[str]) -> Style:
    """The style of one prompt; under "random" it is a pure function of `key` (64 bits).

    A random marker is never one that an option itself reads like: among the options "2" and "1"
    an answer "2" could mean either.
    """
    if mode != "random":
        return {"lines": LINES, "letters": LETTERS, "none": NO_OPTIONS}[mode]
    header = _HEADERS[key % len(_HEADERS)]
    start = key // len(_HEADERS)
    for step in range(len(_MARKERS)):
        marker = _MARKERS[(start + step) % len(_MARKERS)]
        if not marker.is_unique or not _reads_like_a_name(options, marker):
            return Style(header, marker)
    raise AssertionError("bullets never read like a name")


def block(options: Sequence[str], style: Style) -> str:
    """The options as text: the header, then one item per line."""
    marker = style.marker
    if marker is None:
        return ""
    lines = [
        f"{marker.before}{_name(number, marker.names)}{marker.after}{option}"
        for number, option in enumerate(options)
    ]
    return "\n".join([style.header, *lines] if style.header else lines)


def answer_text(options: Sequence[str], right: int, style: Style) -> str:
    """What option number `right` is called: by its marker if that tells items apart."""
    marker = style.marker
    if marker is None or not marker.is_unique:
        return options[right]
    return f"{marker.said_before}{_name(right, marker.names)}{marker.said_after}"


def _reads_like_a_name(options: Sequence[str], marker: Marker) -> bool:
    names = {_name(number, marker.names).lower() for number in range(len(options))}
    return any(option.strip(" ().[]:").lower() in names for option in options)


def _name(number: int, names: str) -> str:
    """The 0-based item as A..Z, AA, AB... or as 1, 2...; "" without names."""
    if names in ("", "1"):
        return str(number + 1) if names else ""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord(names) + rest) + letters
    return letters
