"""IP and MAC addresses; version numbers and clock times look alike and are left alone."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.hits import LABELLED, VALID_SHAPE, Found
from mlx_itune.dataset.cleaning.pii.spots import Spot

_V4 = re.compile(
    r"(?<![A-Za-z0-9.\-])(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9])(?!\.\d)(?!-[A-Za-z0-9])"
)
_V6 = re.compile(
    r"(?<![A-Za-z0-9:.])(?=[0-9A-Fa-f:.]{0,40}[0-9])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,38}"
    r"(?:(?:\d{1,3}\.){3}\d{1,3})?(?:%[A-Za-z0-9]+)?(?![A-Za-z0-9])(?!:[A-Za-z0-9])"
)
_MAC = re.compile(
    r"(?<![A-Za-z0-9:\-])(?:[0-9A-Fa-f]{2}([:\-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![A-Za-z0-9])(?![:\-][0-9A-Fa-f])"
)
_VERSION = re.compile(
    r"(?:\b(?:v|rv|version|versions|ver\.?|release|releases|build|firmware|revision|rev\.?"
    r"|section|§"
    r"|chapter|kapitel|clause|paragraph|upgraded? (?:to|from)|updated? (?:to|from)"
    r"|sdk|driver|patch|tag|release notes for|requires|oid|schema|downgraded? to"
    r"|chrome|firefox|python|java|node|kernel|library|package|nuget|plugin|step|figure|table)|=="
    r"|>=|<=|~=|[A-Za-z]/)"
    r"[\s:#=\"'`(]{0,3}\Z"
)


_UPGRADE = re.compile(r"\b(?:upgrad|updat|bump|downgrad|releas|version)[a-z]*\b")


def addresses(spot: Spot) -> Iterator[Found]:
    """IP version 4 addresses in a run with at least three dots."""
    text = spot.page.text
    for match in _V4.finditer(text, max(0, spot.start - 1), spot.end):
        parts = match.group().split(".")
        if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
            continue
        # A machine's own address and network masks point to nobody.
        if match.group().startswith("127.0.") or parts[0] in ("0", "255"):
            continue
        before = spot.page.low[max(0, match.start() - 24) : match.start()]
        if _VERSION.search(before):
            continue
        wanted = spot.label.category == "ip" and spot.label.distance <= 3
        if not wanted and _UPGRADE.search(spot.page.low, max(0, match.start() - 48), match.start()):
            continue
        if spot.denied and not wanted:
            continue
        small = all(int(part) < 20 for part in parts) and parts[0] != "10"
        if small and not wanted and len(set(parts)) > 1 and not _has_port(text, match.end()):
            continue
        yield Found(LABELLED, "ip", *match.span(), True)


def _has_port(text: str, end: int) -> bool:
    return re.match(r":\d{2,5}\b|/\d{1,2}\b", text[end : end + 7]) is not None


# Two groups of one address and their separators, or the double colon.
_SEPARATED = re.compile(
    r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:|[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\."
)
_HEX = frozenset("0123456789abcdefABCDEF:-.")


def hexadecimal(spot: Spot) -> Iterator[Found]:
    """IP version 6 and MAC addresses around a run."""
    text, start = spot.page.text, spot.start
    near = text[max(0, start - 9) : spot.end + 10]
    if ":" not in near and near.count("-") < 2 and near.count(".") < 2:
        return
    floor = max(0, start - 44)
    while start > floor and text[start - 1] in _HEX:
        start -= 1
    hi = min(len(text), spot.start + 96)
    if _SEPARATED.search(text, start, hi) is None:
        return
    for match in _MAC.finditer(text, start, hi):
        value = match.group()
        digits = value.replace(":", "").replace("-", "").replace(".", "").lower()
        plain = digits.isdigit() and ":" not in value and "mac" not in spot.words
        if len(set(digits)) > 1 and not plain and not _part_of_key(text, match.start()):
            yield Found(LABELLED, "mac", *match.span())
    for match in _V6.finditer(text, start, hi):
        value = match.group()
        if value.endswith(":") and not value.endswith("::"):
            value = value[:-1]
        if value.count(":") < 2 or (value.count("::") == 0 and value.count(":") < 6):
            continue
        try:
            address = ipaddress.IPv6Address(value)
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified or len(value.replace(":", "")) < 4:
            continue
        yield Found(VALID_SHAPE, "ip", match.start(), match.start() + len(value), True)


def _part_of_key(text: str, start: int) -> bool:
    """Whether the pairs go on to the left: a fingerprint, not a card's address."""
    return re.search(r"[0-9A-Fa-f]{2}[:\-]\Z", text[max(0, start - 3) : start]) is not None
