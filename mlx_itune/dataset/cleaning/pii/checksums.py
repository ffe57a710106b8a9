"""Check digits, one pure function per published rule; every function takes the number as written.

The arithmetic is python-stdnum's where that library has the rule; it is imported on first use.
"""

from __future__ import annotations

import hashlib
import re

_JUNK = re.compile(r"[\s.\-/]+")


def compact(number: str) -> str:
    """The number without spaces, dots, hyphens and slashes, in upper case."""
    return _JUNK.sub("", number).upper()


def _digits(number: str, *lengths: int) -> str:
    plain = compact(number)
    return plain if plain.isascii() and plain.isdigit() and len(plain) in lengths else ""


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1 annex B, the Luhn formula."""
    from stdnum.luhn import is_valid

    return is_valid(compact(number))


def card(number: str) -> bool:
    """Payment card, ISO/IEC 7812: Luhn, 13 to 19 digits, an issuer's range with its lengths."""
    plain = _digits(number, *range(13, 20))
    return bool(plain and _issuer_knows(plain) and luhn(plain))


def _issuer_knows(plain: str) -> bool:
    length, two, four, six = len(plain), int(plain[:2]), int(plain[:4]), int(plain[:6])
    if plain[0] == "4":
        return length in (13, 16, 19)
    if two in (34, 37) or four in (2131, 1800):
        return length == 15
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if 300 <= four // 10 <= 305 or four // 10 == 309 or two in (36, 38, 39):
        return 14 <= length <= 19
    if 3500 <= four <= 3589 or four == 6011 or 644 <= four // 10 <= 649 or two == 65:
        return length >= 16
    if two == 62 or two == 81:
        return length >= 16
    if 500000 <= six <= 509999 or 560000 <= six <= 589999 or two in (60, 63, 67, 68):
        return length >= 13  # Maestro, RuPay, Elo and other national schemes
    return 2200 <= four <= 2204 and length >= 16


IBAN_LENGTH = {
    code: int(length)
    for code, length in (
        item.split(":")
        for item in """AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28
        CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27
        GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HN:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30
        KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MN:20 MR:27
        MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 SA:24
        SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24
        XK:20 YE:30""".split()
    )
}


def iban(number: str) -> bool:
    """ISO 13616: the country's length and ISO/IEC 7064 mod 97-10 over the rearranged number."""
    plain = compact(number)
    if IBAN_LENGTH.get(plain[:2]) != len(plain) or not plain.isalnum() or not plain.isascii():
        return False
    from stdnum.iso7064.mod_97_10 import is_valid

    return is_valid(plain[4:] + plain[:4])


def routing_number(number: str) -> bool:
    """ABA routing transit number: weights 3, 7, 1 modulo 10, and an assigned first pair."""
    plain = _digits(number, 9)
    if not plain:
        return False
    first = int(plain[:2])
    assigned = first <= 12 or 21 <= first <= 32 or 61 <= first <= 72 or first == 80
    return assigned and sum(int(d) * w for d, w in zip(plain, (3, 7, 1) * 3, strict=True)) % 10 == 0


def npi(number: str) -> bool:
    """US National Provider Identifier: Luhn over 80840 and the ten digits; starts with 1 or 2."""
    plain = _digits(number, 10)
    return plain[:1] in ("1", "2") and luhn("80840" + plain)


def dea(number: str) -> bool:
    """US DEA registration: d1 + d3 + d5 + 2 (d2 + d4 + d6) ends in d7."""
    plain = compact(number)
    if not re.fullmatch(r"[A-HJ-MPRSTUX][A-Z9]\d{7}", plain):
        return False
    d = [int(char) for char in plain[2:]]
    return (d[0] + d[2] + d[4] + 2 * (d[1] + d[3] + d[5])) % 10 == d[6]


_VIN_VALUE = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", map(int, "12345678123457923456789"), strict=True))
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)


def vin(number: str) -> bool:
    """Vehicle identification number, 49 CFR 565: transliterated, weighted, modulo 11 at place 9."""
    plain = compact(number)
    if not re.fullmatch(r"[A-HJ-NPR-Z0-9]{17}", plain):
        return False
    values = (_VIN_VALUE.get(char) or int(char) for char in plain)
    rest = sum(v * w for v, w in zip(values, _VIN_WEIGHTS, strict=True)) % 11
    return plain[8] == "0123456789X"[rest]


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58check(text: str) -> bool:
    """Base58Check: 25 bytes, the last four of them a double SHA-256 of the rest."""
    if not 25 <= len(text) <= 36 or any(char not in _BASE58 for char in text):
        return False
    value = 0
    for char in text:
        value = value * 58 + _BASE58.index(char)
    if value.bit_length() > 200:
        return False
    raw = value.to_bytes(25, "big")
    if len(raw) - len(raw.lstrip(b"\0")) != len(text) - len(text.lstrip("1")):
        return False
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


_BECH32 = {char: value for value, char in enumerate("qpzry9x8gf2tvdw0s3jn54khce6mua7l")}
_BECH32_STEPS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def bech32(text: str) -> bool:
    """BIP 173 (bech32) or BIP 350 (bech32m): the BCH code over prefix and data."""
    plain = text.lower()
    prefix, one, data = plain.rpartition("1")
    if not one or text not in (plain, text.upper()) or not 8 <= len(plain) <= 90 or len(data) < 6:
        return False
    if any(char not in _BECH32 for char in data):
        return False
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    check = 1
    for value in values + [_BECH32[char] for char in data]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, step in enumerate(_BECH32_STEPS):
            check ^= step if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)
