"""All detectors over one text, each of them only where the text gives it a reason."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mlx_itune.dataset.cleaning.pii import birth_and_place, contact
from mlx_itune.dataset.cleaning.pii.kinds import (
    FORMS,
    KINDS,
    Form,
    Found,
    Rank,
    assigned_keys,
    keys,
)
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page
from mlx_itune.kit.wording import known

ALL_KINDS = frozenset(KINDS)
_LAST_GROUP = re.compile(r"[ .\-]+[A-Za-z0-9]+\Z")
_GROUP_BEFORE = re.compile(r"(?<![A-Za-z0-9])[0-9]+[ \-]\Z")
_GROUP_BEHIND = re.compile(r"[ \-][0-9]")


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


def known_kinds(kinds: Iterable[str] | None) -> frozenset[str]:
    """`kinds` as a set, all of them for None. Raises UsageError for an unknown one."""
    if kinds is None:
        return ALL_KINDS
    wanted = frozenset([kinds] if isinstance(kinds, str) else kinds)
    for kind in sorted(wanted - ALL_KINDS):
        known("kind of personal data", kind, KINDS)
    return wanted


def find(
    text: str, kinds: Collection[str] | None = None, *, detectors: Sequence[Detector] = ()
) -> list[Hit]:
    """Personal data in `text`, in order, without overlaps. `detectors` add kinds that no rule can
    know; what they report is kept, and wins an overlap."""
    wanted = known_kinds(kinds)
    own = [hit for detector in detectors for hit in detector(text)]
    found = [Found(Rank.WHOLE + 1, hit.kind, hit.start, hit.end, hit.verified) for hit in own]
    page = Page(text)
    found += (one for one in _candidates(page) if not _inside_word(page.text, one))
    always = {hit.kind for hit in own}
    return [
        Hit(one.kind, one.start, one.end, text[one.start : one.end], one.verified)
        for one in _settled(found)
        if one.kind in wanted or one.kind in always
    ]


def _settled(found: Iterable[Found]) -> list[Found]:
    """The best candidates that do not overlap, in text order."""
    chosen: list[Found] = []
    starts: list[int] = []
    # The best first: of the highest priority, the longest, and verified.
    for one in sorted(
        set(found), key=lambda f: (-f.priority, f.start - f.end, f.start, not f.verified, f.kind)
    ):
        at = bisect_left(starts, one.end)
        if at == 0 or chosen[at - 1].end <= one.start:
            at = bisect_left(starts, one.start)
            starts.insert(at, one.start)
            chosen.insert(at, one)
    return chosen


def _inside_word(text: str, found: Found) -> bool:
    """Whether the candidate is cut out of a longer run of letters and digits, such as a hash."""
    if found.kind in ("age", "secret"):
        return False
    first, last = text[found.start], text[found.end - 1]
    before, after = text[found.start - 1 : found.start], text[found.end : found.end + 1]
    return (first.isalnum() and before.isascii() and before.isalnum()) or (
        last.isalnum() and after.isascii() and after.isalnum()
    )


def _candidates(page: Page) -> Iterator[Found]:
    yield from contact.find(page)
    yield from keys(page)
    chunks = list(page.chunks())
    if chunks:
        yield from birth_and_place.dates(page)
    for chunk in chunks:
        yield from birth_and_place.addresses(page, chunk)
        yield from birth_and_place.coordinates(page, chunk)
        if chunk.digits <= 3:
            yield from birth_and_place.ages(page, chunk)
            if not chunk.lettered:
                continue
        elif chunk.digits >= 7:
            yield from contact.phones(page, chunk)
        yield from assigned_keys(page, chunk)
        for form in FORMS:
            if chunk.digits < form.digits:
                break
            yield from _matches(page, chunk, form)


def _matches(page: Page, chunk: Chunk, form: Form) -> Iterator[Found]:
    """The places of a chunk that a form fits, whose check and label are right."""
    at = chunk.start
    while match := form.pattern.search(page.text, at, chunk.end):
        found = _judged(page, form, *match.span())
        at = found.end if found else match.start() + 1
        if found:
            yield found


def _judged(page: Page, form: Form, start: int, end: int) -> Found | None:
    text = page.text
    while form.check and not form.check(text[start:end]):
        # An IBAN may be followed by something that looks like its next group.
        group = _LAST_GROUP.search(text, start, end) if form.kind == "iban" else None
        if group is None:
            return None
        end = group.start()
    around = page.around(start, end)
    distance = around.distance(form.label) if form.label else 99
    named = distance <= form.reach or not form.words.isdisjoint(around.words)
    # More groups of digits before or behind: a part of something longer.
    continued = _GROUP_BEFORE.search(text, max(0, start - 12), start) is not None
    if continued and form.kind == "card":
        return None
    if not named:
        continued = continued or _GROUP_BEHIND.match(text, end) is not None
        alone = form.alone is not None and form.alone.match(text, start)
        if not alone or around.is_harmless or (continued and form.kind not in ("ip", "mac")):
            return None
    if form.guard and not form.guard(page, start, end):
        return None
    priority: int
    if form.check:
        priority = Rank.LABELLED_VERIFIED if named else Rank.VERIFIED
    else:
        priority = Rank.LABELLED - min(distance, form.reach) if named else Rank.VALID_SHAPE
    return Found(priority + form.priority, form.kind, start, end, form.check is not None)
