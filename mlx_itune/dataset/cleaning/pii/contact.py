"""E-mail addresses, web addresses that carry a password, and user names beside a label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import LABELLED, VERIFIED, WHOLE, Found
from mlx_itune.dataset.cleaning.pii.page import Page

# Scripts that write no spaces (from 2E80 on) run into an address without being a part of it.
_LOCAL = re.compile(r"(?:[^\W\u2e80-\uffff]|[.!#$%&'*+/=?^`{|}~-]){1,64}\Z")
_HOST = re.compile(
    r"(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.)+(?:xn--[a-z0-9-]{2,30}|[^\W\d_]{2,24})"
    r"|\[(?:\d{1,3}\.){3}\d{1,3}\]"
)
# Endings of files, not of hosts: icon@2x.png, styles@3.css.
_FILES = frozenset("png jpg jpeg gif svg webp css js json html pdf".split())
_MARKS = "!#$%&'*/=?^`{|}~.-+"
_URL = re.compile(
    r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{1,15}://[^\s/@:]{0,64}:[^\s/@]{1,128}"
    r"@[^\s<>\"'`)\]}]*[^\s<>\"'`)\]}.,;:!?]"
)

_DOT = r"(?:\s?[\[({<]\s?(?:dot|\.|punkt|punto)\s?[\])}>]\s?|\sdot\s|\.)"
_SPELLED = re.compile(
    r"(?<![\w.+-])(?:[\w+-]{1,40}\sdot\s){0,3}[\w.+-]{1,64}"
    r"(?P<at>\s?[\[({<]\s?(?:at|@|ät)\s?[\])}>]\s?|\sat\s)"
    rf"(?:[\w-]{{1,63}}{_DOT}){{1,4}}(?P<end>[a-z]{{2,6}})\b",
    re.IGNORECASE,
)
_MAY_SPELL = re.compile(r" dot |[\[({<] ?(?:at|@|ät) ?[\])}>]", re.IGNORECASE)
_ENDINGS = frozenset(
    "com org net edu gov io co uk de fr es it nl in br au jp cn ca info me eu us dev".split()
)

_HANDLE = re.compile(r"(?<![\w@./])@[A-Za-z0-9_][\w.]{0,28}\w")
_LOGIN = re.compile(
    r"(?:user ?name|user_name|user id|user_id|\blogin|screen ?name|benutzername|nutzername|handle"
    r"|nom d'utilisateur|identifiant|nombre de usuario|nome utente|gebruikersnaam|gamertag"
    r"|usuario|usuário|用户名|ユーザー名)"
    r"[\s\"'`*]{0,4}(?:(?:is\b|ist\b|est\b|es\b|è|é|=>|:=|[=:：;#|>?)\n\t]|-\s|</?\w+>|name\b|id\b)"
    r"[\s\"'`*:=(]{0,4}){1,3}"
    r"(?P<name>@?(?=[\w.\-]{0,31}[0-9])(?=[\w.\-]{0,31}[A-Za-z])[\w][\w.\-]{1,30}\w)(?!\.?[\w([])",
    re.IGNORECASE,
)
_LOGIN_HINTS = (
    "user", "login", "screen", "nutzername", "handle", "utilisateur", "identifiant", "usu",
    "utente", "gebruiker", "gamertag", "用户名", "ユーザー名",
)  # fmt: skip
_CODE = re.compile(r"(?:self|request|req|this|user|os|config|args|form)\b|\w+\.\w+\.")


def find(page: Page) -> Iterator[Found]:
    """Addresses, handles and user names."""
    text = page.text
    if "@" in text:
        yield from _with_at(page)
    if _MAY_SPELL.search(text):
        for match in _SPELLED.finditer(text):
            bracketed = match["at"].strip().lower() != "at"
            plain = " dot " in match.group().lower() and match["end"].lower() in _ENDINGS
            if bracketed or plain:
                yield Found(VERIFIED, "email", *match.span())
    if any(map(page.low.__contains__, _LOGIN_HINTS)):
        for match in _LOGIN.finditer(text):
            start, end = match.span("name")
            quoted = text[start - 1 : start] in ("'", '"', "`")
            if quoted or not _CODE.match(text, start):
                yield Found(LABELLED, "username", start, end)


def _with_at(page: Page) -> Iterator[Found]:
    text = page.text
    if "://" in text:
        for match in _URL.finditer(text):
            yield Found(WHOLE, "url", *match.span())
    at = text.find("@")
    while at >= 0:
        host = _HOST.match(text, at + 1, at + 254)
        if host and (start := _name_before(text, at, host.group())) is not None:
            end = host.end()
            # A decorator's call, the user part of a web address, a repository over ssh are none.
            ssh = text[end : end + 1] == ":" and text[start:at] in ("git", "hg")
            if not (text[start - 3 : start] == "://" or text[end : end + 1] == "(" or ssh):
                yield Found(VERIFIED, "email", start, end)
        at = text.find("@", at + 1)
    for match in _HANDLE.finditer(text):
        label = page.around(*match.span()).label
        if label.group == "user" and label.distance <= 4:
            yield Found(LABELLED, "username", *match.span())


def _name_before(text: str, at: int, host: str) -> int | None:
    """Where the part of an address before its @ begins."""
    local = _LOCAL.search(text, max(0, at - 64), at)
    name = local.group().lstrip(_MARKS) if local else ""
    if not name or host.rpartition(".")[2].lower() in _FILES or ".." in name or name[-1] == ".":
        return None
    return at - len(name)
