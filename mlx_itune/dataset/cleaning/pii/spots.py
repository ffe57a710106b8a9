"""Places in a text where digits stand, which is where nearly every kind of personal data stands.

A page is searched once for runs of digits; only what surrounds a run is looked at by detectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mlx_itune.dataset.cleaning.pii.labels import (
    Label,
    find_words,
    nearest,
    phrase_category,
    script_label,
    stem,
    words_after,
    words_before,
)
from mlx_itune.dataset.cleaning.pii.tables import Head, column_heads

_RUN = re.compile(r"[0-9]+(?:[ \-./():+]{1,3}[0-9]+)*")
_NO_DIGIT = re.compile(r"[^0-9]+")
_TOKEN_TAIL = re.compile(r"[A-Za-z0-9_+/=.\-:@%]*")
_SUM = re.compile(r"[0-9] [/+\-] [1-9]|[0-9]\+[0-9]")
# Beginnings of the labels of plates and user names.
_SHORT_LABELS = (
    "plate", "user", "login", "handle", "screen", "nutzer", "identifiant", "usu", "utente", "gamer",
    "plaque", "reg", "kenn", "nummernschild", "immatr", "matr", "placa", "targa", "nick", "vrm",
    "kenteken", "tag", "pseudo", "车牌", "車牌", "ナンバー", "用户", "ユーザー", "微信", "账号",
)  # fmt: skip
_KEY_TAIL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{14,}")
# How words for roads begin that are written small: rue, avenue, boulevard, place...
_ROADS = frozenset(("ru", "av", "bo", "bd", "pl", "ch", "al", "im", "qu", "ro", "co", "sq", "bi"))
_DIALLED = re.compile(r"[0-9]{3} - [0-9]{3} - [0-9]{4}")
_AMOUNT = re.compile(r",[0-9]{3}(?![0-9])| ?[/+\-] ?\$")
DIGITS = "0123456789"
_SPARSE = 64  # characters for each run of digits
OLD_AGES = frozenset(map(str, range(90, 123)))
_NOT_DIGITS = str.maketrans("", "", " -./():+")
_TOKEN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.+")
_LEFT = 48
_MAX_RUN = 240


def _no_head(place: int) -> None:
    return None


class Page:
    """A text in plain spelling, its lower case, and what is worked out about it only once."""

    __slots__ = ("_head_at", "_names_plates", "houses", "low", "text")

    def __init__(self, text: str, low: str) -> None:
        self.text = text
        self.low = low
        # Where a short number stands as the number of a house does.
        self.houses: list[int] = []
        self._names_plates: bool | None = None
        self._head_at: Callable[[int], Head | None] | None = None

    def head_at(self, place: int) -> Head | None:
        """The head of the table column that a place belongs to."""
        if self._head_at is None:
            self._head_at = column_heads(self.low) or _no_head
        return self._head_at(place)

    @property
    def names_plates(self) -> bool:
        """Whether the text speaks of number plates or user names, whose values may be short."""
        if self._names_plates is None:
            self._names_plates = any(map(self.low.__contains__, _SHORT_LABELS))
        return self._names_plates

    def words_before(self, start: int) -> list[str]:
        return words_before(self, start, *(self.head_at(start) or ()))


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
            first = self.token[0]
            if first < self.start:
                self._label = self._label_outside(
                    words, len(find_words(self.page.low[first : self.start]))
                )
            script = script_label(self.page.low, self.start)
            if script.category and script.distance <= self._label.distance:
                self._label = script
        return self._label

    def _label_outside(self, words: list[str], own: int) -> Label:
        """The label of a value that begins with letters, the nearest `own` words: "MR-230245".

        Those letters are no distance; beyond a hyphen they may be the label themselves ("MRN-77").
        """
        inner, outer = nearest(words[:own]), nearest(words[own:])
        if self.page.text[self.start - 1].isalpha():
            outside = outer.category and outer.distance <= 3
            return outer if outside or not inner.category else inner
        return inner if inner.category and outer.distance > 0 else outer

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
    far = len(text)
    places = [place if place >= 0 else far for place in map(text.find, DIGITS)]
    runs = 0

    def following(position: int) -> re.Match[str] | None:
        nonlocal runs
        runs += 1
        if runs > 8 and position < runs * _SPARSE:
            return _RUN.search(text, position)
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
