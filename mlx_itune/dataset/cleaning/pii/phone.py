"""Telephone numbers: international ones by the numbering plans, national ones by form and label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.hits import LABELLED, SHAPE, VALID_SHAPE, Found
from mlx_itune.dataset.cleaning.pii.spots import Spot

_LEFT = r"(?<![A-Za-z0-9_+])(?<![0-9][.\-/])"
_RIGHT = r"(?![A-Za-z0-9_])(?![\-/.][0-9])"
_EXTENSION = re.compile(
    r"\s?,?\s?(?:\(?(?:ext\.?|extension|extn\.?|x|durchwahl|dw|poste|p\.|int\.?|interno|anexo|ramal"
    r"|toestel|apparaat|doorkies|anknytning|内線|分机)|#)\s?[:.#]?\s?\d{1,6}(?!\d)\)?",
    re.IGNORECASE,
)

_INTERNATIONAL = re.compile(
    r"(?<![A-Za-z0-9_+])\(?(?:\+|00(?=[1-9 ]))\)?[ ]?\(?\d{1,4}\)?"
    r"(?:[ .\-/()]{0,3}\d){5,13}(?![A-Za-z0-9_])"
)
_NORTH_AMERICA = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9][.\-/ ])(?:(?:\+?1|001)[ .\-])?"
    r"(?:\([2-9]\d{2}\)[ \-.]{0,2}\d{3}[ .\-]\d{4}|[1-9]\d{2}([.\-])\d{3}\1\d{4}"
    r"|[2-9]\d{2}[ /][2-9]\d{2}[ \-]\d{4})" + _RIGHT
)
_TOLL_FREE = re.compile(
    r"(?<![\w+])(?:\+?1[ .\-])?\(?8(?:00|33|44|55|66|77|88)\)?[ .\-]\d{3}[ .\-]\d{4}" + _RIGHT
)
_FICTION = re.compile(_LEFT + r"555-\d{4}" + _RIGHT)
_TRUNK = re.compile(
    _LEFT + r"(?<![0-9] )(?!\d{3}-\d{2}-\d{4})\(?0\d{1,5}\)?(?:[ .\-/]{1,3}\d{1,8}){1,5}" + _RIGHT
)
_PARENTHESES = re.compile(r"(?<!\w)\(\d{2,5}\)[ \-]?\d{3,5}[ \-]?\d{3,5}" + _RIGHT)
_MOBILE = re.compile(
    _LEFT
    + r"(?:1[3-9]\d([ \-])\d{4}\1\d{4}|\d{2} 9\d{4}-\d{4}"  # China, Brazil
    + r"|07\d{9}|0[67]\d{8}|01[5-7]\d{8,9}|04\d{8}|0[789]0\d{8})"  # UK FR NL DE AU JP
    + _RIGHT
)
_LABELLED = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]/)[+(]{0,2}\d(?:[ \-./()]{0,3}\d){5,14}(?![A-Za-z0-9_])"
)

# Numbers that look like these are days, times or addresses of machines, whatever stands before.
_DATE = re.compile(
    r"(?:(?:19|20)\d{2}[\-./ ]\d{1,2}[\-./ ]\d{1,2}|\d{1,2}([\-./])\d{1,2}\1(?:19"
    r"|20)?\d{2})(?: .*)?\Z|\d+\.\d+\Z"
)
_FRACTION = re.compile(
    r"[1-9]\d* ?/ ?\d{1,4}|[1-9]\d* - \d+|(?:19|20)\d{2}-\d{4}|\d+(?:\.\d{1,2}){2}"
)
_FOUR_PARTS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}\Z")
# Where national numbers without a label may be at home, by how they begin.
_TRUNK_REGIONS = (
    "GB",
    "DE",
    "FR",
    "IT",
    "NL",
    "AU",
    "JP",
    "IN",
    "CH",
    "AT",
    "BE",
    "SE",
    "CN",
    "IE",
    "NZ",
    "ZA",
)
# "call the function f(12345678)": a program calls, not a person.
_ARGUMENT = re.compile(r"\w\((?:\w+, )*\Z")
_MORE = re.compile(r"[ \-][0-9]{3}")
_SHORTER = re.compile(r"[ .\-/()]+\d+\)?\Z")


def _parsed(number: str, region: str | None) -> tuple[bool, bool]:
    """(possible, valid) under the numbering plans."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False, False
    return phonenumbers.is_possible_number(parsed), phonenumbers.is_valid_number(parsed)


def find(spot: Spot) -> Iterator[Found]:
    """Telephone numbers around a run of seven or more digits."""
    text = spot.page.text
    lo, hi = max(spot.floor, spot.start - 3), spot.end
    labelled: bool | None = None
    if text.find("+", lo, spot.start + 2) >= 0 or spot.digits.startswith("00"):
        for match in _INTERNATIONAL.finditer(text, lo, hi):
            found = _international(spot, match.start(), match.end())
            if found:
                yield _extended(text, found)
    if _DATE.match(spot.run) or _FOUR_PARTS.match(spot.run):
        return
    labelled = spot.labelled("phone", 5) and not spot.arithmetic
    labelled = labelled and not _ARGUMENT.search(text[max(0, spot.start - 24) : spot.start])
    if not spot.denied:
        yield from _national(spot, lo, hi)
    if labelled:
        for match in _LABELLED.finditer(text, lo, hi):
            number = match.group().lstrip("+(")
            if _DATE.match(number) or _FOUR_PARTS.match(number):
                continue
            # A part of more digits than a telephone number has is none.
            if spot.count > 15 and _MORE.match(text, match.end()):
                continue
            if number.isdigit() and (number.endswith("00000") or spot.label.distance > 3):
                continue
            if sum(map(str.isdigit, number)) >= 7 and not _FRACTION.fullmatch(number):
                yield _extended(text, Found(LABELLED, "phone", *match.span()))


def _international(spot: Spot, start: int, end: int) -> Found | None:
    text = spot.page.text
    number = text[start:end]
    if number.startswith("(") and ")" not in number[:6]:
        start, number = start + 1, number[1:]
    dialled = re.sub(r"\A\(?00\)?", "+", number)
    while True:
        possible, valid = _parsed(dialled.replace("(0)", ""), None)
        if possible:
            break
        cut = _SHORTER.search(dialled)
        if cut is None:
            return None
        end -= len(dialled) - cut.start()
        dialled = dialled[: cut.start()]
    plus = number[:3].find("+") >= 0
    if not valid:
        before = text[:start][-3:].rstrip()
        grouped = re.search(r"\d[ .\-/()]+\d", dialled) is not None
        summed = before[-1:].isdigit() or before[-1:] in tuple(")=*")
        if not plus and not spot.labelled("phone", 5):
            return None
        if not spot.labelled("phone", 5) and (summed or not grouped) and len(dialled) < 11:
            return None
    if spot.denied and not valid:
        return None
    return Found(LABELLED if valid and plus else VALID_SHAPE, "phone", start, end, valid)


def _national(spot: Spot, lo: int, hi: int) -> Iterator[Found]:
    text = spot.page.text
    count = spot.count
    if count >= 10:
        for match in _NORTH_AMERICA.finditer(text, lo, hi):
            number = match.group()
            # Three groups apart by spaces are as often a sum or a table.
            bare = " " in number and "(" not in number and "-" not in number
            if bare and not spot.labelled("phone", 5) and not _parsed(number, "US")[1]:
                continue
            yield _extended(text, Found(VALID_SHAPE, "phone", *match.span()))
        for match in _TOLL_FREE.finditer(text, lo, hi):
            yield _extended(text, Found(VALID_SHAPE, "phone", *match.span()))
    for match in _FICTION.finditer(text, lo, hi):
        yield _extended(text, Found(SHAPE, "phone", *match.span()))
    if count < 8:
        return
    for match in _TRUNK.finditer(text, lo, hi):
        digits = sum(map(str.isdigit, match.group()))
        if 9 <= digits <= 12 and not _DATE.match(match.group()):
            end = match.end() - (match.group().endswith(")") and "(" not in match.group())
            if _plausible(match.group(), digits):
                yield _extended(text, Found(VALID_SHAPE, "phone", match.start(), end))
    for pattern in (_PARENTHESES, _MOBILE):
        for match in pattern.finditer(text, lo, hi):
            if 8 <= sum(map(str.isdigit, match.group())) <= 12:
                yield _extended(text, Found(VALID_SHAPE, "phone", *match.span()))


def _plausible(number: str, digits: int) -> bool:
    """Whether a number with a leading zero is at home anywhere."""
    groups = re.findall(r"\d+", number)
    # "01 02 03 04 05" counts, and "02110-1301" is a postcode with its extension.
    if all(group[0] == "0" for group in groups) or list(map(len, groups)) == [5, 4]:
        return False
    if number.startswith("(") or (digits in (10, 11) and re.match(r"0[1-9]\d+[ \-/]", number)):
        return True
    return any(_parsed(number, region)[1] for region in _TRUNK_REGIONS)


def _extended(text: str, found: Found) -> Found:
    """With the extension that follows."""
    match = _EXTENSION.match(text, found.end, found.end + 24)
    return found._replace(end=match.end()) if match else found
