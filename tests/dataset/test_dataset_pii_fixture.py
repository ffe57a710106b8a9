"""Recall and precision on planted personal data, false alarms on real data, and hostile input."""

from __future__ import annotations

import json
import time
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import phonenumbers
import pytest

from mlx_itune.dataset.cleaning.pii import KINDS, find
from tests.fixtures.pii.catalogue import VALUES
from tests.fixtures.pii.planted import samples
from tests.fixtures.pii.scoring import score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("planted", "copies", "harmless"),
    [
        ("planted.txt", 12, "negatives.txt"),
        ("hostile.txt", 3, "hostile_negatives.txt"),
        ("third.txt", 1, "hostile_negatives.txt"),
    ],
    ids=["own", "hostile", "third"],
)
def test_recall_and_precision(
    planted: str, copies: int, harmless: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = score(
        chain(samples(planted, copies, seed=101), samples(harmless, copies, seed=102)), find
    )
    with capsys.disabled():
        print(f"\n{planted}\n{result.table()}")
    assert result.precision >= 0.98, "\n".join(result.faults[:20])
    for kind, count in result.planted.items():
        assert result.recalled[kind] / count >= 0.98, f"{kind}: {result.faults[:20]}"


def test_the_fixture_plants_every_kind() -> None:
    planted = {value.kind for sample in samples("planted.txt", 1, 1) for value in sample.values}
    assert planted == set(KINDS)


LABELS = {
    "ssn": "SSN", "mrn": "MRN", "dob": "DOB", "passport": "passport", "member": "member id",
    "licence": "driver license", "account": "account number", "routing": "routing number",
    "npi": "NPI", "phone_plain": "phone", "card": "card", "iban": "IBAN", "nhs": "NHS",
    "plate": "license plate", "vin": "VIN", "bsn": "BSN", "steuer": "Steuer-ID", "gps": "GPS",
}  # fmt: skip
LAYOUTS = (
    "{l}: {v}", "{l}\n{v}", "{l} ....... {v}", "**{l}:** {v}", "<{k}>{v}</{k}>", "{k}={v}",
    "<td>{l}</td><td>{v}</td>", '{{"{k}":"{v}"}}', "| {l} | {v} |", "{l} is {v}.", "{l} no. {v}",
    "{l} # {v}", "Name: Roe; {l}: {v}; City: Reno", "{l}: `{v}`", "name;{k};city\nRoe;{v};Reno",
    "| name | {l} |\n|---|---|\n| Roe | {v} |", "Q: your {l}?\nA: {v}",
)  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_a_label_counts_in_every_layout(name: str) -> None:
    kind, make = VALUES[name]
    key = LABELS[name].lower().replace(" ", "_").replace("-", "_")
    missed = []
    for layout in LAYOUTS:
        value = make(Random(7))
        text = layout.format(l=LABELS[name], k=key, v=value)
        at = text.index(value) + 1
        hits = [hit for hit in find(text) if hit.kind == kind]
        if not any(hit.start <= at and hit.end >= at + len(value) - 2 for hit in hits):
            missed.append(text)
    assert not missed


def test_the_numbers_of_every_region_are_found_beside_a_label() -> None:
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number(region)
        assert number is not None
        for form in (phonenumbers.PhoneNumberFormat.INTERNATIONAL, 2):
            written = phonenumbers.format_number(number, form)
            if sum(map(str.isdigit, written)) >= 7:
                assert [hit.kind for hit in find(f"Phone: {written}.")] == ["phone"], written


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


# What the real files do hold: a celebrity's birthday, the letterhead of a sample letter, a sender.
REAL = {
    "gsm8k.jsonl": [],
    "alpaca_seed_tasks.jsonl": [
        "(123) 456-7891", "(123) 456-7891", "October 28, 1955", "alerts@info6.citi.com",
        "emoore@email.com", "emoore@email.com",
    ],
    "sharegpt_dummy_conversation.json": [],
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_no_false_alarm_on_real_data(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not at hand")
    raw = path.read_text(encoding="utf-8")
    rows = json.loads(raw) if name.endswith(".json") else map(json.loads, raw.splitlines())
    found = [hit.text for row in rows for text in strings(row) for hit in find(text)]
    assert sorted(found) == REAL[name]


SIZE = 10_000
HOSTILE = (
    "1", "a", "@", "(", "1-", "1 ", "1.", "a1", "A1", "a@", "@a.", "00 ", "+1", "1:", "ab:cd:",
    "::", "1-1-1-", "a-1-", " at ", "a dot ", "(at)", "Street 1 ", "Calle A ", "12 rue de ",
    "1 A ", "A 1, ", "born 1 ", "1 Jan ", "sk-", "-----BEGIN PRIVATE KEY-----", "://a:b@", "(555",
    "1° ", "1111 ", "4111 1111 1111 1111 ", "a,b\n", "1,2\n", "\\n", "é", "电话1", "key=a1",
    "user:", "age 99 ", "lat 1.111 ", "40.71281, -74.00601 ", "x@y.z ", "MRN: 12345 ", "GB1 ",
    "_1", "A\n1\n", "99 years ",
)  # fmt: skip


def test_no_text_takes_long() -> None:
    for pattern in HOSTILE:
        text = (pattern * (SIZE // len(pattern) + 1))[:SIZE]
        start = time.process_time()
        find(text)
        # Linear work takes a second or two on a slow machine, quadratic work minutes.
        assert time.process_time() - start < 3, pattern
