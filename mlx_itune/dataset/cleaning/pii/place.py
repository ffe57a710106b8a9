"""Street addresses (with a postcode, or beside a word such as "lives at") and coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.hits import LABELLED, VALID_SHAPE, WHOLE, Found
from mlx_itune.dataset.cleaning.pii.spots import Page, Spot
from mlx_itune.dataset.cleaning.pii.streets import ENGLISH, FORMS, FRENCH, NUMBERED, UK_CODE

# Beginnings of words of dwelling, in all the languages covered.
_HOME = (
    "address", "live", "living", "reside", "ship", "deliver", "mail it to", "moved to", "my house",
    "my place", "my home", "wohn", "anschrift", "adress", "habit", "domicil", "direcci", "vivo ",
    "vive ", "indirizzo", "abito ", "abita", "residen", "woon", "adres", "endere", "moro ", "mora ",
    "send it", "pick me up", "pick him up", "pick her up", "home", "street", "住所", "地址", "住在",
)  # fmt: skip
_HOME_REACH = 40
_LONGEST = 130
_POSTCODE = re.compile(
    rf"(?:{UK_CODE}|[A-Z]\d[A-Z]\s?\d[A-Z]\d|\d{{4}}\s?[A-Z]{{2}}"
    rf"|(?<=[A-Z]{{2}} )\d{{5}}(?:-\d{{4}})?)(?![A-Za-z0-9])"
)
_PLAIN_CODE = re.compile(r"(?<![\w.,$€£])(?:[A-Z]{1,2}-)?\d{4,6}(?:-\d{3,4})?(?![\w%])(?!,\d)")


def _search(
    page: Page, lo: int, hi: int, house: int | None = None
) -> Iterator[tuple[re.Match[str], bool]]:
    low = page.low[lo:hi]
    for hints, form in FORMS:
        if any(map(low.__contains__, hints)):
            # Where the house is known, a form that begins with its number begins there.
            begin = house if house is not None and form in (ENGLISH, FRENCH) else lo
            for match in form.finditer(page.text, begin, hi):
                if house is not None and match.start() > house:
                    break
                yield match, match["tail"] is not None


def _address(match: re.Match[str], rank: int) -> Found:
    end = match.start() + len(match.group().rstrip(" ,.;\n"))
    return Found(rank, "address", match.start(), end)


def addresses_by_postcode(spot: Spot) -> Iterator[Found]:
    """Street addresses that end in the postcode that the run belongs to."""
    text, start, end = spot.page.text, spot.start, spot.end
    if spot.lettered:
        if not _POSTCODE.search(text, max(0, start - 3), end + 6):
            return
    elif not _PLAIN_CODE.search(text, max(0, start - 3), end + 1) or not _beside_name(text, spot):
        return
    for match, whole in _search(spot.page, max(0, start - _LONGEST), end + 48):
        if whole and match.start() <= start < match.end():
            yield _address(match, WHOLE - (match.re is NUMBERED))


def _beside_name(text: str, spot: Spot) -> bool:
    """Whether a name with a capital stands right before or behind the run."""
    if spot.count > 4 or text[spot.start - 1 : spot.start] == "-":
        word = text.rfind(" ", max(0, spot.start - 24), spot.start - 1) + 1
        if text[word : word + 1].isupper():
            return True
    return text[spot.end : spot.end + 1] == " " and text[spot.end + 1 : spot.end + 2].isupper()


def addresses_by_word(page: Page) -> Iterator[Found]:
    """Street addresses without a postcode, soon after a word such as "lives at"."""
    low = page.low
    for house in page.houses:
        lo = max(0, house - _HOME_REACH - 40)
        lead = low[lo:house]
        at = max([lead.rfind(word) for word in _HOME])
        if at < 0:
            continue
        for match, _ in _search(page, lo + at + 3, min(len(low), house + 80), house):
            near = match.start() - lo - at <= _HOME_REACH + 12
            inside = near and match.start() <= house < match.end()
            if inside and not _ends_within(page.text, lo + at, match):
                yield _address(match, VALID_SHAPE)


def _ends_within(text: str, begin: int, match: re.Match[str]) -> bool:
    """Whether a sentence ends between the word and the address."""
    return re.search(r"[.!?]\s+[A-Z].*\s", text[begin : match.start()]) is not None


_PAIR = re.compile(
    r"(?<![\w.])(?P<a>[-+]?\d{1,2}\.\d{2,})°?\s?(?P<ns>[NS])?(?:\s?[,;/|]\s?|\s)(?P<word>(?:lon"
    r"|lng|long|longitude)\s?[:=]\s?)?"
    r"(?P<b>[-+]?\d{1,3}\.\d{2,})°?\s?(?P<ew>[EWO])?(?![\w.]?\d)"
)
_DEGREES = re.compile(
    r"(?<!\w)\d{1,2}°\s?\d{1,2}[′']\s?(?:\d{1,2}(?:[.,]\d+)?(?:[″\"]"
    r"|''))?\s?[NS][,;\s]{0,3}\d{1,3}°\s?\d{1,2}[′']\s?"
    r"(?:\d{1,2}(?:[.,]\d+)?(?:[″\"]|''))?\s?[EWO]\b"
)
_FIELD = re.compile(
    r"\b(?:lat|latitude|lon|lng|long|longitude)\b[\"']?\s?(?:[:=]"
    r"|is)?\s?(?P<value>[-+]?\d{1,3}\.\d{3,})",
    re.I,
)


def _on_earth(latitude: str, longitude: str) -> bool:
    """Whether two bare numbers are more likely a place than two small values of a list."""
    return abs(float(latitude)) >= 1 and max(abs(float(latitude)), abs(float(longitude))) >= 10


def degrees(page: Page) -> Iterator[Found]:
    """Positions in degrees and minutes."""
    for match in _DEGREES.finditer(page.text):
        yield Found(LABELLED, "coordinates", *match.span())


def coordinates(spot: Spot) -> Iterator[Found]:
    """Latitude and longitude to a hundred metres or finer, with a label or with N, S, E, W."""
    text, lo = spot.page.text, max(0, spot.start - 32)
    hi = min(len(text), spot.end + 48)
    for match in _PAIR.finditer(text, max(0, spot.start - 1), hi):
        if abs(float(match["a"])) > 90 or abs(float(match["b"])) > 180:
            continue
        fine = min(len(match[side].partition(".")[2]) for side in "ab")
        named = spot.label
        lettered = bool(match["ns"] and match["ew"])
        labelled = (named.category == "gps" and named.distance <= 4) or match["word"]
        if (fine >= 3 and (lettered or labelled)) or (lettered and fine >= 2):
            yield Found(LABELLED + 1, "coordinates", *match.span())
        elif 5 <= fine <= 8 and named.category != "other" and _on_earth(match["a"], match["b"]):
            yield Found(VALID_SHAPE, "coordinates", *match.span())
    for match in _FIELD.finditer(text, lo, hi):
        if abs(float(match["value"])) <= 180:
            yield Found(LABELLED, "coordinates", *match.span("value"))
