"""Keys and tokens that programs hand out, by the prefixes their makers publish."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.hits import WHOLE, Found
from mlx_itune.dataset.cleaning.pii.spots import Page, Spot

_LEFT = r"(?<![A-Za-z0-9_])"
_RIGHT = r"(?![A-Za-z0-9_])"

# A text that holds none of these holds no key; each stands before the form it opens.
_FORMS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("AKIA", "ASIA", "AROA", "AIDA"), r"(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}"),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{30,255}"),
    (("github_pat_",), r"github_pat_[A-Za-z0-9_]{22,255}"),
    (("glpat-",), r"glpat-[A-Za-z0-9_\-]{20,64}"),
    (("sk-", "sk_"), r"sk-(?:(?:proj|ant|svcacct|or-v1|admin)-)?[A-Za-z0-9_\-]{20,200}"),
    (("_live_", "_test_"), r"(?:sk|pk|rk|pat|key)_(?:live|test)_[A-Za-z0-9]{10,200}"),
    (("whsec_",), r"whsec_[A-Za-z0-9+/=]{20,80}"),
    (("xox", "xapp-"), r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9\-]{10,200}"),
    (("AIza",), r"AIza[0-9A-Za-z_\-]{35}"),
    (("ya29.",), r"ya29\.[0-9A-Za-z_\-]{20,400}"),
    (("GOCSPX-",), r"GOCSPX-[A-Za-z0-9_\-]{20,40}"),
    (("eyJ",), r"eyJ[A-Za-z0-9_\-]{8,2000}\.eyJ[A-Za-z0-9_\-]{8,8000}\.[A-Za-z0-9_\-]{8,1024}"),
    (("npm_",), r"npm_[A-Za-z0-9]{36}"),
    (("pypi-",), r"pypi-[A-Za-z0-9_\-]{50,400}"),
    (("hf_",), r"hf_[A-Za-z0-9]{30,40}"),
    (("SG.",), r"SG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{30,64}"),
    (("dop_v1_", "doo_v1_"), r"do[op]_v1_[a-f0-9]{64}"),
    (("shpat_", "shpss_", "shpca_"), r"shp(?:at|ss|ca|pa)_[a-fA-F0-9]{32}"),
    (("sq0",), r"sq0[a-z]{3}-[A-Za-z0-9_\-]{22,50}"),
    (("key-",), r"key-[0-9a-f]{32}"),
    (("AC", "SK"), r"(?:AC|SK)[0-9a-f]{32}"),
    (("AGE-SECRET-KEY-",), r"AGE-SECRET-KEY-1[0-9A-Z]{50,64}"),
    (("hooks.slack.com",), r"https://hooks\.slack\.com/services/[A-Za-z0-9/]{20,80}"),
    (("/api/webhooks/",),
     r"https://[a-z.]*discord(?:app)?\.com/api/webhooks/\d+/[A-Za-z0-9_\-]{20,100}"),
    ((":AA",), r"\d{8,10}:AA[A-Za-z0-9_\-]{33}"),
    (("gsk_", "r8_", "pplx-", "nvapi-", "lin_api_", "dckr_pat_", "figd_", "ntn_", "secret_"),
     r"(?:gsk_|r8_|pplx-|nvapi-|lin_api_|dckr_pat_|figd_|ntn_|secret_)[A-Za-z0-9_\-]{24,120}"),
    (("AccountKey=",), r"(?<=AccountKey=)[A-Za-z0-9+/]{60,90}={0,2}"),
)  # fmt: skip
_COMPILED = tuple(
    (hint, re.compile(_LEFT + form + _RIGHT)) for hints, form in _FORMS for hint in hints
)

_AWS = re.compile(_LEFT + r"A[KS]IA[0-9A-Z]{16}" + _RIGHT)
_SHORTEST = 16
_KEY_BLOCK = re.compile(r"-----BEGIN (?P<what>[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")
# What a value that is a key is given to, up to the value itself.
_NAME_OF_KEY = re.compile(
    r"(?:(?:api|secret|access|auth|private|client|encryption|signing|bearer|session|refresh)[_\- ]?"
    r"(?:key|token|secret)(?:[_\- ]?(?:id|key))?[\"']?\s{0,3}(?::=|[:=]|\bis\b|=>)\s{0,3}[\"'`]?"
    r"|\b(?:bearer|basic)\s"
    r"|[?&](?:token|key|api_?key|access_token|sig|signature|secret)=)",
    re.IGNORECASE,
)
_VALUE = re.compile(r"[A-Za-z0-9_\-+/.=%]{16,2000}(?=[\"'`\s,;)}&]|$)")
_ASSIGNED_HINTS = ("key", "token", "secret", "bearer ", "basic ", "sig=")


def keys(spot: Spot) -> Iterator[Found]:
    """Keys with a published prefix, and random values given to a key's name, around a run."""
    text = spot.page.text
    start, end = spot.token
    if end - start < _SHORTEST:
        return
    lo, hi = max(0, start - 40), min(len(text), start + 9000)
    window = text[lo : end + 1]
    for form in {form for hint, form in _COMPILED if hint in window}:
        for match in form.finditer(text, lo, hi):
            if match.start() <= spot.start < match.end() and _random(match.group(), 2.5):
                yield Found(WHOLE, "secret", *match.span())
    low = spot.page.low[lo : end + 1]
    if any(map(low.__contains__, _ASSIGNED_HINTS)):
        for name in _NAME_OF_KEY.finditer(text, lo, spot.start):
            value = _VALUE.match(text, name.end())
            if value and spot.start < value.end() and _random(value.group(), 3.0):
                yield Found(WHOLE, "secret", *value.span())


def key_blocks(page: Page) -> Iterator[Found]:
    """Private keys in PEM or PGP armour, cut short or not, and AWS ids, digits or none."""
    text = page.text
    for match in _AWS.finditer(text):
        yield Found(WHOLE, "secret", *match.span())
    for match in _KEY_BLOCK.finditer(text):
        closing = f"-----END {match['what']}-----"
        end = text.find(closing, match.end())
        whole = end + len(closing) if end >= 0 else _body_end(text, match.end())
        yield Found(WHOLE, "secret", match.start(), whole)


def _body_end(text: str, start: int) -> int:
    body = re.compile(r"(?:\s*[A-Za-z0-9+/=]{16,}|\\n[A-Za-z0-9+/=]{16,})*").match(text, start)
    return body.end() if body else start


def _random(value: str, bits: float) -> bool:
    """Whether the characters vary as those of a key do, unlike sk-xxxxxxxx or your_key_here."""
    counts = Counter(value)
    length = len(value)
    return -sum(n / length * math.log2(n / length) for n in counts.values()) >= bits
