"""Dates of birth beside a word that says so, and ages over 89."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import LABELLED, VERIFIED, Found
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page

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
augusti maj marts stycznia lutego marca kwietnia maja czerwca lipca sierpnia września
października listopada grudnia ocak şubat nisan mayıs haziran temmuz ağustos eylül ekim kasım aralık
января февраля марта апреля мая июня июля августа сентября октября ноября декабря"""
_MONTH = "|".join(sorted(set(_MONTHS.split()), key=lambda name: (-len(name), name)))
_YEAR = r"(?:19\d{2}|20[0-3]\d)"
_SHORT = rf"(?:{_YEAR}|'?\d{{2}})"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_NTH = r"(?:st|nd|rd|th|er|º|ª|\.|e)?"
_DATE = re.compile(
    r"(?<![A-Za-z0-9_/])(?<!\d[.\-])(?:"
    rf"{_YEAR}\s?[\-./年]\s?(?:0?[1-9]|1[0-2])\s?[\-./月]\s?{_DAY}日?"
    r"(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
    rf"|(?P<one>{_DAY})(?P<sep>\s?[\-./]\s?)(?P<two>{_DAY})(?P=sep){_SHORT}"
    rf"|{_DAY}{_NTH}(?:\s|-)?\s?(?:of\s|de\s|den\s)?(?:{_MONTH})\.?,?(?:\s|-|\sde\s|\sdel\s|/)\s?"
    rf"{_SHORT}"
    rf"|(?:{_MONTH})\.?(?:\s|-)(?:the\s)?{_DAY}{_NTH}\s?(?:,\s?(?:in\s)?|\s|-){_SHORT}"
    rf"|{_YEAR}[\s\-/](?:{_MONTH})\.?[\s\-/]{_DAY}"
    r"|(?:昭和|平成|令和)\s?\d{1,2}年\s?\d{1,2}月\s?\d{1,2}日"
    # These say little and have to stand right behind their label.
    rf"|(?P<weak>{_YEAR}[01]\d[0-3]\d|[0-3]\d[0-3]\d{_YEAR}"
    rf"|(?:{_MONTH})\.?\s{_YEAR}|[0-3]?\d\s[01]?\d\s{_YEAR})"
    r")(?![\d/])(?![A-Za-z])(?!-\d)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?<![^\W\d_])(?:"
    r"d\.?\s?o\.?\s?b\b\.?|date[ _-]?of[ _-]?birth|birth[ _-]?date|birth[ _-]?day|bday|born"
    r"|birth|day of birth|birthdt|bdate|\bb\.(?=\s?(?:\d|\Z))"
    r"|geb(?:oren|urtsdatum|urtstag|\b)\.?(?:[ -]?dat(?:um|\b)\.?)?|geb\.?\s?-?\s?datum|geb\.?\s?am"
    r"|née?\(?e?\)?\s+le|né\(e\)|née?s?\b(?=\s|[:,(]|\Z)|naissance|date de naiss\b\.?|ddn\b"
    r"|d\.d\.n\.|nac(?:id[oa]s?|imiento|í|ió|\b)\.?|f\.?\s?nac\b\.?|fdn\b|fecha nac\b\.?|cumpleaños"
    r"|anniversaire|nat[oaie](?=\s|\Z)|nascita|nasc(?:id[oa]|imento|eu|i|\b)\.?|data de nasc\b\.?"
    r"|d\.n\.|compleanno|geboortedatum|geboortedag|verjaardag|geboorte|aniversário|fødselsdato|født"
    r"|födelsedatum|född|syntynyt|syntymäaika|urodzon[ya]|urodzenia|ur\.|doğum|рожд\w*|родил\w*"
    r"|roden[áý]?)|生年月日|出生日期|出生年月|出生于|出生|生日|誕生日|생년월일|생일|जन्म|الميلاد|生"
    r"|\(\*(?=\s?(?:\d|\Z))|(?<![\w*])\*\s?(?=\d\d?\.|geb|\Z)"
)
_HINTS = (
    "dob", "d.o.b", "d o b", "birth", "born", "bday", "bdate", "geb", "né", "naiss", "ddn", "d.d.n",
    "nac", "fdn", "annivers", "cumple", "nato", "nata", "nati", "nate", "nasc", "d.n.", "complean",
    "verjaard", "født", "fødsel", "född", "födel", "synty", "urod", "ur.", "doğum", "рожд", "родил",
    "roden", "生", "誕", "생", "जन्म", "الميلاد", "(*", "b.", "*",
)  # fmt: skip
# A date behind one of these words is the date of something else.
_ELSE = re.compile(
    r"[.!?]\s+(?=[A-ZÄÖÜ])|\n\s*\n|\b(?:died|death|visit(?:ed)?|admitted|admission|discharged?"
    r"|appointment|seen|issued|expires?|since|until|married|moved|joined|gestorben|aufnahme|termin"
    r"|party|due|scheduled|released?|founded|created|updated|hired|decedut[oa]|décédée?|weeks"
    r"|cert\w*)\b"
)
_BEHIND = re.compile(
    r"\s?(?:[\(\[,:=\-]\s?)?(?:is\s)?(?:(?:his|her|my|the|their|mein|sein|ihr)\s)?"
    r"(?:\(?(?:dob|d\.o\.b\.?|date of birth|birth ?date|birthday)\b|(?:was|were)\s(?:he\s|she\s"
    r"|i\s)?born|geboren|geburts|(?:he|she|i|they)\s(?:was|were)\sborn|生まれ|出生|生(?![\w一-龥]))",
    re.IGNORECASE,
)
_REACH = 64


def dates(page: Page) -> Iterator[Found]:
    """Dates that a word before or behind them, or the head of their column, makes ones of birth."""
    low = page.low
    if not any(map(low.__contains__, _HINTS)):
        return
    if any(map(_LABEL.search, page.columns.heads)):
        areas = [(0, len(low))]
    else:
        areas = [(found.start() - 44, found.end() + 110) for found in _LABEL.finditer(low)]
    done = 0
    for start, end in areas:
        for match in _DATE.finditer(page.text, max(done, start), end):
            done = match.end()
            if not _is_possible(match):
                continue
            if _LABEL.search(page.columns.cell(match.start())[1]):
                yield Found(VERIFIED, "birth_date", *match.span())
            elif _labelled(page, match) or _labelled_behind(page, match):
                yield Found(LABELLED + 1, "birth_date", *match.span())


def _is_possible(match: re.Match[str]) -> bool:
    """Whether somebody alive can be born then."""
    return not match["one"] or min(int(match["one"]), int(match["two"])) <= 12


def _labelled(page: Page, match: re.Match[str]) -> bool:
    start = match.start()
    labels = list(_LABEL.finditer(page.low, max(0, start - _REACH - 24), start))
    if not labels or labels[-1].end() < start - _REACH:
        return False
    gap = page.text[labels[-1].end() : start]
    if _ELSE.search(gap) or _DATE.search(gap):
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


_OLD = re.compile(r"(?:9\d|1[01]\d|12[0-2])(?!\d)")
_AGE_AFTER = re.compile(
    r"(?:[ -]?(?:y(?:ea)?rs?|year)[ -]?olds?\b|\s?y/?\.?o\.?(?![\w])|\s?yrs?\.?\sold\b"
    r"|[ -]?(?:jahre\salt|jährige[rsnm]?\b|-?jähr)|\sans\b(?!\sde\b)|\saños\b(?:\sde\sedad)?"
    r"|\sanni\b|[ -]jaar\soud|[ -]jarige?\b|\sanos\sde\sidade|\s?歳|\s?岁|\s?years?\sof\sage\b"
    r"|[ -]?yo\b|\s?[mf]\b(?=\s(?:w/|with|c/o|s/p|p/w|presents|here|who)|,))",
    re.IGNORECASE,
)
_AGE_BEFORE = re.compile(
    r"\b(?:aged|age[ds]?|alter|âge|edad|età|leeftijd|idade|alder)\b[\"'*]*\s?(?::|=|is|of|,)?"
    r"[\s\"'*]{0,3}\Z",
    re.IGNORECASE,
)
_NOT_AGE = re.compile(r"[\w%]|[.,]\d|\s?(?:days?|months?|weeks?|hours?|minutes?)", re.IGNORECASE)
# "between 90 and 99 years", "over 90 years old"
_RANGE = re.compile(r"(?:\b(?:and|to|or|over|under|than|until)|[0-9] ?-)\s?\Z", re.IGNORECASE)
_PERSON = re.compile(
    r"\b(?:patient\w*|pat|man|woman|male|female|lady|gentleman|mr|mrs|ms|he|she|grand\w+|who"
    r"|resident|widow\w*|i|i'm|m|f|mother|father|mom|dad|aunt|uncle|person|herr|frau|mann|homme"
    r"|femme|elle|il|paciente|hombre|mujer|paziente|uomo|donna|signora|vrouw|her|his|my|nana"
    r"|neighbou?r|veteran|monsieur|madame|señora?|oma|opa|abuel[oa]|nonn[oa]|age|aged|dob|pt"
    r"|history|presents?)\b",
    re.IGNORECASE,
)
_CLINICAL = re.compile(r"\s?(?:y/?\.?o\b|yo\b|[mf]\b|-?jährige)", re.IGNORECASE)
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
    if not number or re.search(r"[\w.,/$€£\-]\Z", text[max(0, start - 1) : start]):
        return
    end = number.end()
    if _AGE_AFTER.match(text, end):
        person = _CLINICAL.match(text, end) or _PERSON.search(text[max(0, start - 80) : end + 40])
        if not person or _RANGE.search(text, max(0, start - 10), start):
            return
    elif not _AGE_BEFORE.search(text, max(0, start - 20), start) or _NOT_AGE.match(text, end):
        return
    if not _PUZZLE.search(text, max(0, start - 200), end + 200):
        yield Found(LABELLED, "age", start, end)
