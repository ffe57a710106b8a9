"""Recall and precision on planted personal data, false alarms on real data, and hostile input."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import phonenumbers
import pytest

from mlx_itune.dataset.cleaning.pii.find import Hit, find
from mlx_itune.dataset.cleaning.pii.kinds import KINDS
from tests.fixtures.pii.planted import Planted, samples, value

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def covers(hit: Hit, planted: Planted, text: str) -> bool:
    """The hit has the planted value's kind and every letter and digit of it."""
    missed = text[planted.start : max(planted.start, hit.start)]
    missed += text[min(planted.end, hit.end) : planted.end]
    return hit.kind == planted.kind and not any(map(str.isalnum, missed))


@pytest.mark.parametrize(
    ("name", "copies", "harmless"),
    [
        ("planted.txt", 12, "negatives.txt"),
        ("hostile.txt", 3, "hostile_negatives.txt"),
        ("third.txt", 1, "hostile_negatives.txt"),
    ],
    ids=["own", "hostile", "third"],
)
def test_recall_and_precision(
    name: str, copies: int, harmless: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value is recalled when one hit of its kind covers it; a hit is right when it is such."""
    planted, recalled, reported, right = (Counter[str]() for _ in range(4))
    faults: list[str] = []
    for text, values in chain(samples(name, copies, 101), samples(harmless, copies, 102)):
        hits = find(text)
        planted.update(one.kind for one in values)
        reported.update(hit.kind for hit in hits)
        for one in values:
            found = any(covers(hit, one, text) for hit in hits)
            recalled[one.kind] += found
            faults += [] if found else [f"missed {one.kind} in {text!r}"]
        for hit in hits:
            true = any(covers(hit, one, text) for one in values)
            right[hit.kind] += true
            faults += [] if true else [f"false {hit.kind} {hit.text!r} in {text!r}"]
    with capsys.disabled():
        print(f"\n{name}: planted, recall, precision")
        for kind, count in sorted(planted.items()):
            shares = recalled[kind] / count, right[kind] / max(1, reported[kind])
            print(f"{kind:<16}{count:>8}{shares[0]:>8.3f}{shares[1]:>8.3f}")
    assert set(planted) == set(KINDS)
    assert right.total() >= 0.98 * reported.total(), faults[:20]
    for kind, count in planted.items():
        assert recalled[kind] >= 0.98 * count, f"{kind}: {faults[:20]}"


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
    key = LABELS[name].lower().replace(" ", "_").replace("-", "_")
    missed = []
    for layout in LAYOUTS:
        kind, written = value(name, Random(7))
        text = layout.format(l=LABELS[name], k=key, v=written)
        planted = Planted(kind, text.index(written), text.index(written) + len(written))
        if not any(covers(hit, planted, text) for hit in find(text)):
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
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in strings(item)]


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
