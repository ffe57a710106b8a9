"""Dates of birth beside a word that says so, and ages over 89."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.dates import DATE, date_like, possible
from mlx_itune.dataset.cleaning.pii.hits import LABELLED, VERIFIED, Found
from mlx_itune.dataset.cleaning.pii.spots import Page, Spot

_LABEL = re.compile(
    r"(?<![^\W\d_])(?:"
    r"d\.?\s?o\.?\s?b\b\.?|date[ _-]?of[ _-]?birth|birth[ _-]?date|birth[ _-]?day|bday|birthdate"
    r"|born"
    r"|dateofbirth|birth|day of birth|birthdt|bdate|\bb\.(?=\s?(?:\d|\Z))|"
    r"geb(?:oren|urtsdatum|urtstag|\b)\.?(?:[ -]?dat(?:um|\b)\.?)?|geb\.?\s?-?\s?datum|geb\.?\s?am|"
    r"née?\(?e?\)?\s+le|né\(e\)|née?s?\b(?=\s|[:,(]|\Z)|naissance|date de naiss\b\.?|ddn\b"
    r"|d\.d\.n\.|"
    r"nac(?:id[oa]s?|imiento|í|ió|\b)\.?|f\.?\s?nac\b\.?|fdn\b|fecha nac\b\.?|cumpleaños"
    r"|anniversaire|"
    r"nat[oaie](?=\s|\Z)|nascita|nasc(?:id[oa]|imento|eu|i|\b)\.?|data de nasc\b\.?|d\.n\.|ddn"
    r"|compleanno|"
    r"geboortedatum|geboortedag|verjaardag|geboorte|aniversário|fødselsdato|født|födelsedatum|född|"
    r"syntynyt|syntymäaika|urodzon[ya]|urodzenia|ur\.|doğum|рожд\w*|родил\w*|roden[áý]?"
    r")|生年月日|出生日期|出生年月|出生于|出生|生日|誕生日|생년월일|생일|जन्म|الميلاد"
    r"|\(\*(?=\s?(?:\d|\Z))"
    r"|(?<![\w*])\*\s?(?=\d\d?\.|\Z)"
)
_HINTS = (
    "dob", "d.o.b", "d o b", "birth", "born", "bday", "bdate", "geb", "né", "naiss", "ddn", "d.d.n",
    "nac", "fdn",
    "annivers", "cumple", "nato", "nata", "nati", "nate", "nasc", "d.n.", "complean", "verjaard",
    "født", "fødsel", "född", "födel", "synty", "urod", "ur.", "doğum", "рожд", "родил", "roden",
    "生", "誕", "생", "जन्म", "الميلاد", "(*", "b.", "*",
)  # fmt: skip
_HINTS_BEHIND = ("dob", "d.o.b", "birth", "born", "geb", "生")
# "between 90 and 99 years", "over 90 years old"
_RANGE = re.compile(r"(?:\b(?:and|to|or|over|under|than|until)|[0-9] ?-)\s?\Z", re.IGNORECASE)
_REACH = 64
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
    r"|i\s)?born"
    r"|geboren|geburts|(?:he|she|i|they)\s(?:was|were)\sborn|生まれ|出生|生(?![\w一-龥]))",
    re.IGNORECASE,
)

_AGE_AFTER = re.compile(
    r"(?<![\w.,/$€£\-])(?P<age>9\d|1[01]\d|12[0-2])(?:"
    r"[ -]?(?:y(?:ea)?rs?|year)[ -]?olds?\b|\s?y/?\.?o\.?(?![\w])|\s?yrs?\.?\sold\b"
    r"|[ -]?(?:jahre\salt|jährige[rsnm]?\b|-?jähr)|\sans\b(?!\sde\b)|\saños\b(?:\sde\sedad)?"
    r"|\sanni\b"
    r"|[ -]jaar\soud|[ -]jarige?\b|\sanos\sde\sidade|\s?歳|\s?岁|\s?years?\sof\sage\b|[ -]?yo\b"
    r"|\s?[mf]\b(?=\s(?:w/|with|c/o|s/p|p/w|presents|here|who)|,))",
    re.IGNORECASE,
)
_AGE_BEFORE = re.compile(
    r"\b(?:aged|age[ds]?|alter|âge|edad|età|leeftijd|idade|alder)\b[\"']?\s?(?::|=|is|of|,)?\s?"
    r"(?P<age>9\d|1[01]\d|12[0-2])(?![\w%]|[.,]\d|\s?(?:days?|months?|weeks?|hours?|minutes?))",
    re.IGNORECASE,
)
_PERSON = re.compile(
    r"\b(?:patient\w*|pat|man|woman|male|female|lady|gentleman|mr|mrs|ms|he|she|grand\w+|who"
    r"|resident|widow\w*"
    r"|i|i'm|m|f|mother|father|mom|dad|aunt|uncle|person|herr|frau|patientin|mann|homme|femme"
    r"|elle|il"
    r"|paciente|hombre|mujer|paziente|uomo|donna|signora|man|vrouw|her|his|my|nana|neighbou?r"
    r"|veteran"
    r"|monsieur|madame|señora?|grand-mère|oma|opa|abuel[oa]|nonn[oa]|age|aged|dob|pt|history"
    r"|presents?)\b",
    re.IGNORECASE,
)
_CLINICAL = re.compile(r"\s?(?:y/?\.?o\b|yo\b|[mf]\b|-?jährige)", re.IGNORECASE)
# Sums about ages are not about persons.
_PUZZLE = re.compile(
    r"\b(?:how (?:old|many)|total|combined|sum|years ago|average|tree|house|building|"
    r"bottle|wine|whisk[ey]+|company|bridge|tortoise|turtle|castle|church)\b",
    re.I,
)


def dates(spot: Spot) -> Iterator[Found]:
    """The date that a run is part of, if a word before or behind it makes it one of birth."""
    page, text, low = spot.page, spot.page.text, spot.page.low
    if not date_like(low, spot.start, spot.end):
        return
    lead = low[max(0, spot.start - _REACH - 32) : spot.start]
    head = page.head_at(spot.start)
    if head and _LABEL.search(head[1]):
        lead = f"{head[1]}: "
    elif not any(hint in lead for hint in _HINTS) and not any(
        hint in low[spot.end : spot.end + 40] for hint in _HINTS_BEHIND
    ):
        return
    for match in DATE.finditer(text, max(0, spot.start - 24), spot.end + 16):
        if match.end() <= spot.start or not possible(match):
            continue
        if head and _LABEL.search(head[1]):
            yield Found(VERIFIED, "birth_date", *match.span())
        elif _labelled(page, match) or _labelled_behind(page, match):
            yield Found(LABELLED + 1, "birth_date", *match.span())


def _labelled(page: Page, match: re.Match[str]) -> bool:
    start = match.start()
    labels = list(_LABEL.finditer(page.low, max(0, start - _REACH - 24), start))
    if not labels or labels[-1].end() < start - _REACH:
        return False
    label = labels[-1]
    gap = page.text[label.end() : start]
    if _ELSE.search(gap) or DATE.search(gap):
        return False
    # A form that says little has to stand right behind its label.
    weak = match.group("packed") or match.group("month_only") or match.group("firstg")
    return not weak or len(gap.strip(" :=\"'#\t")) <= 3


def _labelled_behind(page: Page, match: re.Match[str]) -> bool:
    """ "1984-03-02 (DOB)", "on 2 March 1984 he was born", "1984年3月2日生まれ"."""
    behind = _BEHIND.match(page.text, match.end(), match.end() + 40)
    if behind is None or match.group("month_only"):
        return False
    # "2 May 1984, DOB 3 May 1950": the label belongs to what follows it.
    later = DATE.search(page.text, behind.end(), behind.end() + 24)
    return later is None or later.start() - behind.end() > 12


def ages(spot: Spot) -> Iterator[Found]:
    """An age from 90 on, where a person is spoken of."""
    text, start, end = spot.page.text, spot.start, spot.end
    around = slice(max(0, start - 80), end + 40)
    if _AGE_AFTER.match(text, start):
        clinical = _CLINICAL.match(text, end)
        if not (clinical or _PERSON.search(text[around])) or _RANGE.search(
            text, max(0, start - 10), start
        ):
            return
    elif not _AGE_BEFORE.search(text, max(0, start - 16), end + 8):
        return
    if not _PUZZLE.search(text, max(0, start - 200), end + 200):
        yield Found(LABELLED, "age", start, end)
