"""Telephone numbers: international ones by the numbering plans, national ones by form and label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import LABELLED, SHAPE, VALID_SHAPE, Found, in_sum
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page

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
    r"|8(?:00|33|44|55|66|77|88)[ .\-]\d{3}[ .\-]\d{4}|[2-9]\d{2}[ /][2-9]\d{2}[ \-]\d{4})" + _RIGHT
)
_FICTION = re.compile(_LEFT + r"555-\d{4}" + _RIGHT)
# A trunk zero, brackets, or a mobile prefix of CN, BR, UK, FR, NL, DE, AU, JP.
_TRUNK = re.compile(
    _LEFT + r"(?<![0-9] )(?!\d{3}-\d{2}-\d{4})\(?0\d{1,5}\)?(?:[ .\-/]{1,3}\d{1,8}){1,5}" + _RIGHT
)
_MOBILE = re.compile(
    r"(?:(?<!\w)\(\d{2,5}\)[ \-]?\d{3,5}[ \-]?\d{3,5}|"
    + _LEFT
    + r"(?:1[3-9]\d([ \-])\d{4}\1\d{4}|\d{2} 9\d{4}-\d{4}"
    + r"|07\d{9}|0[67]\d{8}|01[5-7]\d{8,9}|04\d{8}|0[789]0\d{8}))"
    + _RIGHT
)
_LABELLED = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]/)[+(]{0,2}\d(?:[ \-./()]{0,3}\d){5,14}(?![A-Za-z0-9_])"
)

# Numbers that look like these are days, times, fractions or addresses of machines.
_DATE = re.compile(
    r"(?:(?:19|20)\d{2}[\-./ ]\d{1,2}[\-./ ]\d{1,2}|\d{1,2}([\-./])\d{1,2}\1(?:19|20)?\d{2})"
    r"(?: .*)?\Z|\d+\.\d+\Z|\d{1,3}(?:\.\d{1,3}){3}\Z"
)
_FRACTION = re.compile(
    r"[1-9]\d* ?/ ?\d{1,4}|[1-9]\d* - \d+|(?:19|20)\d{2}-\d{4}|\d+(?:\.\d{1,2}){2}"
)
# Where national numbers without a label may be at home.
_REGIONS = "GB DE FR IT NL AU JP IN CH AT BE SE CN IE NZ ZA".split()
# "call the function f(12345678)": a program calls, not a person.
_ARGUMENT = re.compile(r"\w\((?:\w+, )*\Z")
_LAST_GROUP = re.compile(r"[ .\-/()]+\d+\)?\Z")
_REACH = 5


def _parsed(number: str, region: str | None) -> tuple[bool, bool]:
    """(possible, valid) under the numbering plans."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False, False
    return phonenumbers.is_possible_number(parsed), phonenumbers.is_valid_number(parsed)


def _is_labelled(page: Page, start: int, end: int, reach: int = _REACH) -> bool:
    around = page.around(start, end)
    if around.label.group == "phone" and around.label.distance <= reach:
        return True
    return around.label.distance > 1 and "phone" in around.behind


def find(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Telephone numbers in a chunk of seven or more digits."""
    text, lo, hi = page.text, max(0, chunk.start - 3), chunk.end
    for match in _INTERNATIONAL.finditer(text, lo, hi):
        if found := _international(page, match.start(), match.end()):
            yield _extended(text, found)
    for pattern, rank in (
        (_NORTH_AMERICA, VALID_SHAPE), (_FICTION, SHAPE), (_TRUNK, VALID_SHAPE),
        (_MOBILE, VALID_SHAPE), (_LABELLED, LABELLED),
    ):  # fmt: skip
        for match in pattern.finditer(text, lo, hi):
            number, start, end = match.group(), match.start(), match.end()
            label = page.around(start, end).label
            if _DATE.match(number.lstrip("+(")) or in_sum(page, start, end):
                continue
            if pattern is _LABELLED:
                fits = _is_dialled(page, number, start, end)
            else:
                fits = _is_national(page, pattern, number, start, end)
                fits = fits and not (label.group == "other" and label.distance <= 2)
            if fits:
                end -= number.endswith(")") and "(" not in number
                yield _extended(text, Found(rank, "phone", start, end))


def _is_dialled(page: Page, number: str, start: int, end: int) -> bool:
    """Whether a label makes any number one of a telephone."""
    if not _is_labelled(page, start, end):
        return False
    round_or_far = number.endswith("00000") or not _is_labelled(page, start, end, 3)
    if number.isdigit() and round_or_far:
        return False
    longer = page.text[end : end + 1] in (" ", "-") and page.text[end + 1 : end + 4].isdigit()
    plain = number.lstrip("+(")
    return not (
        longer
        or sum(map(str.isdigit, number)) < 7
        or _FRACTION.fullmatch(plain)
        or _ARGUMENT.search(page.text[max(0, start - 24) : start])
    )


def _is_national(page: Page, pattern: re.Pattern[str], number: str, start: int, end: int) -> bool:
    """Whether a number can be a national one without any label."""
    groups = re.findall(r"\d+", number)
    digits = sum(map(len, groups))
    if pattern is _NORTH_AMERICA:
        # Three groups apart by spaces are as often a sum or a table.
        bare = " " in number and "(" not in number and "-" not in number
        return not bare or _is_labelled(page, start, end) or _parsed(number, "US")[1]
    if pattern is _FICTION:
        return True
    if pattern is _MOBILE:
        return 8 <= digits <= 12
    # "01 02 03 04 05" counts, and "02110-1301" is a postcode with its extension.
    counted = all(group[0] == "0" for group in groups) or list(map(len, groups)) == [5, 4]
    if counted or not 9 <= digits <= 12:
        return False
    if number.startswith("(") or (digits in (10, 11) and re.match(r"0[1-9]\d+[ \-/]", number)):
        return True
    return any(_parsed(number, region)[1] for region in _REGIONS)


def _international(page: Page, start: int, end: int) -> Found | None:
    text = page.text
    number = text[start:end]
    if number.startswith("(") and ")" not in number[:6]:
        start, number = start + 1, number[1:]
    dialled = re.sub(r"\A\(?00\)?", "+", number)
    while not (plan := _parsed(dialled.replace("(0)", ""), None))[0]:
        if (group := _LAST_GROUP.search(dialled)) is None:
            return None
        end -= len(dialled) - group.start()
        dialled = dialled[: group.start()]
    plus, valid = "+" in number[:3], plan[1]
    if not valid and not _is_labelled(page, start, end):
        before = text[max(0, start - 3) : start].rstrip()
        grouped = re.search(r"\d[ .\-/()]+\d", dialled) is not None
        summed = before[-1:].isdigit() or before[-1:] in (")", "=", "*")
        label = page.around(start, end).label
        denied = label.group == "other" and label.distance <= 2
        if not plus or denied or ((summed or not grouped) and len(dialled) < 11):
            return None
    return Found(LABELLED if valid and plus else VALID_SHAPE, "phone", start, end, valid)


def _extended(text: str, found: Found) -> Found:
    """With the extension that follows."""
    match = _EXTENSION.match(text, found.end, found.end + 24)
    return found._replace(end=match.end()) if match else found
