"""Keys and tokens that programs hand out, by the prefixes their makers publish."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.checks import random
from mlx_itune.dataset.cleaning.pii.kinds import WHOLE, Found
from mlx_itune.dataset.cleaning.pii.labels import data_file
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page

_PREFIXED = re.compile(
    rf"(?:{'|'.join(data_file('forms')['secrets']['prefixed'])})(?![A-Za-z0-9_])", re.ASCII
)
_BORDER = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z0-9]")
_AWS = re.compile(r"(?<![A-Za-z0-9_])A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9_])")
_KEY_BLOCK = re.compile(r"-----BEGIN (?P<what>[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")
_BODY = re.compile(r"(?:(?:\s|\\n)*[A-Za-z0-9+/=]{16,})*")
# What a value that is a key is given to, up to the value itself.
_ASSIGNED = re.compile(
    r"(?:(?:api|secret|access|auth|private|client|encryption|signing|bearer|session|refresh)[_\- ]?"
    r"(?:key|token|secret)(?:[_\- ]?(?:id|key))?[\"']?\s{0,3}(?::=|[:=]|\bis\b|=>)\s{0,3}[\"'`]?"
    r"|\b(?:bearer|basic)\s|[?&](?:token|key|api_?key|access_token|sig|signature|secret)=)",
    re.IGNORECASE,
)
_VALUE = re.compile(r"[A-Za-z0-9_\-+/.=%]{16,2000}(?=[\"'`\s,;)}&]|$)")
_SHORTEST, _LONGEST = 16, 9000


def keys(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Keys with a published prefix, and random values given to a key's name, around a chunk."""
    if chunk.end - chunk.start < _SHORTEST or not chunk.lettered:
        return
    text, lead = page.text, max(0, chunk.start - 40)
    for border in _BORDER.finditer(text, lead, chunk.end):
        match = _PREFIXED.match(text, border.start(), border.start() + _LONGEST)
        if match and random(match.group()):
            yield Found(WHOLE, "secret", *match.span())
    for name in _ASSIGNED.finditer(text, lead, chunk.end):
        value = _VALUE.match(text, name.end())
        if value and chunk.first < value.end() and random(value.group(), 3.0):
            yield Found(WHOLE, "secret", *value.span())


def key_blocks(page: Page) -> Iterator[Found]:
    """Private keys in PEM or PGP armour, cut short or not, and AWS ids, digits or none."""
    text = page.text
    for match in _AWS.finditer(text) if "AKIA" in text or "ASIA" in text else ():
        yield Found(WHOLE, "secret", *match.span())
    for match in _KEY_BLOCK.finditer(text) if "PRIVATE KEY" in text else ():
        closing = f"-----END {match['what']}-----"
        end = text.find(closing, match.end())
        body = _BODY.match(text, match.end())
        cut = body.end() if body else match.end()
        yield Found(WHOLE, "secret", match.start(), end + len(closing) if end >= 0 else cut)
