"""Dates of birth beside a word that says so, and ages over 89."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import Found, Rank
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page, data_file, split

_WORDS = data_file("labels")["birth"]
_MONTH = rf"(?:{'|'.join(split(_WORDS['months']))})[^\W\d_]{{0,9}}\.?"
_YEAR = r"(?:19\d{2}|20[0-3]\d)"
_SHORT = rf"(?:{_YEAR}|'?\d{{2}})"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_NTH = r"(?:st|nd|rd|th|er|º|ª|\.|e)?"
_DATE = re.compile(
    r"(?<![A-Za-z0-9_/])(?<!\d[.\-])(?:"
    rf"{_YEAR}\s?[\-./年]\s?(?:0?[1-9]|1[0-2])\s?[\-./月]\s?{_DAY}日?"
    r"(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    rf"|(?P<one>{_DAY})(?P<sep>\s?[\-./]\s?)(?P<two>{_DAY})(?P=sep){_SHORT}"
    rf"|{_DAY}{_NTH}(?:\s|-)?\s?(?:of\s|de\s|den\s)?{_MONTH},?(?:\s|-|\sde\s|\sdel\s|/)\s?"
    rf"{_SHORT}"
    rf"|{_MONTH}(?:\s|-)(?:the\s)?{_DAY}{_NTH}\s?(?:,\s?(?:in\s)?|\s|-){_SHORT}"
    rf"|{_YEAR}[\s\-/]{_MONTH}[\s\-/]{_DAY}"
    r"|(?:昭和|平成|令和)\s?\d{1,2}年\s?\d{1,2}月\s?\d{1,2}日"
    # These say little and have to stand right behind their label.
    rf"|(?P<weak>{_YEAR}[01]\d[0-3]\d|[0-3]\d[0-3]\d{_YEAR}"
    rf"|{_MONTH}\s{_YEAR}|[0-3]?\d\s[01]?\d\s{_YEAR})"
    r")(?![\d/])(?![A-Za-z])(?!-\d)",
    re.IGNORECASE,
)
_PHRASES = sorted(split(_WORDS["words"]), key=len, reverse=True)
_HINTS = tuple({phrase.partition(" ")[0] for phrase in _PHRASES} | {"b.", "*"})
# Words, their parts joined by any mark; those of scripts without spaces have no borders; and
# "(b. 1950", "(*1950", "* 3.4.1950".
_SPACED = "|".join(word for word in _PHRASES if word < "\u2e80").replace(" ", r"[ ._\-()]{0,2}")
_LABEL = re.compile(
    rf"(?<![^\W\d_])(?:{_SPACED})(?![^\W\d_])\.?|"
    + "|".join(word for word in _PHRASES if word >= "\u2e80")
    + r"|(?:\bb\.|\(\*)(?=\s?(?:\d|\Z))|(?<![\w*])\*\s?(?=\d\d?\.|\Z)"
)
# A date behind one of these words is the date of something else.
_OTHERS = re.compile(rf"[.!]\s+(?=[A-ZÄÖÜ])|\n\s*\n|\b(?:{'|'.join(split(_WORDS['others']))})\b")
_BEHIND = re.compile(
    r"[\s(\[,:=\-]{0,3}(?:is\s)?(?:(?:his|her|my|the|their|mein|sein|ihr)\s)?(?:dob\b|d\.o\.b"
    r"|date of birth|birth ?da(?:te|y)|geboren|geburts"
    r"|(?:(?:he|she|i|they)\s)?(?:was|were)\s(?:(?:he|she|i|they)\s)?born|生(?!\w|日)|生まれ|出生)",
    re.IGNORECASE,
)
_REACH = 64


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
        for match in _DATE.finditer(page.text, max(done, start), end):
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
    if _OTHERS.search(gap) or _DATE.search(gap):
        return False
    return not match["weak"] or len(gap.strip(" :=\"'#\t*")) <= 3


def _labelled_behind(page: Page, match: re.Match[str]) -> bool:
    """ "1984-03-02 (DOB)", "on 2 March 1984 he was born", "1984年3月2日生まれ"."""
    behind = _BEHIND.match(page.text, match.end(), match.end() + 40)
    if behind is None:
        return False
    # "2 May 1984, DOB 3 May 1950": the label belongs to what follows it.
    later = _DATE.search(page.text, behind.end(), behind.end() + 24)
    return later is None or later.start() - behind.end() > 12


_OLD = re.compile(r"(?<![\w.,/$€£\-])(?:9\d|1[01]\d|12[0-2])(?!\d)")
_AGE_AFTER = re.compile(
    r"(?P<clinical>[ -]?y/?\.?o\.?(?!\w)|\s?[mf]\b(?=\s(?:w/|with|c/o|s/p|p/w|presents|here|who)|,)"
    r"|-?jährige)|[ -]?(?:y(?:ea)?rs?|year)[ -]?olds?\b|\s?yrs?\.?\sold\b|\s?years?\sof\sage\b"
    r"|[ -]?(?:jahre\salt|jährige[rsnm]?\b)|\sans\b(?!\sde\b)|\saños\b|\sanni\b|\sanos\sde\sidade"
    r"|[ -]jaar\soud|[ -]jarige?\b|\s?[歳岁]",
    re.IGNORECASE,
)
_AGE_BEFORE = re.compile(
    r"\b(?:aged|age[ds]?|alter|âge|edad|età|leeftijd|idade|alder)\b(?:[\s\"'*`:=|(),;.?#\-]|</?\w+>"
    r"|\b(?:is|of|ist|est|es|è|a)\b){0,8}\Z",
    re.IGNORECASE,
)
_NOT_AGE = re.compile(r"[\w%]|[.,-]\d|\s?(?:days?|months?|weeks?|hours?|minutes?)", re.IGNORECASE)
# "between 90 and 99 years", "over 90 years old"
_RANGE = re.compile(r"(?:\b(?:and|to|or|over|under|than|until)|[0-9] ?-)\s?\Z", re.IGNORECASE)
_PERSON = re.compile(rf"\b(?:{'|'.join(split(_WORDS['persons']))})\b", re.IGNORECASE)
# Sums about ages are not about persons.
_PUZZLE = re.compile(
    r"\b(?:how (?:old|many)|total|combined|sum|years ago|average|tree|house|building|bottle|wine"
    r"|whisk[ey]+|company|bridge|tortoise|turtle|castle|church)\b",
    re.IGNORECASE,
)


def ages(page: Page, chunk: Chunk) -> Iterator[Found]:
    """An age from 90 on, where a person is spoken of."""
    text, start = page.text, chunk.first
    number = _OLD.match(text, start)
    if not number:
        return
    end = number.end()
    if unit := _AGE_AFTER.match(text, end):
        person = unit["clinical"] or _PERSON.search(text[max(0, start - 80) : end + 40])
        if not person or _RANGE.search(text, max(0, start - 10), start):
            return
    elif not _AGE_BEFORE.search(text, max(0, start - 24), start) or _NOT_AGE.match(text, end):
        return
    if not _PUZZLE.search(text, max(0, start - 200), end + 200):
        yield Found(Rank.LABELLED, "age", start, end)
