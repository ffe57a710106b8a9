"""Numbers that only their label explains: medical records, passports, accounts, plates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mlx_itune.dataset.cleaning.pii import checksums
from mlx_itune.dataset.cleaning.pii.hits import LABELLED, LABELLED_VERIFIED, Found
from mlx_itune.dataset.cleaning.pii.spots import Spot


class Rule(NamedTuple):
    """What a label's value looks like, and how far from the label it may stand."""

    kind: str
    form: re.Pattern[str]
    digits: tuple[int, int]
    distance: int
    letters: bool = False  # the value has letters as well
    valid: Callable[[str], bool] | None = None


_CODE = r"[A-Za-z]{0,6}[\-/.#]?\d[A-Za-z0-9]*(?:[\-/.][A-Za-z0-9]+)*"
_SPACED = r"[A-Za-z]{0,4}[\-.# ]?\d[A-Za-z0-9]*(?:[\-. ][A-Za-z0-9]*\d[A-Za-z0-9]*)*"
_UPPER = r"[A-Z0-9]{0,8}[\- ]?[A-Z0-9]*\d[A-Z0-9]*(?:[\- ][A-Z0-9]*\d[A-Z0-9]*)*"


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(?<![A-Za-z0-9])" + pattern + r"(?![A-Za-z0-9])")


RULES: dict[str, Rule] = {
    "mrn": Rule("medical_record", _form(_CODE), (4, 14), 2),
    "chart": Rule("medical_record", _form(_CODE), (5, 14), 0),
    "health": Rule("health_id", _form(_SPACED), (5, 16), 2),
    "passport": Rule(
        "passport", _form(r"(?:[A-Z]{0,3}[ \-]?\d{6,9}[A-Z]?|[A-Z0-9]{8,10})"), (4, 10), 4
    ),
    "licence": Rule("driving_licence", _form(_UPPER), (5, 14), 3),
    "account": Rule(
        "bank_account", _form(r"\d(?:[ \-]?\d){5,19}|[A-Z]{1,3}-?\d{6,16}"), (6, 20), 3
    ),
    "routing": Rule(
        "bank_account", _form(r"\d{2}-\d{2}-\d{2}|\d{3}-\d{3}|\d{9}|\d{3} ?\d{3} ?\d{2}"), (6, 9), 3
    ),
    "plate": Rule(
        "plate", _form(r"[A-ZÄÖÜ0-9]{1,4}(?:[ \-·.]?[A-Z0-9]{1,4}){0,3}"), (1, 6), 3, True
    ),
    "vin": Rule("vin", _form(r"[A-HJ-NPR-Z0-9]{17}"), (4, 17), 4),
}
_VIN = _form(r"[A-HJ-NPR-Za-hj-npr-z0-9]{17}")
# Text such as "account since 2023-04-01" or "chart 10.5": dates, times and decimals are no ids.
_NOT_ID = re.compile(
    r"\d{4}-\d{2}-\d{2}.*|\d{1,4}/\d{1,4}|\d{1,4} - \d{1,4}|\d{1,3}-\d{1,3}"
    r"|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d+\.\d+|(?:19|20)\d{2}|\d{1,3}(?:\.\d{1,3}){3}"
    r"|(?:19|20)\d\d[-/](?:19|20)?\d\d|v\d.*|\d+(?:mg|ml|kg|cm|mm|mmol|mcg|bpm|th|st|nd|rd|px|ms"
    r"|k|m|b|s|d|h)",
    re.IGNORECASE,
)
_MONEY = re.compile(r"[$€£¥₹]\s?\Z|\b(?:usd|eur|gbp|inr|rs\.?)\s?\Z", re.IGNORECASE)
_UNIT = re.compile(
    r"(?:[,.]\d{3})+|\s?(?:usd|eur|dollars?|euros?|pounds|€|\$|£|%|mg|ml|kg|percent|followers|users"
    r"|people|times|days?|years?|months?|hours?|points|records|patients|accounts|customers|rows)\b",
    re.IGNORECASE,
)


def find(spot: Spot) -> Iterator[Found]:
    """The labelled number around a run, if its nearest label is one of these."""
    if spot.arithmetic:
        return
    category, distance = spot.label
    after = not category and spot.count >= 5
    if after:
        category, distance = next(
            ((name, 1) for name in ("mrn", "health", "account", "passport", "licence")
             if spot.labelled(name)), ("", 99),
        )  # fmt: skip
    rule = RULES.get(category)
    if rule is None or distance > rule.distance:
        return
    text = spot.page.text
    start, token_end = spot.token
    lead = text[max(0, start - 5) : start]
    # "AB 1234567", "M-AB 1234": letters apart from their digits.
    prefix = re.search(r"(?<![A-Za-z0-9])[A-ZÄÖÜ]{1,3}[ \-][A-Z]{0,2}[ ]?\Z", lead)
    starts = (
        [start - len(prefix.group())]
        if prefix and category in ("passport", "plate", "licence")
        else []
    )
    for begin in (*starts, start):
        match = rule.form.search(text, begin, max(token_end, min(len(text), spot.end + 12)))
        if match is None or not match.start() <= spot.start < match.end():
            continue
        value = match.group()
        digits = sum(map(str.isdigit, value))
        if not rule.digits[0] <= digits <= rule.digits[1] or _excluded(value, category):
            continue
        if rule.letters and not any(map(str.isalpha, value)):
            continue
        if _MONEY.search(text, max(0, match.start() - 5), match.start()) or _UNIT.match(
            text, match.end()
        ):
            continue
        checked = category == "routing" and checksums.routing_number(value)
        if category == "routing" and digits == 9 and not checked:
            continue
        yield Found(
            LABELLED_VERIFIED if checked else LABELLED - distance, rule.kind, *match.span(), checked
        )
        return


def _excluded(value: str, category: str) -> bool:
    if category == "routing":
        return False
    # Millions in round numbers are amounts.
    return _NOT_ID.fullmatch(value) is not None or (value.isdigit() and value.endswith("00000"))


def vins(spot: Spot) -> Iterator[Found]:
    """Vehicle numbers with a right check digit, label or not."""
    start, end = spot.token
    for match in _VIN.finditer(spot.page.text, start, end):
        value = match.group()
        mixed = sum(map(str.isalpha, value)) >= 3 and sum(map(str.isdigit, value)) >= 5
        if mixed and not spot.denied and checksums.vin(value):
            yield Found(LABELLED_VERIFIED, "vin", *match.span(), True)
