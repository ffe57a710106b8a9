"""Telephone numbers, e-mail addresses, web addresses with a password, user names beside a label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import Found, Rank, in_sum
from mlx_itune.dataset.cleaning.pii.page import PATTERNS, Chunk, Page

_RE = PATTERNS["contact"]

# Endings of files, not of hosts: icon@2x.png, styles@3.css.
_FILES = frozenset("png jpg jpeg gif svg webp css js json html pdf".split())
_MARKS = "!#$%&'*/=?^`{|}~.-+"

_ENDINGS = frozenset(
    "com org net edu gov io co uk de fr es it nl in br au jp cn ca info me eu us dev".split()
)

_LOGIN_HINTS = (
    "user", "login", "screen", "nutzername", "handle", "utilisateur", "identifiant", "usu",
    "utente", "gebruiker", "gamertag", "用户名", "ユーザー名",
)  # fmt: skip


def find(page: Page) -> Iterator[Found]:
    """Addresses, handles and user names."""
    text = page.text
    if "@" in text:
        yield from _with_at(page)
    if _RE["may_spell"].search(text):
        for match in _RE["spelled"].finditer(text):
            bracketed = match["at"].strip().lower() != "at"
            plain = " dot " in match.group().lower() and match["end"].lower() in _ENDINGS
            if bracketed or plain:
                yield Found(Rank.VERIFIED, "email", *match.span())
    if any(map(page.low.__contains__, _LOGIN_HINTS)):
        for match in _RE["login"].finditer(text):
            start, end = match.span("name")
            quoted = text[start - 1 : start] in ("'", '"', "`")
            if quoted or not _RE["code"].match(text, start):
                yield Found(Rank.LABELLED, "username", start, end)


def _with_at(page: Page) -> Iterator[Found]:
    text = page.text
    if "://" in text:
        for match in _RE["url"].finditer(text):
            yield Found(Rank.WHOLE, "url", *match.span())
    at = text.find("@")
    while at >= 0:
        host = _RE["host"].match(text, at + 1, at + 254)
        if host and (start := _name_before(text, at, host.group())) is not None:
            end = host.end()
            # A decorator's call, the user part of a web address, a repository over ssh are none.
            ssh = text[end : end + 1] == ":" and text[start:at] in ("git", "hg")
            if not (text[start - 3 : start] == "://" or text[end : end + 1] == "(" or ssh):
                yield Found(Rank.VERIFIED, "email", start, end)
        at = text.find("@", at + 1)
    for match in _RE["handle"].finditer(text):
        around = page.around(*match.span())
        if around.label == "user" and around.between <= 4:
            yield Found(Rank.LABELLED, "username", *match.span())


def _name_before(text: str, at: int, host: str) -> int | None:
    """Where the part of an address before its @ begins."""
    local = _RE["local"].search(text, max(0, at - 64), at)
    name = local.group().lstrip(_MARKS) if local else ""
    if not name or host.rpartition(".")[2].lower() in _FILES or ".." in name or name[-1] == ".":
        return None
    return at - len(name)


# Where national numbers without a label may be at home.
_REGIONS = "GB DE FR IT NL AU JP IN CH AT BE SE CN IE NZ ZA".split()
_REACH, _REACH_UNGROUPED = 5, 3


def phones(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Telephone numbers in a chunk of seven or more digits."""
    text, lo, hi = page.text, max(0, chunk.start - 3), chunk.end
    for match in _RE["international"].finditer(text, lo, hi):
        if found := _international(page, *match.span()):
            yield _extended(text, found)
    for pattern in (
        _RE["north_america"],
        _RE["fiction"],
        _RE["mobile"],
        _RE["trunk"],
        _RE["labelled"],
    ):
        for match in pattern.finditer(text, lo, hi):
            number, (start, end) = match.group(), match.span()
            around = page.around(start, end)
            if _RE["date"].match(number) or in_sum(page, start, end):
                continue
            if pattern is _RE["labelled"]:
                reach = _REACH_UNGROUPED if number.isdigit() else _REACH
                called = _RE["argument"].search(text, max(0, start - 24), start)
                fits = around.distance("phone") <= reach and not called
                fits = fits and not _RE["fraction"].match(number)
            else:
                fits = not around.is_harmless and _is_national(page, match)
            if fits:
                end -= number.endswith(")") and "(" not in number
                priority = {_RE["labelled"]: Rank.LABELLED, _RE["fiction"]: Rank.SHAPE}.get(
                    pattern, Rank.VALID_SHAPE
                )
                yield _extended(text, Found(priority, "phone", start, end))


def _is_national(page: Page, match: re.Match[str]) -> bool:
    number = match.group()
    digits = sum(map(str.isdigit, number))
    if match.re is _RE["north_america"] and match["bare"]:
        # Three groups apart by spaces are as often a sum or a table.
        return page.around(*match.span()).distance("phone") <= _REACH or _plan(number, "US")[1]
    if match.re is not _RE["trunk"]:
        return match.re is not _RE["mobile"] or digits <= 12
    if number.startswith("(") or (digits in (10, 11) and re.match(r"0[1-9]\d+[ \-/]", number)):
        return True
    return 9 <= digits <= 12 and any(_plan(number, region)[1] for region in _REGIONS)


def _plan(number: str, region: str | None) -> tuple[bool, bool]:
    """(possible, valid) under the numbering plans."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False, False
    return phonenumbers.is_possible_number(parsed), phonenumbers.is_valid_number(parsed)


def _international(page: Page, start: int, end: int) -> Found | None:
    text = page.text
    if text[start] == "(" and ")" not in text[start : start + 6]:
        start += 1
    dialled = re.sub(r"\A\(?00\)?", "+", text[start:end])
    while not (plan := _plan(dialled.replace("(0)", ""), None))[0]:
        if (group := _RE["last_group"].search(dialled)) is None:
            return None
        end -= len(dialled) - group.start()
        dialled = dialled[: group.start()]
    plus, valid = "+" in text[start : start + 3], plan[1]
    around = page.around(start, end)
    if not valid and around.distance("phone") > _REACH:
        summed = re.search(r"[0-9)=*]\s{0,2}\Z", text[max(0, start - 3) : start])
        grouped = re.search(r"\d[ .\-/()]+\d", dialled) and not summed
        if not plus or around.is_harmless or not (grouped or len(dialled) >= 11):
            return None
    return Found(Rank.LABELLED if valid and plus else Rank.VALID_SHAPE, "phone", start, end, valid)


def _extended(text: str, found: Found) -> Found:
    match = _RE["extension"].match(text, found.end, found.end + 24)
    return found._replace(end=match.end()) if match else found
