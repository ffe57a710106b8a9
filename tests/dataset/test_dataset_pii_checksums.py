"""Check rules against published numbers, and against every single wrong digit."""

from __future__ import annotations

import pytest

from mlx_itune.dataset.cleaning.pii import find


def verified(text: str) -> list[str]:
    return [hit.kind for hit in find(text) if hit.verified]


# Numbers that their issuers or makers publish as examples or for tests, beside their label.
PUBLISHED = [
    ("card", "card", "4111 1111 1111 1111, 5555-5555-5555-4444, 378282246310005, 6011111111111117,"
     "30569309025904, 3530111333300000, 4222222222222, 2223003122003222, 6200000000000005"),
    ("iban", "IBAN", "GB82 WEST 1234 5698 7654 32, DE89370400440532013000,"
     "FR1420041010050500013M02606, NL91ABNA0417164300, CH9300762011623852957, NO9386011117947,"
     "MT84MALT011000012345MTLCAST001S, SA0380000000608010167519"),
    ("bank_account", "routing", "021000021, 011401533, 111000025"),
    ("provider_id", "NPI", "1234567893, 1245319599"),
    ("provider_id", "DEA", "AB1234563"),
    ("vin", "VIN", "1M8GDM9AXKP042788, 5GZCZ43D13S812715"),
    ("crypto_address", "to", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa,"
     "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4"),
    ("national_id", "SIN", "046 454 286, 130692544"),
    ("national_id", "DNI", "12345678Z, X1234567L, 00000014Z"),
    ("national_id", "CF", "MRTMTT91D08F205J, RSSMRA85T10A562S"),
    ("national_id", "NIR", "255081416802538, 1 85 05 78 006 084 91"),
    ("tax_id", "Steuer-ID", "86095742719, 47036892816"),
    ("national_id", "BSN", "111222333, 123456782"),
    ("national_id", "CPF", "529.982.247-25, 11144477735"),
    ("tax_id", "CNPJ", "11.222.333/0001-81"),
    ("national_id", "Aadhaar", "2341 2341 2346, 499118665246"),
    ("tax_id", "TFN", "123 456 782"),
    ("health_id", "Medicare", "2123 45670 1"),
    ("national_id", "personnummer", "811218-9876, 19811218-9876"),
    ("health_id", "NHS", "943 476 5919, 401 023 2137"),
    ("national_id", "ID", "11010519491231002X"),
    ("health_id", "KVNR", "A123456780"),
    ("national_id", "PESEL", "44051401359"),
    ("national_id", "fødselsnummer", "15108695088"),
    ("national_id", "henkilötunnus", "131052-308T"),
    ("national_id", "AHV", "756.9217.0769.85"),
    ("national_id", "CURP", "BOXW310820HNERXN09"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "label", "number"),
    [(kind, label, n.strip()) for kind, label, numbers in PUBLISHED for n in numbers.split(",")],
)
def test_published_numbers_are_right_and_wrong_digits_are_seen(
    kind: str, label: str, number: str
) -> None:
    assert verified(f"{label}: {number}.") == [kind]
    wrong = [
        kind in verified(f"{label}: {number[:place]}{other}{number[place + 1 :]}.")
        for place in range(len(number) - (label == "Medicare"))  # its last digit counts issues
        if number[place].isdigit()
        for other in set("0123456789") - {number[place]}
    ]
    # Some fold the remainder ten into another digit, or leave the century out.
    assert sum(wrong) <= 0.2 * len(wrong)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((f"SSN {n}", "ssn") for n in ("078-05-1120", "912-70-1234")),
        ("NI AB 12 34 56 C", "national_id"),
        ("EIN 12-3456789", "tax_id"),
        ("MBI 1EG4-TE5-MK73", "health_id"),
    ],
)
def test_numbers_without_a_check_digit_keep_their_form(text: str, kind: str) -> None:
    assert [hit.kind for hit in find(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "912-69-1234",
        "EIN 89-1234567", "BG123456A", "QQ123456C", "AO123456A", "AB123456E", "1SG4-TE5-MK73",
        "4" + "1" * 13, "0" * 16, "-" * 20, "A" * 40, "é" * 10, "١٢٣٤٥٦٧٨٩",
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_none(text: str) -> None:
    assert find(text) == []
