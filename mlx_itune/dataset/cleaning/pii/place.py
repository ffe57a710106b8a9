"""Street addresses (with a postcode, or beside a word such as "lives at") and coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import Found, Rank
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page, data_file, split

_NAME = r"[A-ZÀ-Ý0-9][\w'’.\-]{0,24}"
_TOWN = r"[A-ZÀ-Ý][\w'’\-]{1,30}"
_ENGLISH_ROADS, _GERMANIC_ROADS, _FRENCH_ROADS, _ROMANCE_ROADS = (
    "|".join(map(re.escape, split(data_file("labels")["roads"][language])))
    for language in ("english", "germanic", "french", "romance")
)
_HOUSE = r"\d{1,6}[A-Za-z]?(?:[\-/]\d{1,5}[A-Za-z]?)?,?\s"
_ZIP = r"\d{5}(?:-\d{4})?"
_NATION = (
    rf"[A-Z]{{2}}\.?,?\s{_ZIP}|[A-Z]{{1,2}}\d[A-Z\d]?\s?\d[ABD-HJLNP-UW-Z]{{2}}"
    r"|[A-Z]\d[A-Z]\s?\d[A-Z]\d|(?:NSW|VIC|QLD|WA|SA|TAS|ACT|NT),?\s\d{4}"
)
_UNIT = (
    r"(?:,?\s(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|Room|Rm|No|Bldg|#)\.?\s?#?[\w\-]{1,6})?"
)
_FLAT = r"(?:Flat|Apt\.?|Apartment|Unit|Level|Suite|Studio)\s\w{1,5}(?:,\s|\s(?=\d))"
# The number first. Any name for the street will do, if a nation's postcode follows after a comma.
_ENGLISH = (
    rf"(?<![\w$€£.,/\-])(?:P\.?O\.? Box \d+,? )?(?:{_FLAT}(?:{_HOUSE})?|{_HOUSE})"
    rf"(?:(?P<road>(?:{_NAME}\s){{0,4}}?(?:{_ENGLISH_ROADS})\b\.?(?:\s(?:[NS][EW]?|[EW]|North"
    rf"|South|East|West)\b\.?)?)|(?:{_NAME}\s){{0,4}}?{_NAME}){_UNIT}(?P<tail>(?(road),?|,)\s*"
    rf"(?:{_NAME},?\s+){{0,5}}?(?(road)(?:{_NATION}|[A-Z][a-z]+,?\s{_ZIP}|\d{{6}}|{_ZIP})"
    rf"|(?:{_NATION}))(?!\w))?"
)
_FRENCH_NAME = r"(?:de|du|des|la|le|les|et|sur|aux?|[dl]['’][\w'’\-]+|[A-ZÀ-Ý0-9][\w'’.\-]*)"
_FRENCH = (
    rf"(?<![\w.,])(?P<road>(?:\d{{1,4}}(?:\s?(?:bis|ter|quater))?,?\s)?(?i:{_FRENCH_ROADS})\s)"
    rf"(?:(?:[\w'’.\-]+[\s,]+){{1,6}}?(?P<tail>\d{{5}}\s{_TOWN}(?:[\s\-](?:{_TOWN}|\d{{1,2}}))*)"
    rf"|{_FRENCH_NAME}(?:\s{_FRENCH_NAME}){{0,5}})(?!\w)"
)
# The number last. "Am Markt 5, 04109 Leipzig": any name, if comma, five digits and town follow.
_CONNECT = r"(?:de|del|la|las|los|el|di|della|dei|delle|da|do|dos|das|e|y|[A-ZÀ-Ý0-9][\w'’.\-]*)"
_FLOOR = (
    r"(?:\s?,?\s?(?i:\d{1,2}[º°ª](?:\s\w{1,3})?|(?:piso|puerta|apto\.?|int\.?|appartamento|piano"
    r"|Wohnung|Whg\.|bus|Top)\s\w{1,5})|\s?[,\-]\s?\w{1,3}(?!\w))?"
)
_NUMBER_LAST = (
    rf"(?<![\w\-])(?:(?P<road>(?i:{_ROMANCE_ROADS})\s(?:{_CONNECT},?\s){{1,6}}?"
    rf"(?:n[º°.]?\s?|núm\.?\s?)?|(?i:c/)\s?(?:{_CONNECT},?\s){{1,6}}?"
    rf"|(?:{_NAME}\s){{0,3}}?(?=[A-ZÄÖÜ])[\w\-]{{0,30}}(?i:{_GERMANIC_ROADS})\s)"
    rf"|(?:{_TOWN}\s){{1,4}})\d{{1,5}}(?:\s?[a-zA-Z](?!\w))?(?:[\-/]\d{{1,4}}\w?)?(?!\w){_FLOOR}"
    rf"(?P<tail>(?(road)(?:\s?[,\-]\s?|\s)(?:{_TOWN}[\s,\-]+){{0,3}}?(?i:cp\s)?(?:[A-Z]{{1,2}}-)?"
    rf"(?:\d{{4,5}}(?:-\d{{3}})?|\d{{8}})(?!\d)(?:\s?[A-Z]{{2}}(?!\w))?"
    rf"|\s?,\s?(?:\d{{5}}|\d{{4}}\s?[A-Z]{{2}},?)(?=\s[A-ZÀ-Ý]))"
    rf"(?:,?\s{_TOWN}(?:\s(?:(?:de|del|d[aio]|am|an\sder|im)\s)?{_TOWN})*"
    r"(?:\s?(?:\([A-Z]{2}\)|/\s?[A-Z]{2}))?)?)?"
)
_JAPAN = r"(?P<road>〒\s?\d{3}-\d{4})(?P<tail>[^\n。、,;\"]{0,48})"
_FORMS = tuple(map(re.compile, (_ENGLISH, _FRENCH, _NUMBER_LAST, _JAPAN)))

# What stands before or behind the number of a house: a name, or a word for a road.
_ROAD_BEHIND = re.compile(
    rf"{_HOUSE}(?:[A-ZÀ-Ý]|\d{{1,3}}(?:st|nd|rd|th)\b|(?:bis|ter|quater|{_FRENCH_ROADS})(?!\w))"
)
_NAME_BEFORE = re.compile(r"(?:(?<![\w'’.\-])[A-ZÀ-Ý][\w'’.\-]*,?\s|[º°]\s?|\bn\.?\s?|〒\s?)\Z")
# Beginnings of words of dwelling, in all the languages covered.
_HOME = re.compile(
    "address|live|living|reside|ship|deliver|mail it to|moved to|my (?:house|place|home)|wohn"
    "|anschrift|adress|habit|domicil|direcci|viv[oe] |indirizzo|abito |abita|residen|woon|adres"
    "|endere|mor[oa] |send it|pick (?:me|him|her) up|home|street|住所|地址|住在"
)
_SENTENCE = re.compile(r"[.!?]\s+[A-Z].*\s")
_BEFORE, _BEHIND, _HOME_REACH = 64, 130, 56


def addresses(page: Page, chunk: Chunk) -> Iterator[Found]:
    """The street address whose number of the house begins a chunk."""
    text, at = page.text, chunk.first
    named = _ROAD_BEHIND.match(text, at) or _NAME_BEFORE.search(text, max(0, at - 26), at)
    if not named:
        return
    for form in _FORMS:
        for match in form.finditer(text, max(0, at - _BEFORE), at + _BEHIND):
            if match.start() > at:
                break
            sure = match["tail"] is not None
            if match.end() > at and (sure or (match["road"] and _is_home(page, match.start()))):
                priority = Rank.WHOLE - (not match["road"]) if sure else Rank.VALID_SHAPE
                end = match.start() + len(match.group().rstrip(" ,.;\n"))
                yield Found(priority, "address", match.start(), end)


def _is_home(page: Page, start: int) -> bool:
    """Whether somebody is said to live there, in the same sentence."""
    words = list(_HOME.finditer(page.low, max(0, start - _HOME_REACH), start))
    return bool(words) and not _SENTENCE.search(page.text, words[-1].start(), start)


_PAIR = re.compile(
    r"(?<![\w.])(?P<a>[-+]?\d{1,2}\.(?P<fine>\d{2,}))°?\s?(?P<ns>[NS])?(?:\s?[,;/|]\s?|\s)"
    r"(?P<word>(?:lon|lng|long|longitude)\s?[:=]\s?)?"
    r"(?P<b>[-+]?\d{1,3}\.(?P<fineb>\d{2,}))°?\s?(?P<ew>[EWO])?(?![\w.]?\d)"
)
_DEGREES = re.compile(
    r"(?<!\w)\d{1,2}°\s?\d{1,2}[′']\s?(?:\d{1,2}(?:[.,]\d+)?(?:[″\"]|'')?\s?)?[NS][,;\s]{0,3}"
    r"\d{1,3}°\s?\d{1,2}[′']\s?(?:\d{1,2}(?:[.,]\d+)?(?:[″\"]|'')?\s?)?[EWO]\b"
)
_FIELD = re.compile(
    r"\b(?:lat|latitude|lon|lng|long|longitude)\b[\"']?\s?(?:[:=]|is)?\s?"
    r"(?P<value>[-+]?\d{1,3}\.\d{3,})",
    re.IGNORECASE,
)


def coordinates(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Latitude and longitude to a hundred metres or finer, with a label or with N, S, E, W."""
    text, start, end = page.text, chunk.start, chunk.end + 48
    if text[chunk.end : chunk.end + 1] == "°":
        for match in _DEGREES.finditer(text, start, end):
            yield Found(Rank.LABELLED, "coordinates", *match.span())
    if "." not in text[start : chunk.end]:
        return
    for match in _PAIR.finditer(text, start, end):
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
    for match in _FIELD.finditer(text, max(0, start - 32), end):
        if abs(float(match["value"])) <= 180:
            yield Found(Rank.LABELLED, "coordinates", *match.span("value"))
