"""Check rules of personal numbers that states and health systems give out, one function each."""

from __future__ import annotations

import importlib
import re
from functools import cache

from mlx_itune.dataset.cleaning.pii.checksums import _digits, compact, luhn


@cache
def _published(rule: str) -> object:
    return importlib.import_module(f"stdnum.{rule}")


def stdnum(rule: str, number: str) -> bool:
    """python-stdnum's own verdict under the rule of that name, such as `pl.pesel`."""
    return bool(_published(rule).is_valid(number))  # type: ignore[attr-defined]


def us_ssn(number: str) -> bool:
    """US social security number: no area 000, 666 or 9xx, no group 00, no serial 0000."""
    plain = _digits(number, 9)
    area = plain[:3]
    allowed = area not in ("000", "666") and not area.startswith("9")
    return bool(plain) and allowed and plain[3:5] != "00" and plain[5:] != "0000"


def us_itin(number: str) -> bool:
    """US individual taxpayer number: 9xx and a group of 50-65, 70-88, 90-92 or 94-99."""
    plain = _digits(number, 9)
    if not plain.startswith("9"):
        return False
    group = int(plain[3:5])
    return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99


def us_ein(number: str) -> bool:
    """US employer identification number: a prefix that the IRS assigns."""
    plain = _digits(number, 9)
    return bool(plain) and stdnum("us.ein", f"{plain[:2]}-{plain[2:]}")


_NINO = re.compile(r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PRSTW-Z][A-CEGHJ-NPRSTW-Z]\d{6}[A-D]?")


def uk_nino(number: str) -> bool:
    """UK national insurance number: letters that HMRC gives out (it has no check digit)."""
    return _NINO.fullmatch(compact(number)) is not None


def ca_sin(number: str) -> bool:
    """Canadian social insurance number: nine digits under the Luhn formula."""
    plain = _digits(number, 9)
    return bool(plain) and luhn(plain) and plain != "0" * 9


def es_dni(number: str) -> bool:
    """Spanish DNI or NIE: the letter is the number modulo 23."""
    plain = compact(number)
    if not re.fullmatch(r"[XYZ\d]\d{7}[A-Z]", plain):
        return False
    value = int(plain[:-1].translate(str.maketrans("XYZ", "012")))
    return plain[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[value % 23]


_CODICE = re.compile(r"[A-Z]{6}[\dLMNP-V]{2}[A-EHLMPRST][\dLMNP-V]{2}[A-Z][\dLMNP-V]{3}[A-Z]")


def it_codice_fiscale(number: str) -> bool:
    """Italian codice fiscale: the last letter is the odd and even values modulo 26."""
    plain = compact(number)
    if not _CODICE.fullmatch(plain):
        return False
    from stdnum.it.codicefiscale import calc_check_digit

    return calc_check_digit(plain[:-1]) == plain[-1]


def fr_nir(number: str) -> bool:
    """French NIR (numéro de sécurité sociale): key = 97 - number modulo 97, Corsica as 2A, 2B."""
    plain = compact(number)
    if not re.fullmatch(r"[1-478]\d{2}(?:[02-9]\d|1\d)(?:\d{2}|2[AB])\d{8}", plain):
        return False
    return stdnum("fr.nir", plain)


def de_tax_id(number: str) -> bool:
    """German Identifikationsnummer: ISO/IEC 7064 mod 11,10 over eleven digits."""
    plain = _digits(number, 11)
    if not plain or plain[0] == "0" or len(set(plain[:10])) in (1, 10):
        return False
    return stdnum("iso7064.mod_11_10", plain)


def nl_bsn(number: str) -> bool:
    """Dutch burgerservicenummer: the elfproef, weights 9 to 2 and -1."""
    return bool(_digits(number, 9)) and stdnum("nl.bsn", compact(number))


def br_cpf(number: str) -> bool:
    """Brazilian CPF: two check digits modulo 11; no run of one digit."""
    plain = _digits(number, 11)
    return bool(plain) and len(set(plain)) > 1 and stdnum("br.cpf", plain)


def br_cnpj(number: str) -> bool:
    """Brazilian CNPJ: two check digits modulo 11."""
    plain = _digits(number, 14)
    return bool(plain) and len(set(plain)) > 1 and stdnum("br.cnpj", plain)


def in_aadhaar(number: str) -> bool:
    """Indian Aadhaar: Verhoeff's dihedral scheme; the first digit is 2 to 9."""
    plain = _digits(number, 12)
    return plain[:1] > "1" and stdnum("verhoeff", plain)


def in_pan(number: str) -> bool:
    """Indian PAN: its letters and digits in place, the fourth a kind of holder (no check sum)."""
    return re.fullmatch(r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", compact(number)) is not None


def au_tfn(number: str) -> bool:
    """Australian tax file number: weights 1 4 3 7 5 8 6 9 10 modulo 11."""
    return bool(_digits(number, 8, 9)) and stdnum("au.tfn", compact(number))


def au_medicare(number: str) -> bool:
    """Australian Medicare card: weights 1 3 7 9 modulo 10; the first digit is 2 to 6."""
    plain = _digits(number, 10, 11)
    if not plain or plain[0] not in "23456":
        return False
    weighted = zip(plain, (1, 3, 7, 9, 1, 3, 7, 9), strict=False)
    return sum(int(digit) * weight for digit, weight in weighted) % 10 == int(plain[8])


def se_personnummer(number: str) -> bool:
    """Swedish personnummer: a date of birth, and Luhn over its ten digits."""
    plain = re.sub(r"[\s+-]", "", number)
    if not plain.isdigit() or len(plain) not in (10, 12):
        return False
    ten = plain[-10:]
    # A coordination number adds 60 to the day.
    return 1 <= int(ten[2:4]) <= 12 and 1 <= int(ten[4:6]) % 60 <= 31 and luhn(ten)


def uk_nhs(number: str) -> bool:
    """NHS number: weights 10 to 2 modulo 11."""
    return bool(_digits(number, 10)) and stdnum("gb.nhs", compact(number))


def de_kvnr(number: str) -> bool:
    """German Krankenversichertennummer: the letter as two digits, Luhn-like 1-2 weights, mod 10."""
    plain = compact(number)
    if not re.fullmatch(r"[A-Z]\d{9}", plain):
        return False
    digits = f"{ord(plain[0]) - 64:02d}{plain[1:9]}"
    parts = (int(d) * w for d, w in zip(digits, (1, 2) * 5, strict=True))
    return sum(part // 10 + part % 10 for part in parts) % 10 == int(plain[9])


def cn_id(number: str) -> bool:
    """Chinese resident identity number, GB 11643: a date, and ISO/IEC 7064 mod 11-2."""
    plain = compact(number)
    if not re.fullmatch(r"[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])[0-3]\d{4}[\dX]", plain):
        return False
    return stdnum("iso7064.mod_11_2", plain)


def us_mbi(number: str) -> bool:
    """US Medicare beneficiary identifier: letters and digits in the places CMS prescribes."""
    letter = "[AC-HJKMNP-RT-Y]"
    either = "[AC-HJKMNP-RT-Y0-9]"
    shape = rf"[1-9]{letter}{either}\d{letter}{either}\d{letter}{{2}}\d{{2}}"
    return re.fullmatch(shape, compact(number)) is not None
