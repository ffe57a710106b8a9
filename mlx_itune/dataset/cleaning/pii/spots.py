"""Places in a text where digits stand, which is where nearly every kind of personal data stands.

A page is searched once for runs of digits; only what surrounds a run is looked at by detectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from mlx_itune.dataset.cleaning.pii.labels import (
    Label,
    nearest,
    phrase_category,
    script_label,
    stem,
    words_after,
    words_before,
)
from mlx_itune.dataset.cleaning.pii.tables import Head

_RUN = re.compile(r"[0-9]+(?:[ \-./():+]{1,3}[0-9]+)*")
_NO_DIGIT = re.compile(r"[^0-9]+")
_TOKEN_TAIL = re.compile(r"[A-Za-z0-9_+/=.\-:@%]*")
_SUM = re.compile(r"[0-9] [/+\-] [1-9]|[0-9]\+[0-9]")
_KEY_TAIL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{14,}")
# How words for roads begin that are written small: rue, avenue, boulevard, place...
_ROADS = frozenset(("ru", "av", "bo", "bd", "pl", "ch", "al", "im", "qu", "ro", "co", "sq", "bi"))
_DIALLED = re.compile(r"[0-9]{3} - [0-9]{3} - [0-9]{4}")
_AMOUNT = re.compile(r",[0-9]{3}(?![0-9])| ?[/+\-] ?\$")
DIGITS = "0123456789"
OLD_AGES = frozenset(map(str, range(90, 123)))
_NOT_DIGITS = str.maketrans("", "", " -./():+")
_TOKEN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.+")
_LEFT = 48
_MAX_RUN = 240


class Page:
    """A text in plain spelling, its lower case, and which column head stands over a place."""

    __slots__ = ("head_at", "houses", "low", "text")

    def __init__(
        self, text: str, low: str, head_at: Callable[[int], Head | None] | None = None
    ) -> None:
        self.text = text
        self.low = low
        self.head_at = head_at
        # Where a short number stands as the number of a house does.
        self.houses: list[int] = []

    def words_before(self, start: int) -> list[str]:
        head = self.head_at(start) if self.head_at else None
        return words_before(self, start, *(head or ()))


class Spot:
    """One run of digits with its separators: `page.text[start:end]`, `count` digits in it.

    `token` is the stretch of non-space characters around it, `lettered` says that letters join it.
    """

    __slots__ = (
        "_after", "_before", "_label", "_token", "count", "digits", "end", "floor", "page", "start",
    )  # fmt: skip

    def __init__(self, page: Page, start: int, end: int, digits: str, floor: int) -> None:
        self.page = page
        self.start = start
        self.end = end
        self.digits = digits
        self.count = len(digits)
        self.floor = floor
        self._before: list[str] | None = None
        self._after: list[str] | None = None
        self._label: Label | None = None
        self._token: tuple[int, int] | None = None

    @property
    def run(self) -> str:
        return self.page.text[self.start : self.end]

    @property
    def token(self) -> tuple[int, int]:
        if self._token is None:
            text, start = self.page.text, self.start
            floor = max(self.floor, start - _LEFT)
            while start > floor and text[start - 1] in _TOKEN:
                start -= 1
            tail = _TOKEN_TAIL.match(text, self.end, self.end + 200)
            self._token = (start, tail.end() if tail else self.end)
        return self._token

    @property
    def token_digits(self) -> int:
        """How many digits the token has in all."""
        start, end = self.token
        return len(_NO_DIGIT.sub("", self.page.text[start:end]))

    @property
    def lettered(self) -> bool:
        """Whether letters join the run, capitals of an identifier also across one separator."""
        text, start, end = self.page.text, self.start, self.end
        before, after = text[start - 1 : start], text[end : end + 1]
        if before.isalpha() or after.isalpha():
            return before.isascii() and after.isascii()
        capital = bool(before) and before in " -" and text[start - 2 : start - 1].isupper()
        if capital and not text[start - 3 : start - 2].islower():
            return True
        if after and after in " -" and text[end + 1 : end + 2].isupper():
            following = text[end + 2 : end + 3]
            if following.isupper() or not following.isalpha():
                return True
        return bool(before) and before in "-_.:" and text[start - 2 : start - 1].isalpha()

    @property
    def before(self) -> list[str]:
        """Words before the run, nearest first."""
        if self._before is None:
            self._before = self.page.words_before(self.start)
        return self._before

    @property
    def after(self) -> list[str]:
        """The first words after the run."""
        if self._after is None:
            self._after = words_after(self.page.low, self.end)
        return self._after

    @property
    def words(self) -> set[str]:
        """Every word near the run."""
        words = {*self.before, *self.after}
        return words | {stem(word) for word in words if word.endswith(("r",))}

    @property
    def label(self) -> Label:
        """The nearest label before the run."""
        if self._label is None:
            words = self.before
            self._label = nearest(words)
            if self._label.distance == 0 and self.page.text[self.start - 1 : self.start].isalpha():
                # Letters that belong to the value ("PH55 TNW") give way to a real label.
                outer = nearest(words[1:])
                if outer.category and outer.distance <= 3:
                    self._label = outer
            script = script_label(self.page.low, self.start)
            if script.category and script.distance <= self._label.distance:
                self._label = script
        return self._label

    def labelled(self, category: str, distance: int = 3) -> bool:
        """Whether that label belongs to this run: before it, or right behind it."""
        label = self.label
        if label.category == category and label.distance <= distance:
            return True
        if label.category and label.distance <= 1:
            return False
        after = self.after
        return any(
            phrase_category(after[::-1], len(after) - 1 - at) == category
            for at in (0, 1, 2)
            if at < len(after)
        )

    @property
    def arithmetic(self) -> bool:
        """Whether the run stands in a sum or is an amount of money."""
        text, start, end = self.page.text, self.start, self.end
        after = text[end : end + 3].lstrip()
        before = text[max(0, start - 3) : start].rstrip()
        if after[:1] and (after[0] in "=*%^€£×" or after[:2] == "<<"):
            return True
        if before and (before[-1] in "*$€£¥^×" or before[-2:] in (">>", "<<")):
            return True
        if before[-1:] == "=" and not text[max(0, start - 4) : start].rstrip("= ")[-1:].isalpha():
            return True
        if _AMOUNT.match(text, end):
            return True
        run = self.run
        if run[0] == "0" or before[-1:] == "+" or _DIALLED.match(run):
            return False
        return _SUM.search(run) is not None

    @property
    def denied(self) -> bool:
        """Whether a label of something harmless (an order, a version, an ISBN) owns this run."""
        label = self.label
        return label.category == "other" and label.distance <= 2


def spots(page: Page) -> Iterator[Spot]:
    """The runs of digits of a page, without lone numbers of up to three digits."""
    text = page.text
    floor = 0
    position = 0
    following = _next_run(text)
    while True:
        match = following(position)
        if match is None:
            return
        start, end = match.span()
        if end - start > _MAX_RUN:
            # So long a run is a table of numbers or noise: take it in pieces.
            cut = text.rfind(" ", start + 1, start + _MAX_RUN)
            end = cut if cut > start else start + _MAX_RUN
        length = end - start
        if length > 3 or _joined(text, start, end) or (length > 1 and text[start:end] in OLD_AGES):
            digits = text[start:end].translate(_NOT_DIGITS)
            yield Spot(page, start, end, digits, floor)
            tail = _KEY_TAIL.match(text, end)
            if tail is not None:
                end = tail.end()  # one look at a key is enough, however many runs it has
        if length < 6 and _house(text, start, end):
            page.houses.append(start)
        position = floor = end


def has_digits(text: str) -> bool:
    """Whether there is any digit; ten quick looks beat one pattern by far."""
    return any(map(text.__contains__, DIGITS))


def _next_run(text: str) -> Callable[[int], re.Match[str] | None]:
    """A function from a position to the first run of digits from there on.

    Where digits are few, looking for each of the ten is much faster than a pattern is.
    """
    if sum(map(text.count, DIGITS)) * 48 > len(text):
        return partial(_RUN.search, text)
    far = len(text)
    places = [place if place >= 0 else far for place in map(text.find, DIGITS)]

    def following(position: int) -> re.Match[str] | None:
        for at, place in enumerate(places):
            if place < position:
                place = text.find(DIGITS[at], position)
                places[at] = place if place >= 0 else far
        first = min(places)
        return _RUN.match(text, first) if first < far else None

    return following


def _house(text: str, start: int, end: int) -> bool:
    after = text[end : end + 1]
    if after == " " and (text[end + 1 : end + 2].isupper() or text[end + 1 : end + 3] in _ROADS):
        return True
    if after == "," and text[end + 1 : end + 4].lstrip()[:2] in _ROADS:
        return True
    if text[start - 1 : start] != " ":
        return False
    word = text.rfind(" ", max(0, start - 24), start - 1) + 1
    return text[word : word + 1].isupper() or text[start - 2] in ".º°"


def _joined(text: str, start: int, end: int) -> bool:
    """Whether letters stand right beside a short run, or beyond one mark."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isalpha() or after.isalpha():
        return True
    if before and before in "-_.:" and text[start - 2 : start - 1].isalpha():
        return True
    if after and after in "-_:" and text[end + 1 : end + 2].isalpha():
        return True
    # "CXV 629", "962 OHO": capitals across a space.
    return (before == " " and text[max(0, start - 3) : start - 1].isupper()) or (
        after == " " and text[end + 1 : end + 3].isupper() and text[end + 2 : end + 3].isalpha()
    )
