"""Dates in the spellings of several languages, as one pattern; and whether one can be a birth."""

from __future__ import annotations

import re

_MONTHS = """january february march april may june july august september october november december
jan feb mar apr jun jul aug sep sept oct nov dec
januar jänner februar märz mai juni juli oktober dezember mär maerz okt dez
janvier février fevrier mars avril juin juillet août aout septembre octobre novembre décembre
decembre janv févr fév avr juil déc
enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre diciembre
ene abr ago dic
gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre gen mag giu lug set ott
januari februari maart mei augustus mrt
janeiro fevereiro março marco maio junho julho setembro outubro novembro dezembro fev out
februari augusti maj marts stycznia lutego marca kwietnia maja czerwca lipca sierpnia września
października listopada grudnia ocak şubat nisan mayıs haziran temmuz ağustos eylül ekim kasım aralık
января февраля марта апреля мая июня июля августа сентября октября ноября декабря"""
_MONTH = "|".join(sorted(set(_MONTHS.split()), key=lambda name: (-len(name), name)))
_YEAR = r"(?P<year{0}>(?:19|20)\d{{2}})"
_SHORT = r"(?P<year{0}>(?:19|20)\d{{2}}|'?\d{{2}})"
_DAY = r"(?P<day{0}>[0-3]?\d)"
_NTH = r"(?:st|nd|rd|th|er|º|ª|\.|e)?"
_SIDE = r"(?<![A-Za-z0-9_/])(?<!\d[.\-])"
_END = r"(?![\d/])(?![A-Za-z])(?!-\d)"

DATE = re.compile(
    _SIDE
    + "(?:"
    + "|".join(
        (
            _YEAR.format("a") + r"\s?[\-./年]\s?(?P<montha>[01]?\d)\s?[\-./月]\s?"
            + _DAY.format("a") + r"日?(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?",
            r"(?P<firstb>[0-3]?\d)(?P<sepb>\s?[\-./]\s?)(?P<secondb>[0-3]?\d)(?P=sepb)"
            + _SHORT.format("b"),
            _DAY.format("c") + _NTH + rf"(?:\s|-)?\s?(?:of\s|de\s|den\s)?(?:{_MONTH})\.?,?"
            + r"(?:\s|-|\sde\s|\sdel\s|/)\s?" + _SHORT.format("c"),
            rf"(?:{_MONTH})\.?(?:\s|-)(?:the\s)?" + _DAY.format("d") + _NTH
            + r"\s?(?:,\s?(?:in\s)?|\s|-)" + _SHORT.format("d"),
            _YEAR.format("e") + rf"[\s\-/](?:{_MONTH})\.?[\s\-/]" + _DAY.format("e"),
            r"(?P<packed>(?:19|20)\d{2}[01]\d[0-3]\d|[0-3]\d[01]\d(?:19|20)\d{2}"
            r"|[01]\d[0-3]\d(?:19|20)\d{2})",
            r"(?P<month_only>(?:" + _MONTH + r")\.?\s(?:19|20)\d{2})",
            r"(?:昭和|平成|令和)\s?\d{1,2}年\s?\d{1,2}月\s?\d{1,2}日",
            r"(?P<firstg>[0-3]?\d)\s(?P<secondg>[01]?\d)\s" + _YEAR.format("g"),
        )
    )
    + ")"
    + _END,
    re.IGNORECASE,
)  # fmt: skip


_MONTH_STARTS = frozenset(name[:3] for name in _MONTHS.split())
_MARKED = re.compile(r"[0-9]{1,4}\s?[\-./ ]\s?[0-9]{1,2}\s?[\-./ ]\s?[0-9]{1,4}|[0-9]{8}")
_LETTERS = re.compile(r"[^\W\d_]+")


def date_like(low: str, start: int, end: int) -> bool:
    """Whether a run of digits can be a part of a date: a cheap look before DATE is tried."""
    if _MARKED.search(low, start, end) or low[end : end + 2].lstrip()[:1] == "年":
        return True
    behind = _LETTERS.match(low, end + 1)
    if behind and behind.group()[:3] in _MONTH_STARTS:
        return True
    before = _LETTERS.findall(low[max(0, start - 16) : start])
    return any(word[:3] in _MONTH_STARTS for word in before[-2:])


def possible(match: re.Match[str]) -> bool:
    """Whether day, month and year are such that somebody alive can be born then."""
    parts = match.groupdict()
    for letter in "abcdeg":
        year = parts.get(f"year{letter}")
        if year and len(year) == 4 and not 1900 <= int(year) <= 2035:
            return False
        day = parts.get(f"day{letter}")
        if day and not 1 <= int(day) <= 31:
            return False
    month = parts.get("montha")
    if month and not 1 <= int(month) <= 12:
        return False
    for letter in "bg":
        if parts.get(f"first{letter}"):
            low, high = sorted((int(parts[f"first{letter}"]), int(parts[f"second{letter}"])))
            if not (1 <= low <= 12 and 1 <= high <= 31):
                return False
    return True
