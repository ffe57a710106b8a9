"""Check rules against published numbers, and against every single wrong digit."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from mlx_itune.dataset.cleaning.pii import checksums
from mlx_itune.dataset.cleaning.pii import national_checksums as national
from tests.fixtures.pii import check_digits as cd

Rule = Callable[[str], bool]

# Numbers that their issuers or makers publish as examples or for tests.
PUBLISHED: list[tuple[Rule, tuple[str, ...]]] = [
    (checksums.luhn, ("79927398713", "49015420323751")),
    (
        checksums.card,
        (
            "4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011111111111117",
            "30569309025904", "3530111333300000", "4222222222222", "2223003122003222",
            "6200000000000005", "6304000000000000",
        ),
    ),
    (
        checksums.iban,
        (
            "GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR1420041010050500013M02606",
            "NL91ABNA0417164300", "CH9300762011623852957", "NO9386011117947",
            "MT84MALT011000012345MTLCAST001S", "SA0380000000608010167519",
        ),
    ),
    (checksums.routing_number, ("021000021", "011401533", "111000025")),
    (checksums.npi, ("1234567893", "1245319599")),
    (checksums.dea, ("AB1234563",)),
    (checksums.vin, ("1M8GDM9AXKP042788", "11111111111111111", "5GZCZ43D13S812715")),
    (checksums.base58check, ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",)),
    (
        checksums.bech32,
        (
            "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4",
            "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
        ),
    ),
    (national.ca_sin, ("046 454 286", "130692544")),
    (national.es_dni, ("12345678Z", "X1234567L", "00000014Z")),
    (national.it_codice_fiscale, ("MRTMTT91D08F205J", "RSSMRA85T10A562S")),
    (national.fr_nir, ("255081416802538", "1 85 05 78 006 084 91")),
    (national.de_tax_id, ("86095742719", "47036892816")),
    (national.nl_bsn, ("111222333", "123456782")),
    (national.br_cpf, ("529.982.247-25", "11144477735")),
    (national.br_cnpj, ("11.222.333/0001-81",)),
    (national.in_aadhaar, ("2341 2341 2346", "499118665246")),
    (national.au_tfn, ("123 456 782",)),
    (national.au_medicare, ("2123 45670 1",)),
    (national.se_personnummer, ("811218-9876", "19811218-9876")),
    (national.uk_nhs, ("943 476 5919", "401 023 2137")),
    (national.cn_id, ("11010519491231002X",)),
    (national.de_kvnr, ("A123456780",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "number"),
    [(rule, number) for rule, numbers in PUBLISHED for number in numbers],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_published_numbers_are_right(rule: Rule, number: str) -> None:
    assert rule(number)


# Rules that promise to see every single wrong digit. A bank's, a taxman's or a registry's rule
# modulo 11 that folds the remainder 10 into another digit cannot promise it, and is not here.
DETECTING: list[tuple[Rule, Callable[[Random], str]]] = [
    (checksums.luhn, lambda r: cd.with_luhn(cd.digits(r, 12))),
    (checksums.iban, lambda r: cd.iban(r, "DE", cd.digits(r, 18))),
    (checksums.routing_number, cd.aba),
    (checksums.npi, cd.npi),
    (national.ca_sin, lambda r: cd.with_luhn(cd.digits(r, 8, "1234567"))),
    (national.es_dni, cd.dni),
    (national.es_dni, cd.nie),
    (national.fr_nir, cd.nir),
    (national.de_tax_id, cd.steuer_id),
    (national.nl_bsn, cd.bsn),
    (national.in_aadhaar, cd.aadhaar),
    (national.au_tfn, cd.tfn),
    (national.uk_nhs, cd.nhs),
    (national.se_personnummer, lambda r: cd.personnummer(r).replace("-", "")),
    (national.it_codice_fiscale, cd.codice_fiscale),
    (checksums.vin, cd.vin),
]


@pytest.mark.parametrize(
    ("rule", "make"),
    DETECTING,
    ids=[f"{rule.__name__}-{n}" for n, (rule, _) in enumerate(DETECTING)],
)
def test_every_single_wrong_digit_is_seen(rule: Rule, make: Callable[[Random], str]) -> None:
    rng = Random(11)
    for _ in range(12):
        number = make(rng)
        assert rule(number), number
        for place, char in enumerate(number):
            if not char.isdigit():
                continue
            for other in set("0123456789") - {char}:
                assert not rule(number[:place] + other + number[place + 1 :]), (number, place)


def wrong_digits_seen(rule: Rule, number: str) -> float:
    places = [place for place, char in enumerate(number) if char.isdigit()]
    wrong = [
        number[:place] + other + number[place + 1 :]
        for place in places
        for other in set("0123456789") - {number[place]}
    ]
    return sum(not rule(candidate) for candidate in wrong) / len(wrong)


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (national.br_cpf, cd.cpf),
        (national.br_cnpj, cd.cnpj),
        (national.au_medicare, lambda r: cd.medicare_au(r)[:9]),
        (checksums.dea, cd.dea),
        (national.de_kvnr, cd.kvnr),
    ],
    ids=["cpf", "cnpj", "medicare", "dea", "kvnr"],
)
def test_weaker_rules_see_nearly_every_wrong_digit(
    rule: Rule, make: Callable[[Random], str]
) -> None:
    rng = Random(12)
    for _ in range(12):
        number = make(rng)
        padded = number + "1" if rule is national.au_medicare else number
        assert rule(padded), number
        check = (lambda n: rule(n + "1")) if rule is national.au_medicare else rule
        assert wrong_digits_seen(check, number) >= 0.9


@pytest.mark.parametrize("address", ["1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"])
def test_one_wrong_character_of_a_base58_address_is_seen(address: str) -> None:
    for place in range(1, len(address)):
        other = "2" if address[place] != "2" else "3"
        assert not checksums.base58check(address[:place] + other + address[place + 1 :])


def test_ssn_rules() -> None:
    assert national.us_ssn("078-05-1120")
    for impossible in ("000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000"):
        assert not national.us_ssn(impossible)
    assert national.us_itin("912-70-1234")
    assert not national.us_itin("912-69-1234")
    assert national.us_ein("12-3456789")
    assert not national.us_ein("07-1234567")


def test_nino_and_mbi_letters() -> None:
    assert national.uk_nino("AB 12 34 56 C")
    for impossible in ("BG123456A", "QQ123456C", "AO123456A", "AB123456E", "DA123456A"):
        assert not national.uk_nino(impossible)
    assert national.us_mbi("1EG4-TE5-MK73")
    assert not national.us_mbi("1SG4-TE5-MK73")


def test_a_card_needs_an_issuer_and_a_length() -> None:
    assert not checksums.card(cd.with_luhn("9" + "1" * 14))
    assert not checksums.card(cd.with_luhn("4" + "1" * 13))
    assert not checksums.card("0" * 16)


@pytest.mark.parametrize("rule", [rule for rule, _ in PUBLISHED], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("junk", ["", " ", "x", "12", "١٢٣٤٥٦٧٨٩", "é" * 10, "-" * 20, "A" * 40])
def test_junk_is_no_number(rule: Rule, junk: str) -> None:
    assert not rule(junk)
