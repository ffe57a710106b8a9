"""Rules that published numbers keep; every one takes the number as it is written."""

from __future__ import annotations

import importlib
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cache

Check = Callable[[str], bool]

_JUNK = re.compile(r"[\s.\-/]+")


def compact(number: str) -> str:
    """The number without spaces, dots, hyphens and slashes, in upper case."""
    return _JUNK.sub("", number).upper()


@cache
def _module(name: str) -> object:
    return importlib.import_module(f"stdnum.{name}")


def stdnum(name: str) -> Check:
    """python-stdnum's rule of that name, such as `pl.pesel`; imported on first use."""

    def check(number: str) -> bool:
        valid: Check = _module(name).is_valid  # type: ignore[attr-defined]
        return valid(_JUNK.sub("", number)) or valid(number)

    return check


luhn = stdnum("luhn")

_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|3[47]\d{13}|(?:2131|1800)\d{11}|5[1-5]\d{14}"
    r"|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3(?:0[0-59]|[689]\d)\d{11,16}"
    r"|(?:35(?:2[89]|[3-8]\d)|6011|64[4-9]\d|65\d\d|62\d\d|81\d\d|220[0-4])\d{12,15}"
    r"|(?:50|5[6-9]|6[0378])\d{11,17}"
)
_GROUPED = re.compile(r"\d+|(?:\d{4}\D{1,3}){3}\d{1,4}(?:\D{1,3}\d{1,3})?|\d{4}\D\d{6}\D\d{4,5}")


def issued_card(number: str) -> bool:
    """Whether a card of this number and grouping can be: an issuer's range with its lengths."""
    plain = compact(number)
    return bool(_GROUPED.fullmatch(number) and _ISSUED.fullmatch(plain)) and luhn(plain)


def iban(number: str) -> bool:
    """ISO 13616: the country's form, and mod 97-10 over the rearranged number."""
    return bool(_module("iban").is_valid(number, check_country=False))  # type: ignore[attr-defined]


def npi(number: str) -> bool:
    """US National Provider Identifier: Luhn over 80840 and the ten digits."""
    return luhn("80840" + number)


def dea(number: str) -> bool:
    """US DEA registration: d1 + d3 + d5 + 2 (d2 + d4 + d6) ends in d7."""
    *d, last = map(int, compact(number)[2:])
    return (sum(d[::2]) + 2 * sum(d[1::2])) % 10 == last


_VIN_VALUES = str.maketrans("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789")
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)


def vin(number: str) -> bool:
    """Vehicle identification number, 49 CFR 565: transliterated, weighted, mod 11 at place 9."""
    values = map(int, number.upper().translate(_VIN_VALUES))
    rest = sum(v * w for v, w in zip(values, _VIN_WEIGHTS, strict=True)) % 11
    mixed = sum(map(str.isalpha, number)) >= 3 and sum(map(str.isdigit, number)) >= 5
    return mixed and number[8].upper() == "0123456789X"[rest]


def au_medicare(number: str) -> bool:
    """Australian Medicare card: weights 1 3 7 9 modulo 10."""
    d = list(map(int, compact(number)))
    return sum(a * b for a, b in zip(d, (1, 3, 7, 9, 1, 3, 7, 9), strict=False)) % 10 == d[8]


def de_kvnr(number: str) -> bool:
    """German Krankenversichertennummer: the letter as two digits, weights 1 and 2, mod 10."""
    plain = compact(number)
    digits = map(int, f"{ord(plain[0]) - 64:02d}{plain[1:9]}")
    parts = (digit * (1 + place % 2) for place, digit in enumerate(digits))
    return sum(part // 10 + part % 10 for part in parts) % 10 == int(plain[9])


def ipv6(address: str) -> bool:
    """A version 6 address that is not the machine itself."""
    if address.count(":") < (2 if "::" in address else 6) or len(address.replace(":", "")) < 4:
        return False
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_unspecified)


def mac(address: str) -> bool:
    """Whether a MAC address is one machine's, and no list of numbers."""
    digits = re.sub(r"[:\-.]", "", address).lower()
    return len(set(digits)) > 1 and (":" in address or not digits.isdigit())


def random(value: str, bits: float = 2.5) -> bool:
    """Whether the characters vary as those of a key do, unlike sk-xxxxxxxx or your_key_here."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares) >= bits
