"""All detectors over one text, each of them only where the text gives it a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from mlx_itune.dataset.cleaning.pii import (
    birth,
    contact,
    money,
    national,
    network,
    phone,
    place,
    records,
    secrets,
)
from mlx_itune.dataset.cleaning.pii.hits import KINDS, WHOLE, Detector, Found, Hit, settle
from mlx_itune.dataset.cleaning.pii.spots import OLD_AGES, Page, Spot, has_digits, spots
from mlx_itune.dataset.cleaning.pii.view import plain_view
from mlx_itune.kit.errors import UsageError, closest

ALL_KINDS = frozenset(KINDS)


def known_kinds(kinds: Iterable[str] | None) -> frozenset[str]:
    """`kinds` as a set, all of them for None. Raises UsageError for an unknown one."""
    if kinds is None:
        return ALL_KINDS
    wanted = frozenset([kinds] if isinstance(kinds, str) else kinds)
    for kind in sorted(wanted - set(KINDS)):
        near = closest(kind, KINDS)
        hint = f"did you mean {near!r}?" if near else f"choose from {', '.join(KINDS)}"
        raise UsageError(f"no such kind of personal data: {kind!r}", hint=hint)
    return wanted


def find(
    text: str,
    kinds: Collection[str] | None = None,
    *,
    detectors: Sequence[Detector] = (),
) -> list[Hit]:
    """Personal data in `text`, in order, without overlaps.

    `detectors` add kinds that no rule can know, such as names of people; what they report is
    always kept, and wins over the built-in rules where the two overlap.
    """
    wanted = ALL_KINDS if kinds is None else known_kinds(kinds)
    own = [hit for detector in detectors for hit in detector(text)]
    view = plain_view(text)
    found = [one for one in _candidates(view) if not _inside_word(view, one)]
    if not found and not own:
        return []
    outside = [Found(WHOLE + 1, hit.kind, hit.start, hit.end, hit.verified) for hit in own]
    always = {hit.kind for hit in own}
    return [
        Hit(one.kind, one.start, one.end, text[one.start : one.end], one.verified)
        for one in settle([*outside, *found])
        if one.kind in wanted or one.kind in always
    ]


def _inside_word(text: str, found: Found) -> bool:
    """Whether the candidate is cut out of a longer run of letters and digits, such as a hash."""
    if found.kind in ("age", "secret"):
        return False
    first, last = text[found.start], text[found.end - 1]
    before, after = text[found.start - 1 : found.start], text[found.end : found.end + 1]
    return (first.isalnum() and before.isascii() and before.isalnum()) or (
        last.isalnum() and after.isascii() and after.isalnum()
    )


def _candidates(view: str) -> Iterator[Found]:
    if "PRIVATE KEY" in view or "AKIA" in view:
        yield from secrets.key_blocks(Page(view, ""))
    spelled = contact.may_spell_email(view)
    at = "@" in view
    if not (spelled or at or has_digits(view)):
        return
    low = view.lower()
    page = Page(view, low)
    if at:
        yield from contact.emails(page)
        yield from contact.handles(page)
    if spelled:
        yield from contact.spelled_emails(page)
    for spot in spots(page):
        yield from _short(spot) if spot.count <= 3 else _long(spot)
    if "°" in view:
        yield from place.degrees(page)
    if page.houses:
        yield from place.addresses_by_word(page)


def _short(spot: Spot) -> Iterator[Found]:
    """Around up to three digits: what letters make more of, and ages."""
    if spot.run in OLD_AGES:
        yield from birth.ages(spot)
    if not spot.lettered:
        return
    start, end = spot.token
    if spot.token_digits >= 4:
        yield from _identifiers(spot)
    elif end - start >= 16:
        yield from secrets.keys(spot)
        yield from money.crypto_addresses(spot)
    elif spot.start - start == 2 and spot.count == 2:
        yield from money.ibans(spot)
    yield from network.hexadecimal(spot)
    if not any(map(str.isupper, spot.page.text[max(0, start - 3) : end + 3])):
        if spot.page.names_plates:
            yield from contact.usernames(spot)
        return
    yield from place.addresses_by_postcode(spot)
    if spot.page.names_plates or spot.token_digits >= 4:
        yield from contact.usernames(spot)
        yield from records.find(spot)


def _identifiers(spot: Spot) -> Iterator[Found]:
    yield from national.find(spot, lettered=True)
    yield from money.ibans(spot)
    yield from money.crypto_addresses(spot)
    yield from records.vins(spot)
    yield from secrets.keys(spot)


def _long(spot: Spot) -> Iterator[Found]:
    """Around four digits or more."""
    text, start, end, count = spot.page.text, spot.start, spot.end, spot.count
    lettered = spot.lettered
    if spot.arithmetic:
        if lettered:
            yield from _identifiers(spot)
        return
    if count >= 7:
        yield from phone.find(spot)
        yield from national.find(spot, lettered=False)
        if count >= 12:
            yield from money.cards(spot)
    if count <= 14:
        yield from birth.dates(spot)
        if count <= 12:
            yield from place.addresses_by_postcode(spot)
    if lettered:
        yield from _identifiers(spot)
        yield from contact.usernames(spot)
    elif count >= 8:
        yield from secrets.keys(spot)
    dots = text.count(".", start, end)
    if dots:
        if dots >= 3:
            yield from network.addresses(spot)
        yield from place.coordinates(spot)
    if lettered or ":" in text[max(0, start - 4) : end + 4]:
        yield from network.hexadecimal(spot)
    # A bare year is no number of a record, and the most frequent run of four digits.
    if lettered or count != 4 or end - start > 4 or text[start : start + 2] not in ("19", "20"):
        yield from records.find(spot)
