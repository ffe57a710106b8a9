"""Street addresses (with a postcode, or beside a word such as "lives at") and coordinates."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import Found, Rank
from mlx_itune.dataset.cleaning.pii.page import PATTERNS, Chunk, Page

_RE = PATTERNS["place"]

_BEFORE, _BEHIND, _HOME_REACH = 64, 130, 56


def addresses(page: Page, chunk: Chunk) -> Iterator[Found]:
    """The street address whose number of the house begins a chunk."""
    text, at = page.text, chunk.first
    before = _RE["name_before"].search(text, max(0, at - 26), at)
    if not before and not _RE["road_behind"].match(text, at):
        return
    for form in ("english", "french", "number_last", "japan"):
        for match in _RE[form].finditer(text, max(0, at - _BEFORE), at + _BEHIND):
            if match.start() > at:
                break
            sure = match["tail"] is not None
            if match.end() > at and (sure or (match["road"] and _is_home(page, match.start()))):
                priority = Rank.WHOLE - (not match["road"]) if sure else Rank.VALID_SHAPE
                end = match.start() + len(match.group().rstrip(" ,.;\n"))
                yield Found(priority, "address", match.start(), end)


def _is_home(page: Page, start: int) -> bool:
    """Whether somebody is said to live there, in the same sentence."""
    words = list(_RE["home"].finditer(page.low, max(0, start - _HOME_REACH), start))
    return bool(words) and not _RE["sentence"].search(page.text, words[-1].start(), start)


def coordinates(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Latitude and longitude to a hundred metres or finer, with a label or with N, S, E, W."""
    text, start, end = page.text, chunk.start, chunk.end + 48
    if text[chunk.end : chunk.end + 1] == "°":
        for match in _RE["degrees"].finditer(text, start, end):
            yield Found(Rank.LABELLED, "coordinates", *match.span())
    if "." not in text[start : chunk.end]:
        return
    for match in _RE["pair"].finditer(text, start, end):
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
    for match in _RE["field"].finditer(text, max(0, start - 32), end):
        if abs(float(match["value"])) <= 180:
            yield Found(Rank.LABELLED, "coordinates", *match.span("value"))
