"""E-mail addresses, web addresses that carry a password, and user names beside a label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.hits import LABELLED, VERIFIED, WHOLE, Found
from mlx_itune.dataset.cleaning.pii.labels import nearest, script_label
from mlx_itune.dataset.cleaning.pii.spots import Page, Spot

_LOCAL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.)+(?:xn--[a-z0-9-]{2,30}|[^\W\d_]{2,24})")
_QUOTED = re.compile(r'"[^"\s@][^"\n@]{0,60}"\Z')
_LITERAL = re.compile(r"\[(?:\d{1,3}\.){3}\d{1,3}\]")
# Endings of files, not of hosts: icon@2x.png, styles@3.css.
_FILES = frozenset("png jpg jpeg gif svg webp css js json html pdf".split())
_EMAIL_LEFT = "!#$%&'*/=?^`{|}~.-+"

_URL_USER = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{1,15}://\Z")
_REST = re.compile(r"[^\s<>\"'`)\]}]*")
_USERINFO = re.compile(r"[^\s/@:]{0,64}:[^\s/@]{1,128}\Z")

_OBFUSCATED = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}\s?(?:[\[({<]\s?(?:at|@|ät)\s?[\])}>]|\sat\s)\s?"
    r"[\w-]{1,63}(?:\s?(?:[\[({<]\s?(?:dot|\.|punkt|punto)\s?[\])}>]|\sdot\s"
    r"|\.)\s?[\w-]{1,63}){0,3}"
    r"\s?(?:[\[({<]\s?(?:dot|\.|punkt|punto)\s?[\])}>]|\sdot\s|\.)\s?(?:[a-z]{2,6})\b",
    re.IGNORECASE,
)
_SPOKEN = re.compile(r"[\w.+-]{1,64}(?:\sdot\s[\w+-]{1,64}){1,3}\sat\s[\w-]{1,63}", re.IGNORECASE)
_MARKS = ("at]", "at)", "at}", "at>", "at ", "@)", "@]", "ät)", "ät]")
_TLDS = "com org net edu gov io co uk de fr es it nl in br au jp cn ca info me eu us dev".split()

_HANDLE = re.compile(r"(?<![\w@./])@[A-Za-z0-9_][\w.]{1,29}")
_NAME = re.compile(
    r"""[\s"'`]{0,3}(?:(?:is|ist|est|es|è|=>|:=|=|:|#|name"
    r"|id)[\s"'`:=]{0,3}){0,2}(@?[\w][\w.\-]{2,31})"""
)
_USER_LABEL = re.compile(
    r"user ?name|user_name|user id|user_id|\blogin|screen ?name|benutzername|nutzername|handle"
    r"|nom d'utilisateur|identifiant|nombre de usuario|nome utente|gebruikersnaam|gamertag"
    r"|用户名|ユーザー名",
)


def emails(page: Page) -> Iterator[Found]:
    """Addresses with an @; the address of a repository over ssh is not one."""
    text = page.text
    at = text.find("@")
    while at >= 0:
        found = _url_at(text, at) or _email_at(text, at)
        if found is not None:
            yield found
        at = text.find("@", at + 1)


def _email_at(text: str, at: int) -> Found | None:
    domain = _DOMAIN.match(text, at + 1, at + 254) or _LITERAL.match(text, at + 1, at + 20)
    if domain is None:
        return None
    before = text[max(0, at - 64) : at]
    local = _LOCAL.search(before[-_run_back(before) :]) if _run_back(before) else None
    name = local.group().lstrip(_EMAIL_LEFT) if local else ""
    if not name:
        quoted = _QUOTED.search(before)
        if quoted is None:
            return None
        name = quoted.group()
    start, end = at - len(name), domain.end()
    host = domain.group()
    if host.rsplit(".", 1)[-1].lower() in _FILES or ".." in name or name.endswith("."):
        return None
    if text[end : end + 1] == ":" and text[end + 1 : end + 2].isalpha() and name in ("git", "hg"):
        return None
    if text[start - 3 : start] == "://" or text[end : end + 1] == "(":
        return None  # a decorator's call, or the user part of a web address
    return Found(VERIFIED, "email", start, end)


def _run_back(before: str) -> int:
    """How many characters at the end of `before` can belong to a local part."""
    length = 0
    for char in reversed(before):
        # Scripts that write no spaces run into an address without being a part of it.
        if not (char.isalnum() or char in "_.!#$%&'*+/=?^`{|}~-") or char > "\u2e7f":
            break
        length += 1
    return length


def _url_at(text: str, at: int) -> Found | None:
    floor = max(0, at - 220)
    scheme_end = text.rfind("://", floor, at)
    if scheme_end < 0:
        return None
    scheme = _URL_USER.search(text[max(0, scheme_end - 16) : scheme_end + 3])
    user = text[scheme_end + 3 : at]
    if scheme is None or not _USERINFO.match(user):
        return None
    rest = _REST.match(text, at + 1, at + 400)
    end = rest.end() if rest else at + 1
    end -= len(text[at:end]) - len(text[at:end].rstrip(".,;:!?"))
    start = scheme_end + 3 - len(scheme.group())
    return Found(WHOLE, "url", start, end) if end > at + 1 else None


def may_spell_email(text: str) -> bool:
    """Whether a text without @ can hold an address."""
    if " dot " in text or " DOT " in text:
        return True
    for opening in "([{<":
        at = text.find(opening)
        while at >= 0:
            if text[at + 1 : at + 5].lstrip().lower().startswith(_MARKS):
                return True
            at = text.find(opening, at + 1)
    return False


def spelled_emails(page: Page) -> Iterator[Found]:
    """name [at] host [dot] com, and name dot name at host dot com."""
    if not may_spell_email(page.text):
        return
    for match in _OBFUSCATED.finditer(page.text):
        words = match.group().lower()
        bracketed = re.search(r"[\[({<] ?(?:at|@|ät) ?[\])}>]", words) is not None
        ending = re.split(r"[^a-z]+", words)[-1]
        if not bracketed and (" dot " not in words or ending not in _TLDS):
            continue
        start = match.start()
        lead = re.search(r"(?:[\w+-]+ dot )+\Z", page.text[max(0, start - 60) : start], re.I)
        yield Found(VERIFIED, "email", start - (len(lead.group()) if lead else 0), match.end())


def usernames(spot: Spot) -> Iterator[Found]:
    """A name with digits after a label such as "username:" or "login is"."""
    label = spot.label
    if label.category != "user" or label.distance > 2:
        return
    text, low = spot.page.text, spot.page.low
    start = spot.token[0]
    for word in _USER_LABEL.finditer(low, max(0, start - 40), spot.start):
        match = _NAME.match(text, word.end())
        if match is None or not match.start(1) <= spot.start < match.end(1):
            continue
        name = match.group(1).rstrip(".-")
        linked = text[word.end() : match.start(1)].strip()
        end = match.start(1) + len(name)
        if linked and any(map(str.isalpha, name)) and not _is_code(text, match.start(1), end):
            yield Found(LABELLED, "username", match.start(1), end)


def handles(page: Page) -> Iterator[Found]:
    """An @name near the name of a network, or after a user-name label."""
    for match in _HANDLE.finditer(page.text):
        label = nearest(page.words_before(match.start()))
        script = script_label(page.low, match.start())
        if "user" in (label.category, script.category) and label.distance <= 4:
            end = match.end() - (len(match.group()) - len(match.group().rstrip(".")))
            yield Found(LABELLED, "username", match.start(), end)


def _is_code(text: str, start: int, end: int) -> bool:
    """Whether the name is an expression of a program: a call, an index, an attribute."""
    if text[end : end + 1] in ("(", "["):
        return True
    quoted = text[start - 1 : start] in ("'", '"', "`")
    name = text[start:end]
    return not quoted and bool(
        re.match(r"(?:self|request|req|this|user|os|config|args|form)\b", name)
    )
