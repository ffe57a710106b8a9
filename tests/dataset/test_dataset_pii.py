"""Finding and redacting personal data: the functions, their promises and their borders."""

from __future__ import annotations

import json
import re

import pytest

from mlx_itune.dataset.cleaning.pii import Hit, find, redact, redact_conversation
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.kit.errors import UsageError


def kinds(text: str) -> list[tuple[str, str]]:
    return [(hit.kind, hit.text) for hit in find(text)]


def test_hits_say_where_and_whether_verified() -> None:
    text = "Card 4111 1111 1111 1111, mail a@b.org."
    card, mail = find(text)
    assert card == Hit("card", 5, 24, "4111 1111 1111 1111", verified=True)
    assert (mail.kind, mail.verified) == ("email", False)
    text = "SSN 078-05-1120 MRN 1234567 DOB 01/02/1960 tel 212-555-0199 IBAN DE89370400440532013000"
    assert kinds(text) == [
        ("ssn", "078-05-1120"), ("medical_record", "1234567"), ("birth_date", "01/02/1960"),
        ("phone", "212-555-0199"), ("iban", "DE89370400440532013000"),
    ]  # fmt: skip


def test_only_the_asked_kinds_come_back() -> None:
    text = "a@b.org, +44 20 7946 0958, 203.0.113.9"
    assert [hit.kind for hit in find(text)] == ["email", "phone", "ip"]
    assert [hit.kind for hit in find(text, ["ip"])] == ["ip"]
    assert find(text, []) == []
    # The digits of a card must not surface as a phone number, nor a name as anything.
    assert find("Jane, call about 4111 1111 1111 1111", ["phone"]) == []


def test_an_unknown_kind_is_an_error_that_helps() -> None:
    with pytest.raises(UsageError, match=r"no kind of personal data 'emial'.*email"):
        find("x", ["emial"])


def test_a_detector_of_the_callers_own_takes_part() -> None:
    def names(text: str) -> list[Hit]:
        return [Hit("person", m.start(), m.end(), m[0]) for m in re.finditer("Jane Roe", text)]

    new, hits = redact("Jane Roe <jane@roe.org>, again Jane Roe", detectors=[names])
    assert new == "[PERSON_1] <[EMAIL_1]>, again [PERSON_1]"
    assert [hit.kind for hit in hits] == ["person", "email", "person"]


def test_equal_values_get_equal_placeholders_however_written() -> None:
    text = "Use 4111 1111 1111 1111 or 4111111111111111, not 5555-5555-5555-4444. A@b.org = a@B.org"
    new, _ = redact(text)
    assert new == "Use [CARD_1] or [CARD_1], not [CARD_2]. [EMAIL_1] = [EMAIL_1]"


def test_redacting_twice_changes_nothing_more() -> None:
    text = (
        "Call 212-555-0199, SSN 078-05-1120, born on 3 May 1961, sk_live_4eC39HqLyjWDarjtT1zdp7dc"
    )
    once, hits = redact(text)
    assert len(hits) == 4
    assert redact(once) == (once, [])


@pytest.mark.parametrize(
    "text",
    [
        "電話は０３－１２３４－５６７８です",  # full-width digits
        "هاتف ٠١٢٣٤٥٦٧٨٩",  # Arabic-Indic digits
        "Tel. 030\u00a01234\u20115678",  # no-break space and hyphen
        "tel\\n030 12345678 in a JSON string",
    ],
)
def test_other_spellings_of_digits_and_spaces(text: str) -> None:
    (hit,) = find(text)
    assert hit.kind == "phone" and text[hit.start : hit.end] == hit.text


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
        ("4111 1111 1111 1112", []),
        ("x = 4147800422714.1", []),
    ],
)
def test_context_decides(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


def test_heads_of_a_table_label_its_columns() -> None:
    text = "name;ssn;born;plan\nAnn;401228871;1950-02-03;7\nBob;512440987;1961-12-30;8"
    assert [kind for kind, _ in kinds(text)] == ["ssn", "birth_date", "ssn", "birth_date"]
    assert kinds("item;order;date\nA;401228871;1950-02-03\nB;512440987;1961-12-30") == []


def call(arguments: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "book", "arguments": arguments}, "id": "c1"}


def test_alpacas_input_stays_the_end_of_its_content() -> None:
    turn = Turn("user", "Write to a@b.org.\n\nPhone: 415-555-2671", input="Phone: 415-555-2671")
    new, hits = redact_conversation(Conversation((turn, Turn("assistant", "ok")), "f:1"))
    assert new.turns[0].content == "Write to [EMAIL_1].\n\nPhone: [PHONE_1]"
    assert new.turns[0].input == "Phone: [PHONE_1]"
    assert len(hits) == 2


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
def test_json_in_a_tool_result_stays_json(text: str) -> None:
    turns = (
        Turn("user", "hi"),
        Turn("assistant", "", tool_calls=(call({}),)),
        Turn("tool", text),
    )
    new, hits = redact_conversation(Conversation(turns, "f:1"))
    before, after = json.loads(text), json.loads(new.turns[2].content)
    assert hits and type(before) is type(after)
    assert not find(new.turns[2].content)
