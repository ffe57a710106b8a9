"""What a detector reports: kinds, hits, and the rule that decides between overlapping ones."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

KINDS = (
    "email",
    "phone",
    "card",
    "iban",
    "bank_account",
    "crypto_address",
    "ssn",
    "national_id",
    "tax_id",
    "health_id",
    "medical_record",
    "provider_id",
    "passport",
    "driving_licence",
    "birth_date",
    "age",
    "ip",
    "mac",
    "url",
    "secret",
    "vin",
    "plate",
    "coordinates",
    "address",
    "username",
)


@dataclass(frozen=True)
class Hit:
    """`text[start:end]` holds personal data. `verified`: a checksum or a numbering plan says so."""

    kind: str
    start: int
    end: int
    text: str
    verified: bool = False


# A detector of the caller's own, for example one that knows names of people.
Detector = Callable[[str], Iterable[Hit]]


class Found(NamedTuple):
    """A candidate inside the package; the higher rank wins where two overlap."""

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


def settle(found: Iterable[Found]) -> list[Found]:
    """The best candidates that do not overlap, in text order."""
    chosen: list[Found] = []
    starts: list[int] = []
    for one in sorted(set(found), key=lambda f: (-f.rank, f.start - f.end, f.start)):
        at = bisect_left(starts, one.end)
        if at == 0 or chosen[at - 1].end <= one.start:
            at = bisect_left(starts, one.start)
            starts.insert(at, one.start)
            chosen.insert(at, one)
    return chosen
