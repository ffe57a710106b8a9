"""Keys and tokens that programs hand out, by the prefixes their makers publish."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.checks import random
from mlx_itune.dataset.cleaning.pii.kinds import WHOLE, Found
from mlx_itune.dataset.cleaning.pii.labels import data_file
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page

_PREFIXED = {
    prefix: re.compile(rf"(?<!\w){re.escape(prefix)}{rest}(?!\w)", re.ASCII)
    for prefixes, rest in data_file("forms")["secrets"].items()
    for prefix in prefixes.split()
}
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
_SHORTEST = 16


def find(page: Page) -> Iterator[Found]:
    """Keys with a published prefix; private keys in PEM or PGP armour, cut short or not."""
    text = page.text
    for prefix, form in _PREFIXED.items():
        for match in form.finditer(text) if prefix in text else ():
            if random(match.group()):
                yield Found(WHOLE, "secret", *match.span())
    for match in _KEY_BLOCK.finditer(text) if "PRIVATE KEY" in text else ():
        closing = f"-----END {match['what']}-----"
        end = text.find(closing, match.end())
        body = _BODY.match(text, match.end())
        cut = body.end() if body else match.end()
        yield Found(WHOLE, "secret", match.start(), end + len(closing) if end >= 0 else cut)


def assigned(page: Page, chunk: Chunk) -> Iterator[Found]:
    """A random value that is given to a key's name, around a chunk."""
    if chunk.end - chunk.start < _SHORTEST or not chunk.lettered:
        return
    for name in _ASSIGNED.finditer(page.text, max(0, chunk.start - 40), chunk.end):
        value = _VALUE.match(page.text, name.end())
        if value and chunk.first < value.end() and random(value.group(), 3.0):
            yield Found(WHOLE, "secret", *value.span())
