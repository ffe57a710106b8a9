"""How street addresses are written, one pattern per family of languages.

Each pattern has a group `tail`: the postcode and town, which make an address sure.
"""

from __future__ import annotations

import re

_NAME = r"[A-ZÀ-Ý0-9][\w'’.\-]{0,24}"
_TOWN = r"[A-ZÀ-Ý][\w'’\-]{1,30}"
_FRONT = r"(?<![\w$€£.,/\-])"

_STATE = (
    "A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]"
    "|T[NX]|UT|V[AT]|W[AIVY]|[A-Z][a-z]+"
)
_KIND = (
    "Street|St|Avenue|Ave|Av|Road|Rd|Drive|Dr|Lane|Ln|Boulevard|Blvd|Court|Ct|Place|Pl|Terrace|Ter"
    "|Way|Circle|Cir|Square|Sq|Parkway|Pkwy|Highway|Hwy|Close|Crescent|Cres|Gardens|Grove|Mews"
    "|Row|Trail|Alley|Hill|Walk|Park|View|Green|Rise|Quay|Marg|Nagar|Path|Loop|Run|Plaza|Colony"
)
UK_CODE = r"(?:GIR\s?0AA|[A-Z]{1,2}\d[A-Z\d]?\s?\d[ABD-HJLNP-UW-Z]{2})"
_CODES = (
    rf"(?:(?:{_STATE})\.?,?\s\d{{5}}(?:-\d{{4}})?|{UK_CODE}|[A-Z]\d[A-Z]\s?\d[A-Z]\d"
    r"|(?:NSW|VIC|QLD|WA|SA|TAS|ACT|NT)\s\d{4}|\d{6}|\d{5}(?:-\d{4})?)"
)
_UNIT = (
    r"(?:,?\s(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|Room|Rm|No|Bldg|#)\.?\s?#?[\w\-]{1,6})?"
)
ENGLISH = re.compile(
    rf"{_FRONT}(?:(?:Flat|Apt|Unit|Apartment|Suite)\s\w{{1,5}},\s)?"
    rf"\d{{1,6}}[A-Za-z]?(?:[\-/]\d{{1,5}}[A-Za-z]?)?,?\s(?:{_NAME}\s){{0,4}}?"
    rf"(?:(?:{_KIND})\b|(?:Broadway|Strand|Whitehall|Piccadilly)\b)\.?"
    r"(?:\s(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)\b\.?)?"
    rf"{_UNIT}(?P<tail>,?\s*(?:{_NAME},?\s+){{0,5}}?{_CODES}(?!\w))?"
)

# Any name for the street, if town and postcode follow it after a comma.
ENGLISH_FULL = re.compile(
    rf"{_FRONT}(?:(?:Flat|Apt\.?|Unit|Level|Suite|Studio)\s\w{{1,5}}(?:,\s|\s(?=\d))"
    r"(?:\d{1,6}[A-Za-z]?(?:[\-/]\d{1,5}[A-Za-z]?)?,?\s)?"
    r"|\d{1,6}[A-Za-z]?(?:[\-/]\d{1,5}[A-Za-z]?)?,?\s)"
    rf"(?:{_NAME}\s){{0,4}}?{_NAME}{_UNIT}"
    rf"(?P<tail>,\s*(?:{_NAME},?\s+){{0,5}}?(?:[A-Z]{{2}}\s\d{{5}}(?:-\d{{4}})?|{UK_CODE}"
    r"|[A-Z]\d[A-Z]\s?\d[A-Z]\d|(?:NSW|VIC|QLD|WA|SA|TAS|ACT|NT),?\s\d{4})(?!\w))"
)

_ROAD = (
    "straße|strasse|str\\.|weg|platz|allee|gasse|ring|ufer|damm|hof|steig|markt|straat|laan|gracht"
    "|plein|kade|dijk|dreef|singel|vägen|gatan|gata|veien|vej|gade"
)
GERMANIC = re.compile(
    rf"(?<![\w\-])(?:[A-ZÄÖÜ][\w.\-]{{0,30}}\s){{0,3}}?"
    rf"(?:[A-ZÄÖÜ][\w\-]{{0,30}}(?i:{_ROAD})|(?:Straße|Strasse|Str\.|Weg|Platz|Allee|Ring|Ufer"
    r"|Damm|Markt|Straat|Laan|Plein))\s\d{1,4}(?:\s?[a-zA-Z](?!\w))?(?:[\-/]\d{1,4}\w?)?"
    r"(?P<tail>,?\s*(?:(?:Wohnung|Whg\.|bus|Top)\s\w{1,5},?\s)?(?:[A-Z]{1,2}-)?\d{4,5}"
    rf"(?:\s?[A-Z]{{2}})?,?\s{_TOWN}(?:\s(?:am|an\sder|a\.|im)\s{_TOWN}|\s{_TOWN})?)?"
)
# "Am Markt 5, 04109 Leipzig": any name, if a number, a comma, five digits and a town follow it.
NUMBERED = re.compile(
    rf"(?<!\w)(?:{_TOWN}\s){{1,4}}\d{{1,4}}\s?[a-zA-Z]?"
    rf"(?P<tail>\s?,\s?(?:\d{{5}}|\d{{4}}\s?[A-Z]{{2}},?)\s{_TOWN}(?:\s{_TOWN})?)(?!\w)"
)

_FRENCH_NAME = r"(?:de|du|des|la|le|les|et|sur|aux?|[dl]['’][\w'’\-]+|[A-ZÀ-Ý0-9][\w'’.\-]*)"
FRENCH = re.compile(
    r"(?<![\w.,])(?:\d{1,4}(?:\s?(?:bis|ter|quater))?,?\s)?(?i:rue|avenue|av\.|boulevard|bd|bld"
    r"|place"
    r"|chemin|allée|impasse|quai|route|cours|square|passage|faubourg)\s"
    rf"(?:(?:[\w'’.\-]+[\s,]+){{1,6}}?(?P<tail>\d{{5}}\s{_TOWN}(?:[\s\-](?:{_TOWN}|\d{{1,2}}))*)"
    rf"|{_FRENCH_NAME}(?:\s{_FRENCH_NAME}){{0,5}})(?!\w)"
)

_CONNECT = r"(?:de|del|la|las|los|el|di|della|dei|delle|da|do|dos|das|e|y|[A-ZÀ-Ý0-9][\w'’.\-]*)"
_FLOOR = (
    r"(?:\s?,?\s?(?i:\d{1,2}[º°ª](?:\s\w{1,3})?|piso\s\w+|puerta\s\w+|apto\.?\s\w+|int\.?\s\w+"
    r"|appartamento\s\w+|piano\s\w+)|\s?[,\-]\s?\w{1,3}(?!\w))?"
)
_ROMANCE_KIND = (
    "calle|avenida|avda\\.?|av\\.|paseo|plaza|pza\\.|carrer|ronda|camino|rambla|glorieta|pasaje"
    "|cuesta|vía|vial|callejón|urbanización|pasadizo|via|viale|piazza|corso|vicolo|largo|strada"
    "|contrada|borgo|rua|travessa|alameda|praça|estrada|esplanada"
)
ROMANCE = re.compile(
    rf"(?<!\w)(?:(?i:{_ROMANCE_KIND})\s|(?i:c/)\s?)"
    rf"(?:{_CONNECT},?\s){{1,6}}?(?:n[º°.]?\s?|núm\.?\s?)?\d{{1,5}}(?:\s?[A-Za-z](?!\w))?(?!\w)"
    rf"{_FLOOR}(?P<tail>(?:\s?[,\-]\s?|\s)(?:{_TOWN}[\s,\-]+){{0,3}}?"
    r"(?i:cp\s)?(?:\d{4,5}(?:-\d{3})?|\d{8})(?!\w)"
    rf"(?:,?\s{_TOWN}(?:\s(?:de|del|d[aio])\s{_TOWN}|\s{_TOWN})*(?:\s?(?:\([A-Z]{{2}}\)"
    rf"|/\s?[A-Z]{{2}}))?)?)?"
)
JAPAN = re.compile(r"〒\s?\d{3}-\d{4}(?P<tail>[^\n。、,;\"]{0,48})")

# A text without one of the hints, in lower case, need not be tried against the pattern.
FORMS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    ((*(f" {kind.lower()}" for kind in _KIND.split("|")), " broadway", " strand"), ENGLISH),
    ((*_ROAD.replace("\\", "").split("|"), "str "), GERMANIC),
    ((",",), NUMBERED),
    ((",",), ENGLISH_FULL),
    ((" rue ", " avenue ", " av. ", " boulevard ", " bd ", " place ", " chemin ", " allée ",
      " impasse ", " quai ", " route ", " cours ", " square "), FRENCH),
    ((*(kind.rstrip("?").replace("\\.", "") for kind in _ROMANCE_KIND.split("|")), "c/"), ROMANCE),
    (("〒",), JAPAN),
)  # fmt: skip
