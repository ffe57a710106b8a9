"""The kinds of personal data, as a table: the form, its check, the words that go with it. What is
not strong `alone` needs a label: one check digit lets one number in ten through."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from mlx_itune.dataset.cleaning.pii import checks
from mlx_itune.dataset.cleaning.pii.checks import Check
from mlx_itune.dataset.cleaning.pii.page import PATTERNS, Chunk, Page
from mlx_itune.kit.json_files import data_file

_RE = PATTERNS["kinds"]

KINDS = (
    "email", "phone", "card", "iban", "bank_account", "crypto_address", "ssn", "national_id",
    "tax_id", "health_id", "medical_record", "provider_id", "passport", "driving_licence",
    "birth_date", "age", "ip", "mac", "url", "secret", "vin", "plate", "coordinates", "address",
    "username",
)  # fmt: skip


class Found(NamedTuple):
    """A candidate; the higher priority wins where two overlap."""

    priority: int
    kind: str
    start: int
    end: int
    verified: bool = False


class Rank(IntEnum):
    """How much a rule knows about what it found."""

    SHAPE = 40
    VALID_SHAPE = 60
    LABELLED = 70
    VERIFIED = 80
    LABELLED_VERIFIED = 90
    WHOLE = 95  # forms that contain others: key blocks, addresses of web pages


_LEFT, _RIGHT = r"(?<![A-Za-z0-9])(?<![0-9][.\-/])", "(?![A-Za-z0-9])"


class Form(NamedTuple):
    """One way to write a kind; forms.toml explains the fields."""

    kind: str
    pattern: re.Pattern[str]
    check: Check | None
    label: str
    reach: int
    words: frozenset[str]
    alone: re.Pattern[str] | None
    digits: int
    guard: Callable[[Page, int, int], bool] | None
    priority: int


def in_sum(page: Page, start: int, end: int) -> bool:
    """Whether a number stands in a sum or is an amount of money."""
    text = page.text
    if _RE["sum_before"].search(text[max(0, start - 4) : start]) or _RE["sum_behind"].match(
        text, end
    ):
        return True
    return not _RE["dialled"].match(text, start) and bool(_RE["sum"].search(text, start, end))


def is_id(page: Page, start: int, end: int) -> bool:
    """Whether what stands beside a label is the number of a record, and no date, size or sum."""
    text = page.text
    return not (
        _RE["not_id"].fullmatch(text, start, end)
        or _RE["money"].search(text, max(0, start - 5), start)
        or _RE["unit"].match(text, end)
        or in_sum(page, start, end)
    )


def is_address(page: Page, start: int, end: int) -> bool:
    """Whether four numbers are the address of a machine, and no version or section."""
    if _RE["version"].search(page.low, max(0, start - 24), start):
        return False
    around = page.around(start, end)
    if around.distance("ip") <= 3:
        return True
    parts = page.text[start:end].split(".")
    small = all(int(part) < 20 for part in parts) and parts[0] != "10" and len(set(parts)) > 1
    upgraded = _RE["upgrade"].search(page.low, max(0, start - 48), start)
    return not (upgraded or around.is_harmless or (small and not _RE["port"].match(page.text, end)))


def _form(row: dict[str, Any], lists: dict[str, str]) -> Form:
    check, words = row.get("check", ""), row.get("words", "").split()
    listed = [word for name in words if name[0] == "@" for word in lists[name[1:]].split()]
    behind = row.get("behind", r"(?![.\-/][0-9])")
    return Form(
        row["kind"],
        re.compile(f"{_LEFT}(?:{row['form']}){_RIGHT}{behind}"),
        getattr(checks, check, None) or (checks.stdnum(check) if check else None),
        row.get("label", ""),
        row.get("reach", 2),
        frozenset([*words, *listed]),
        re.compile(row["alone"]) if "alone" in row else None,
        row.get("digits", 7),
        globals()[row["guard"]] if "guard" in row else None,
        row.get("priority", 0),
    )


_DATA = data_file(__file__, "forms")
# Those of the fewest digits first.
FORMS = sorted((_form(row, _DATA["words"]) for row in _DATA["forms"]), key=lambda f: f.digits)

# Keys and tokens that programs hand out, by the prefixes their makers publish.
_PREFIXED = {
    prefix: re.compile(rf"(?<!\w){re.escape(prefix)}{rest}(?!\w)", re.ASCII)
    for prefixes, rest in _DATA["secrets"].items()
    for prefix in prefixes.split()
}
_SHORTEST = 16


def keys(page: Page) -> Iterator[Found]:
    """Keys with a published prefix; private keys in PEM or PGP armour, cut short or not."""
    text = page.text
    for prefix, form in _PREFIXED.items():
        for match in form.finditer(text) if prefix in text else ():
            if checks.random(match.group()):
                yield Found(Rank.WHOLE, "secret", *match.span())
    for match in _RE["key_block"].finditer(text) if "PRIVATE KEY" in text else ():
        closing = f"-----END {match['what']}-----"
        end = text.find(closing, match.end())
        body = _RE["body"].match(text, match.end())
        cut = body.end() if body else match.end()
        yield Found(Rank.WHOLE, "secret", match.start(), end + len(closing) if end >= 0 else cut)


def assigned_keys(page: Page, chunk: Chunk) -> Iterator[Found]:
    """A random value that is given to a key's name, around a chunk."""
    if chunk.end - chunk.start < _SHORTEST or not chunk.lettered:
        return
    for name in _RE["assigned"].finditer(page.text, max(0, chunk.start - 40), chunk.end):
        value = _RE["value"].match(page.text, name.end())
        if value and chunk.first < value.end() and checks.random(value.group(), 3.0):
            yield Found(Rank.WHOLE, "secret", *value.span())
