"""Dates of birth beside a word that says so, ages over 89; street addresses (with a postcode, or
beside a word such as "lives at") and coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import Found, Rank
from mlx_itune.dataset.cleaning.pii.page import PATTERNS, Chunk, Page, split
from mlx_itune.kit.json_files import data_file

_RE, _PLACE = PATTERNS["birth"], PATTERNS["place"]
_PHRASES = sorted(split(data_file(__file__, "labels")["birth"]["words"]), key=len, reverse=True)
_HINTS = tuple({phrase.partition(" ")[0] for phrase in _PHRASES} | {"b.", "*"})
# Words, their parts joined by any mark; those of scripts without spaces have no borders; and
# "(b. 1950", "(*1950", "* 3.4.1950".
_SPACED = "|".join(word for word in _PHRASES if word < "\u2e80").replace(" ", r"[ ._\-()]{0,2}")
_LABEL = re.compile(
    rf"(?<![^\W\d_])(?:{_SPACED})(?![^\W\d_])\.?|"
    + "|".join(word for word in _PHRASES if word >= "\u2e80")
    + r"|(?:\bb\.|\(\*)(?=\s?(?:\d|\Z))|(?<![\w*])\*\s?(?=\d\d?\.|\Z)"
)
_REACH = 64
_SPAN_BEFORE, _SPAN_BEHIND, _HOME_REACH = 64, 130, 56


def dates(page: Page) -> Iterator[Found]:
    """Dates that a word before or behind them, or the head of their column, makes ones of birth."""
    low = page.low
    if not any(map(low.__contains__, _HINTS)):
        return
    if any(map(_LABEL.search, page.heads)):
        areas = [(0, len(low))]
    else:
        areas = [(found.start() - 44, found.end() + 110) for found in _LABEL.finditer(low)]
    done = 0
    for start, end in areas:
        for match in _RE["date"].finditer(page.text, max(done, start), end):
            done = match.end()
            if match["one"] and min(int(match["one"]), int(match["two"])) > 12:
                continue
            if _LABEL.search(page.cell(match.start())[1]):
                yield Found(Rank.VERIFIED, "birth_date", *match.span())
            elif _labelled(page, match) or _labelled_behind(page, match):
                yield Found(Rank.LABELLED + 1, "birth_date", *match.span())


def _labelled(page: Page, match: re.Match[str]) -> bool:
    start = match.start()
    labels = list(_LABEL.finditer(page.low, max(0, start - _REACH - 24), start))
    if not labels or labels[-1].end() < start - _REACH:
        return False
    gap = page.text[labels[-1].end() : start]
    if _RE["others"].search(gap) or _RE["date"].search(gap):
        return False
    return not match["weak"] or len(gap.strip(" :=\"'#\t*")) <= 3


def _labelled_behind(page: Page, match: re.Match[str]) -> bool:
    """ "1984-03-02 (DOB)", "on 2 March 1984 he was born", "1984年3月2日生まれ"."""
    behind = _RE["behind"].match(page.text, match.end(), match.end() + 40)
    if behind is None:
        return False
    # "2 May 1984, DOB 3 May 1950": the label belongs to what follows it.
    later = _RE["date"].search(page.text, behind.end(), behind.end() + 24)
    return later is None or later.start() - behind.end() > 12


def ages(page: Page, chunk: Chunk) -> Iterator[Found]:
    """An age from 90 on, where a person is spoken of."""
    text, start = page.text, chunk.first
    number = _RE["old"].match(text, start)
    if not number:
        return
    end = number.end()
    if unit := _RE["age_after"].match(text, end):
        person = unit["clinical"] or _RE["person"].search(text[max(0, start - 80) : end + 40])
        if not person or _RE["range"].search(text, max(0, start - 10), start):
            return
    elif not _RE["age_before"].search(text, max(0, start - 24), start) or _RE["not_age"].match(
        text, end
    ):
        return
    if not _RE["puzzle"].search(text, max(0, start - 200), end + 200):
        yield Found(Rank.LABELLED, "age", start, end)


def addresses(page: Page, chunk: Chunk) -> Iterator[Found]:
    """The street address whose number of the house begins a chunk."""
    text, at = page.text, chunk.first
    before = _PLACE["name_before"].search(text, max(0, at - 26), at)
    if not before and not _PLACE["road_behind"].match(text, at):
        return
    for form in ("english", "french", "number_last", "japan"):
        for match in _PLACE[form].finditer(text, max(0, at - _SPAN_BEFORE), at + _SPAN_BEHIND):
            if match.start() > at:
                break
            sure = match["tail"] is not None
            if match.end() > at and (sure or (match["road"] and _is_home(page, match.start()))):
                priority = Rank.WHOLE - (not match["road"]) if sure else Rank.VALID_SHAPE
                end = match.start() + len(match.group().rstrip(" ,.;\n"))
                yield Found(priority, "address", match.start(), end)


def _is_home(page: Page, start: int) -> bool:
    words = list(_PLACE["home"].finditer(page.low, max(0, start - _HOME_REACH), start))
    return bool(words) and not _PLACE["sentence"].search(page.text, words[-1].start(), start)


def coordinates(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Latitude and longitude to a hundred metres or finer, with a label or with N, S, E, W."""
    text, start, end = page.text, chunk.start, chunk.end + 48
    if text[chunk.end : chunk.end + 1] == "°":
        for match in _PLACE["degrees"].finditer(text, start, end):
            yield Found(Rank.LABELLED, "coordinates", *match.span())
    if "." not in text[start : chunk.end]:
        return
    for match in _PLACE["pair"].finditer(text, start, end):
        a, b = abs(float(match["a"])), abs(float(match["b"]))
        if match.start() >= chunk.end or a > 90 or b > 180:
            continue
        fine = min(len(match["fine"]), len(match["fineb"]))
        around = page.around(*match.span())
        lettered = bool(match["ns"] and match["ew"])
        labelled = around.distance("gps") <= 4 or match["word"]
        # Two bare numbers are more likely a place than small values of a list.
        bare = 5 <= fine <= 8 and around.label != "other" and a >= 1 and max(a, b) >= 10
        if (fine >= 3 and (lettered or labelled)) or (lettered and fine >= 2):
            yield Found(Rank.LABELLED + 1, "coordinates", *match.span())
        elif bare and text[match.start() - 1 : match.start()] != "[":
            yield Found(Rank.VALID_SHAPE, "coordinates", *match.span())
    for match in _PLACE["field"].finditer(text, max(0, start - 32), end):
        if abs(float(match["value"])) <= 180:
            yield Found(Rank.LABELLED, "coordinates", *match.span("value"))
