"""The kinds of personal data, as a table: the form, its check, the words that go with it.

A form that is strong `alone` is recognised without a word beside it; the others need a label near
them, because one check digit lets one number in ten through and a bare number says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from mlx_itune.dataset.cleaning.pii import checks
from mlx_itune.dataset.cleaning.pii.checks import Check, stdnum
from mlx_itune.dataset.cleaning.pii.page import Page

KINDS = (
    "email", "phone", "card", "iban", "bank_account", "crypto_address", "ssn", "national_id",
    "tax_id", "health_id", "medical_record", "provider_id", "passport", "driving_licence",
    "birth_date", "age", "ip", "mac", "url", "secret", "vin", "plate", "coordinates", "address",
    "username",
)  # fmt: skip


class Found(NamedTuple):
    """A candidate; the higher rank wins where two overlap."""

    rank: int
    kind: str
    start: int
    end: int
    verified: bool = False


# Ranks: how much a rule knows about what it found.
SHAPE = 40
VALID_SHAPE = 60
LABELLED = 70
VERIFIED = 80
LABELLED_VERIFIED = 90
WHOLE = 95  # forms that contain others: key blocks, addresses of web pages

Guard = Callable[[Page, int, int], bool]


class Form(NamedTuple):
    """One way to write a kind.

    `label`, `reach`: the group of labels.toml that may stand before the value, and how many
    unrelated words between. `words`: any of these nearby will do. `guard`: what must be true of
    the place. `digits`: the least number of them.
    """

    kind: str
    pattern: re.Pattern[str]
    digits: int
    label: str
    reach: int
    words: frozenset[str]
    check: Check | None
    alone: Check | None
    guard: Guard | None
    rank: int


def _form(
    kind: str, pattern: str, check: Check | None = None, *, digits: int = 7, label: str = "",
    reach: int = 2, words: str = "", alone: str | Check = "", guard: Guard | None = None,
    rank: int = 0, behind: str = r"(?![.\-/][0-9])",
) -> Form:  # fmt: skip
    compiled = re.compile(
        r"(?<![A-Za-z0-9])(?<![0-9][.\-/])(?:" + pattern + r")(?![A-Za-z0-9])" + behind
    )
    spelled = re.compile(alone).match if isinstance(alone, str) and alone else None
    strong = alone if callable(alone) else (lambda value: bool(spelled(value))) if spelled else None
    return Form(
        kind, compiled, digits, label, reach, frozenset(words.split()), check, strong, guard, rank
    )


# Text such as "account since 2023-04-01" or "chart 10.5": dates, times and decimals are no ids.
_NOT_ID = re.compile(
    r"\d{4}-\d{2}-\d{2}.*|\d{1,4}/\d{1,4}|\d{1,4} - \d{1,4}|\d{1,3}-\d{1,3}"
    r"|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d+\.\d+|(?:19|20)\d{2}|\d{1,3}(?:\.\d{1,3}){3}"
    r"|(?:19|20)\d\d[-/](?:19|20)?\d\d|v\d.*|\d+(?:mg|ml|kg|cm|mm|mmol|mcg|bpm|th|st|nd|rd|px|ms"
    r"|k|m|b|s|d|h)|\d+00000",
    re.IGNORECASE,
)
_MONEY = re.compile(r"[$€£¥₹]\s?\Z|\b(?:usd|eur|gbp|inr|rs\.?)\s?\Z", re.IGNORECASE)
_UNIT = re.compile(
    r"(?:[,.]\d{3})+|\s?(?:usd|eur|dollars?|euros?|pounds|€|\$|£|%|mg|ml|kg|percent|followers|users"
    r"|people|times|days?|years?|months?|hours?|points|records|patients|accounts|customers|rows)\b",
    re.IGNORECASE,
)
_SUM_BEFORE = re.compile(
    r"(?:[$€£¥₹^×]|>>|<<|\d ?\*|[^A-Za-z*]\*|(?:\A|[^A-Za-z\"' ]) ?=|  =) {0,2}\Z"
)
_SUM_BEHIND = re.compile(r" {0,2}(?:[=%^€£×]|\*(?!\*)|<<|,\d{3}(?!\d)|[/+\-] ?\$)")
_SUM = re.compile(r"[0-9] [/+\-] [1-9]|[0-9]\+[0-9]")
_DIALLED = re.compile(r"[+0]|[0-9]{3} - [0-9]{3} - [0-9]{4}")


def in_sum(page: Page, start: int, end: int) -> bool:
    """Whether a number stands in a sum or is an amount of money."""
    text = page.text
    if _SUM_BEFORE.search(text[max(0, start - 4) : start]) or _SUM_BEHIND.match(text, end):
        return True
    return not _DIALLED.match(text, start) and bool(_SUM.search(text, start, end))


def _is_id(page: Page, start: int, end: int) -> bool:
    """Whether what stands beside a label is the number of a record, and no date, size or sum."""
    text = page.text
    return not (
        _NOT_ID.fullmatch(text, start, end)
        or _MONEY.search(text, max(0, start - 5), start)
        or _UNIT.match(text, end)
        or in_sum(page, start, end)
    )


def _is_plate(page: Page, start: int, end: int) -> bool:
    value = page.text[start:end]
    return (
        any(map(str.isalpha, value)) and any(map(str.isdigit, value)) and _is_id(page, start, end)
    )


_VERSION = re.compile(
    r"(?:\b(?:v|rv|version|versions|ver\.?|release|releases|build|firmware|revision|rev\.?"
    r"|section|§|chapter|kapitel|clause|paragraph|upgraded? (?:to|from)|updated? (?:to|from)"
    r"|sdk|driver|patch|tag|release notes for|requires|oid|schema|downgraded? to"
    r"|chrome|firefox|python|java|node|kernel|library|package|nuget|plugin|step|figure|table)|=="
    r"|>=|<=|~=|[a-z]/)[\s:#=\"'`(]{0,3}\Z"
)
_UPGRADE = re.compile(r"\b(?:upgrad|updat|bump|downgrad|releas|version)[a-z]*\b")
_PORT = re.compile(r":\d{2,5}\b|/\d{1,2}\b")


def _is_address(page: Page, start: int, end: int) -> bool:
    """Whether four numbers are the address of a machine, and no version or section."""
    if _VERSION.search(page.low, max(0, start - 24), start):
        return False
    label = page.around(start, end).label
    if label.group == "ip" and label.distance <= 3:
        return True
    parts = page.text[start:end].split(".")
    small = all(int(part) < 20 for part in parts) and parts[0] != "10" and len(set(parts)) > 1
    return not (
        _UPGRADE.search(page.low, max(0, start - 48), start)
        or (label.group == "other" and label.distance <= 2)
        or (small and not _PORT.match(page.text, end))
    )


def _no_fingerprint(page: Page, start: int, end: int) -> bool:
    around = page.text[max(0, start - 3) : start], page.text[end : end + 2]
    return not (re.search(r"[0-9A-Fa-f]{2}[:\-]\Z", around[0]) or around[1][:1] in (":", "-"))


_ALWAYS = "."
_TRIPLES = r"\d{3}[ \-.]?\d{3}[ \-.]?\d{3}"
_CODE = r"[A-Za-z]{0,6}[\-/.#]?\d[A-Za-z0-9]*(?:[\-/.][A-Za-z0-9]+)*"
_SPACED = r"[A-Za-z]{0,4}[\-.# ]?\d[A-Za-z0-9]*(?:[\-. ][A-Za-z0-9]*\d[A-Za-z0-9]*)*"
_UPPER = r"[A-Z0-9]{0,8}[\- ]?[A-Z0-9]*\d[A-Z0-9]*(?:[\- ][A-Z0-9]*\d[A-Z0-9]*)*"
_TAX = "identity national citizen fiscal steuer tax tin "
_ID = (
    "identity national citizen fiscal ausweis personalausweis identité identidad identità "
    "identidade identiteit kimlik "
)
_CARD_WORDS = """card cards creditcard cardnumber visa mastercard amex maestro discover diners jcb
    cc kreditkarte kreditkartennummer kartennummer karte carte tarjeta carta cartão kaart kort karta
    debit credit pan"""
_KVNR_WORDS = """kvnr krankenversichertennummer versichertennummer krankenkasse versicherten kv
    krankenversicherungsnummer versichertennr gesundheitskarte"""

FORMS: tuple[Form, ...] = (
    # Money
    _form("card", r"\d{4}([ .\-]{1,3})\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?"
          r"|3\d{3}([ .\-])\d{6}\2\d{4,5}|\d{12,19}|\d(?:[ \-]?\d){11,18}", checks.luhn,
          words=_CARD_WORDS, alone=checks.issued_card, digits=12),
    _form("iban", r"[A-Za-z]{2} ?\d{2}(?:[ \-.]{0,2}[A-Za-z0-9]){11,30}", checks.iban,
          alone=_ALWAYS, rank=10),
    _form("crypto_address", r"[13][1-9A-HJ-NP-Za-km-z]{25,35}|(?:bc1q|BC1Q)[02-9A-Za-z]{11,80}",
          stdnum("bitcoin"), alone=_ALWAYS, digits=1, rank=10),
    _form("crypto_address", r"0x[0-9A-Fa-f]{40}|(?:bc1p|tb1[pq]|ltc1|addr1)[02-9ac-hj-np-z]{38,99}",
          alone=_ALWAYS, digits=1, rank=30),
    _form("bank_account", r"\d(?:[ \-]?\d){5,19}|[A-Z]{1,3}-?\d{6,16}", label="account", reach=3,
          digits=6, guard=_is_id),
    _form("bank_account", r"(?:0\d|1[0-2]|2[1-9]|3[0-2]|6[1-9]|7[0-2]|80)\d{7}", stdnum("us.rtn"),
          label="routing", reach=3),
    _form("bank_account", r"\d{2}-\d{2}-\d{2}|\d{3}-\d{3}|\d{3} ?\d{3} ?\d{2}",
          label="routing", reach=3, digits=6),
    # Social security and tax
    _form("ssn", r"(?!000|666|9)\d{3}([ \-.]?)(?!00)\d{2}\1(?!0000)\d{4}", alone=r"...-",
          words="ssn ssns social itin taxpayer socialsecuritynumber ss", rank=3),
    _form("ssn", r"9\d\d([ \-]?)(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])\1\d{4}", alone=r"...-",
          words="itin taxpayer ssn", rank=3),
    _form("tax_id", r"\d{2}-?\d{7}", stdnum("us.ein"), words="ein fein employer", rank=-17),
    _form("tax_id", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", stdnum("de.idnr"), label="tax",
          words=_TAX + "steuerid idnr steueridentifikationsnummer identifikationsnummer "
          "steueridentnummer steueridnr finanzamt"),
    _form("tax_id", r"\d{2}\.?\d{3}\.?\d{3}/?\d{4}-?\d{2}", stdnum("br.cnpj"), words="cnpj",
          alone=r"..\.?...\.?.../....-"),
    _form("tax_id", r"\d{3} ?\d{3} ?\d{2,3}", stdnum("au.tfn"), label="tax",
          words=_TAX + "tfn file ato"),
    _form("tax_id", _TRIPLES, stdnum("pt.nif"), label="tax", words=_TAX + "nif contribuinte"),
    _form("tax_id", r"[A-Z]{5}\d{4}[A-Z]", stdnum("in_.pan"), words="pan permanent income",
          alone=r"...[PHF]", digits=4, rank=-17),
    # National numbers
    _form("national_id", _TRIPLES, checks.luhn, label="nid",
          words=_ID + "sin nas canadian"),
    _form("national_id",
          r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PRSTW-Z][A-CEGHJ-NPRSTW-Z]([ \-.]?)\d{2}\1\d{2}\1\d{2}"
          r"\1[A-D]", alone=_ALWAYS, words="ni nino", digits=6, rank=3),
    # Beside its label a number of letters that were never given out is one as well.
    _form("national_id", r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z]", label="nid", reach=3,
          words="ni nino", digits=6, rank=3),
    _form("national_id", r"[1-478] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3}[ \-]?\d{2}",
          stdnum("fr.nir"), words=_ID + "nir sécurité sociale sécu insee ss vitale nss",
          alone=_ALWAYS),
    _form("national_id", r"\d{4}[ .]?\d{2}[ .]?\d{3}|" + _TRIPLES, stdnum("nl.bsn"),
          words=_ID + "bsn burgerservicenummer burgerservicenr sofinummer sofi burgerservice"),
    _form("national_id", r"\d{2}\.?\d{3}\.?\d{3}[\- ]?[A-Z]", stdnum("es.dni"), alone=_ALWAYS),
    _form("national_id", r"[XYZ][\- ]?\d{7}[\- ]?[A-Z]", stdnum("es.nie"), alone=_ALWAYS),
    _form("national_id",
          r"[A-Z]{3} ?[A-Z]{3} ?[\dL-V]{2}[A-T][\dL-V]{2} ?[A-Z][\dL-V]{3} ?[A-Z]",
          stdnum("it.codicefiscale"), alone=_ALWAYS, digits=1),
    _form("national_id", r"\d{3}\.?\d{3}\.?\d{3}[\-/ ]?\d{2}", stdnum("br.cpf"),
          words=_ID + "cpf contribuinte receita cadastro", alone=r"\d{3}\.\d{3}\.\d{3}-"),
    _form("national_id", r"[2-9]\d{3}([ \-]?)\d{4}\1\d{4}", stdnum("in_.aadhaar"),
          words=_ID + "aadhaar aadhar uidai adhaar uid आधार", alone=r"....[ \-]"),
    _form("national_id", r"(?:\d{2})?\d{6}[\-+ ]?\d{4}", stdnum("se.personnummer"),
          words=_ID + "personnummer personal samordningsnummer svenskt personnr swedish",
          alone=r"\d+[-+]"),
    _form("national_id", r"\d{11}", stdnum("pl.pesel"), words=_ID + "pesel"),
    _form("national_id", r"\d{2}\.?\d{2}\.?\d{2}[\-. ]?\d{3}[. ]?\d{2}", stdnum("be.nn"),
          words=_ID + "rijksregisternummer rijksregister registre insz niss belgian",
          alone=r"..\...\...-...\."),
    _form("national_id", r"\d{6}[\- ]?\d{4}", stdnum("dk.cpr"),
          words=_ID + "cpr cprnummer personnummer"),
    _form("national_id", r"\d{6} ?\d{5}", stdnum("no.fodselsnummer"),
          words=_ID + "fødselsnummer fodselsnummer personnummer norwegian fnr"),
    _form("national_id", r"\d{6}[\-+ABCDEFUVWXY]\d{3}[0-9A-Z]", stdnum("fi.hetu"), alone=_ALWAYS,
          digits=6),
    _form("national_id", r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}", stdnum("ch.ssn"), alone=_ALWAYS),
    _form("national_id", r"[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])[0-3]\d{4}[\dX]",
          stdnum("iso7064.mod_11_2"), alone=_ALWAYS),
    _form("national_id", r"\d{6}-?\d{7}", stdnum("kr.rrn"), words=_ID + "rrn",
          alone=r"......-"),
    _form("national_id", r"\d{13}", stdnum("za.idnr"), words=_ID + "south rsa african sa"),
    _form("national_id", r"\d{11}", stdnum("tr.tckimlik"), words=_ID + "tc tckn"),
    _form("national_id", r"\d{11}", stdnum("gr.amka"), words=_ID + "amka αμκα"),
    _form("national_id", r"\d{13}", stdnum("ro.cnp"), words=_ID + "cnp"),
    _form("national_id", r"\d{6}/?\d{3,4}", stdnum("cz.rc"), words="rodné rodne rč rodného"),
    _form("national_id", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d", stdnum("mx.curp"),
          alone=_ALWAYS, digits=6),
    # Health
    _form("health_id", r"\d{3}[ \-]?\d{3}[ \-]?\d{4}", stdnum("gb.nhs"), words="nhs"),
    _form("health_id", r"[2-6]\d{3}[ \-]?\d{5}[ \-]?\d(?:[/ \-]?\d)?", checks.au_medicare,
          words="medicare", alone=r"....[ \-].....[ \-]"),
    _form("health_id", r"[A-Z] ?\d{3} ?\d{3} ?\d{3}", checks.de_kvnr, words=_KVNR_WORDS, digits=9),
    _form("health_id",
          r"[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d"
          r"-?[AC-HJKMNP-RT-Y]{2}\d{2}", alone=_ALWAYS, words="mbi medicare beneficiary", digits=5,
          rank=3),
    _form("health_id", _SPACED, label="health", digits=5, guard=_is_id),
    _form("provider_id", r"[12]\d{9}", checks.npi, words="npi provider prescriber prescribing"),
    _form("provider_id", r"[A-HJ-MPRSTUX][A-Z9]-?\d{7}", checks.dea, words="dea prescriber"),
    _form("medical_record", _CODE, label="mrn", guard=_is_id, digits=4),
    _form("medical_record", _CODE, label="chart", reach=0, guard=_is_id, digits=5),
    # Documents and vehicles
    _form("passport", r"[A-Z]{0,3}[ \-]?\d{6,9}[A-Z]?|[A-Z0-9]{8,10}", label="passport", reach=4,
          guard=_is_id, digits=4),
    _form("driving_licence", _UPPER, label="licence", reach=3, guard=_is_id, digits=5),
    _form("plate", r"[A-ZÄÖÜ0-9]{1,4}(?:[ \-·.]?[A-Z0-9]{1,4}){0,3}", label="plate", reach=3,
          guard=_is_plate, digits=1),
    _form("vin", r"[A-HJ-NPR-Z0-9]{17}", label="vin", reach=4, digits=4),
    _form("vin", r"[A-HJ-NPR-Za-hj-npr-z0-9]{17}", checks.vin, alone=_ALWAYS, digits=5, rank=10),
    # Machines
    _form("ip", r"(?<![.\-])(?:\d{1,3}\.){3}\d{1,3}", checks.ipv4, alone=_ALWAYS, guard=_is_address,
          digits=4, rank=-10, behind=r"(?!\.\d|-[A-Za-z0-9])"),
    _form("ip", r"(?<![:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,38}(?:(?:\d{1,3}\.){3}\d{1,3})?"
          r"(?:%[A-Za-z0-9]+)?(?<![^:]:)(?!:[A-Za-z0-9])", checks.ipv6, alone=_ALWAYS, digits=1,
          rank=-20),
    _form("mac", r"[0-9A-Fa-f]{2}([:\-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}"
          r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}", checks.mac, alone=_ALWAYS,
          guard=_no_fingerprint, digits=1, rank=-10),
)  # fmt: skip
