"""Finding and redacting personal data: promises, borders, and check rules to the last digit."""

from __future__ import annotations

import json
import re

import pytest

from mlx_itune.dataset.cleaning.pii.find import Hit, find
from mlx_itune.dataset.cleaning.pii.redact import redact, redact_conversation
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.kit.errors import UsageError


def kinds(text: str) -> list[tuple[str, str]]:
    return [(hit.kind, hit.text) for hit in find(text)]


def test_hits_say_where_and_whether_verified_and_of_which_kinds() -> None:
    text = "Card 4111 1111 1111 1111, mail a@b.org."
    card, mail = find(text)
    assert card == Hit("card", 5, 24, "4111 1111 1111 1111", verified=True)
    assert (mail.kind, mail.verified) == ("email", False)
    assert find(text, ["email"]) == [mail]
    # The digits of a card must not surface as a phone number.
    assert find(text, ["phone"]) == find(text, []) == []
    with pytest.raises(UsageError, match=r"no kind of personal data 'emial'.*email"):
        find("x", ["emial"])


def test_a_detector_of_the_callers_own_takes_part() -> None:
    def names(text: str) -> list[Hit]:
        return [Hit("person", m.start(), m.end(), m[0]) for m in re.finditer("Jane Roe", text)]

    new, hits = redact("Jane Roe <jane@roe.org>, again Jane Roe", detectors=[names])
    assert new == "[PERSON_1] <[EMAIL_1]>, again [PERSON_1]"
    assert [hit.kind for hit in hits] == ["person", "email", "person"]


def test_equal_values_get_equal_placeholders_and_those_are_no_personal_data() -> None:
    text = (
        "Use 4111 1111 1111 1111 or 4111111111111111, not 5555-5555-5555-4444. A@b.org = a@B.org. "
        "Call 212-555-0199, SSN 078-05-1120, born on 3 May 1961, sk_live_4eC39HqLyjWDarjtT1zdp7dc"
    )
    new, hits = redact(text)
    assert new == (
        "Use [CARD_1] or [CARD_1], not [CARD_2]. [EMAIL_1] = [EMAIL_1]. "
        "Call [PHONE_1], SSN [SSN_1], born on [BIRTH_DATE_1], [SECRET_1]"
    )
    assert len(hits) == 9
    assert redact(new) == (new, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Order 123-456-7890", []),
        ("version 10.20.30.40", []),
        ("server 10.20.30.40", [("ip", "10.20.30.40")]),
        ("Spawn at (120, 64)", []),
        ("git@github.com:acme/tool.git", []),
        ("https://u:p4ss@h.example/x.", [("url", "https://u:p4ss@h.example/x")]),
        ("visit on 12/03/2021", []),
        ("born 12/03/1961", [("birth_date", "12/03/1961")]),
        ("born 12/03/1761", []),
        ("He is 89 years old", []),
        ("He is 91 years old", [("age", "91")]),
        ("How old is he if he is 91 years old now?", []),
        ("<phone>415-555-2671</phone>", [("phone", "415-555-2671")]),
        ("x = 4147800422714.1", []),
        ("SSN 078-05-1120 MRN 1234567 DOB 01/02/1960 tel 212-555-0199 IBAN DE89370400440532013000",
         [("ssn", "078-05-1120"), ("medical_record", "1234567"), ("birth_date", "01/02/1960"),
          ("phone", "212-555-0199"), ("iban", "DE89370400440532013000")]),
        # Full-width and Arabic-Indic digits, no-break spaces and hyphens, a line break of JSON.
        ("電話は０３－１２３４－５６７８です", [("phone", "０３－１２３４－５６７８")]),
        ("هاتف ٠١٢٣٤٥٦٧٨٩", [("phone", "٠١٢٣٤٥٦٧٨٩")]),
        ("Tel. 030\u00a01234\u20115678", [("phone", "030\u00a01234\u20115678")]),
        ("tel\\n030 12345678 in a JSON string", [("phone", "030 12345678")]),
        # The heads of a table label its columns.
        ("name;ssn;born;plan\nAnn;401228871;1950-02-03;7\nBob;512440987;1961-12-30;8",
         [("ssn", "401228871"), ("birth_date", "1950-02-03"),
          ("ssn", "512440987"), ("birth_date", "1961-12-30")]),
        ("item;order;date\nA;401228871;1950-02-03\nB;512440987;1961-12-30", []),
        # Numbers without a check digit keep their form.
        ("ITIN 912-70-1234", [("ssn", "912-70-1234")]),
        ("NI AB 12 34 56 C", [("national_id", "AB 12 34 56 C")]),
        ("EIN 12-3456789", [("tax_id", "12-3456789")]),
        ("MBI 1EG4-TE5-MK73", [("health_id", "1EG4-TE5-MK73")]),
        *((impossible, []) for impossible in (
            "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000",
            "912-69-1234", "EIN 89-1234567", "BG123456A", "QQ123456C", "AO123456A", "AB123456E",
            "1SG4-TE5-MK73", "4111 1111 1111 1112", "4" + "1" * 13, "0" * 16, "-" * 20, "A" * 40,
            "é" * 10, "١٢٣٤٥٦٧٨٩",
        )),
    ],
)  # fmt: skip
def test_context_decides(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


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
    def verified(number: str) -> list[str]:
        return [hit.kind for hit in find(f"{label}: {number}.") if hit.verified]

    assert verified(number) == [kind]
    wrong = [
        kind in verified(number[:place] + other + number[place + 1 :])
        for place in range(len(number) - (label == "Medicare"))  # its last digit counts issues
        if number[place].isdigit()
        for other in set("0123456789") - {number[place]}
    ]
    # Some fold the remainder ten into another digit, or leave the century out.
    assert sum(wrong) <= 0.2 * len(wrong)


@pytest.mark.parametrize(
    "text",
    [
        '{"phone": 4155552671, "note": "ring \\"415-555-2672\\""}',
        '[{"ip": "203.0.113.9"}, {"iban": "DE89370400440532013000"}]',
        '{"a": "x\\n415-555-2671", "card": 4111111111111111}',
        '{"caf\\u00e9": "tel. \\u0660\\u0661\\u0662 345 6789", "mail": "m\\u00fcller\\u0040x.org"}',
        '{"a@b.org": 1}',
    ],
)
def test_json_stays_json_and_alpacas_input_the_end_of_its_content(text: str) -> None:
    given = "Phone: 415-555-2671"
    call = {"type": "function", "function": {"name": "book", "arguments": {}}, "id": "c1"}
    turns = (
        Turn("user", f"Write to a@b.org.\n\n{given}", input=given),
        Turn("assistant", "", tool_calls=(call,)),
        Turn("tool", text),
    )
    new, hits = redact_conversation(Conversation(turns, "f:1"))
    asked, _, result = new.turns
    assert asked.content == "Write to [EMAIL_1].\n\nPhone: [PHONE_1]"
    assert asked.input == "Phone: [PHONE_1]"
    assert len(hits) > 2
    assert type(json.loads(result.content)) is type(json.loads(text))
    assert not find(result.content)
