"""Telephone numbers, e-mail addresses, web addresses with a password, user names beside a label."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii.kinds import Found, Rank, in_sum
from mlx_itune.dataset.cleaning.pii.page import Chunk, Page

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
                yield Found(Rank.VERIFIED, "email", *match.span())
    if any(map(page.low.__contains__, _LOGIN_HINTS)):
        for match in _LOGIN.finditer(text):
            start, end = match.span("name")
            quoted = text[start - 1 : start] in ("'", '"', "`")
            if quoted or not _CODE.match(text, start):
                yield Found(Rank.LABELLED, "username", start, end)


def _with_at(page: Page) -> Iterator[Found]:
    text = page.text
    if "://" in text:
        for match in _URL.finditer(text):
            yield Found(Rank.WHOLE, "url", *match.span())
    at = text.find("@")
    while at >= 0:
        host = _HOST.match(text, at + 1, at + 254)
        if host and (start := _name_before(text, at, host.group())) is not None:
            end = host.end()
            # A decorator's call, the user part of a web address, a repository over ssh are none.
            ssh = text[end : end + 1] == ":" and text[start:at] in ("git", "hg")
            if not (text[start - 3 : start] == "://" or text[end : end + 1] == "(" or ssh):
                yield Found(Rank.VERIFIED, "email", start, end)
        at = text.find("@", at + 1)
    for match in _HANDLE.finditer(text):
        around = page.around(*match.span())
        if around.label == "user" and around.between <= 4:
            yield Found(Rank.LABELLED, "username", *match.span())


def _name_before(text: str, at: int, host: str) -> int | None:
    """Where the part of an address before its @ begins."""
    local = _LOCAL.search(text, max(0, at - 64), at)
    name = local.group().lstrip(_MARKS) if local else ""
    if not name or host.rpartition(".")[2].lower() in _FILES or ".." in name or name[-1] == ".":
        return None
    return at - len(name)


# International numbers go by the numbering plans, national ones by form and label.
_LEFT = r"(?<![A-Za-z0-9_+])(?<![0-9][.\-/])"
_RIGHT = r"(?![A-Za-z0-9_])(?![\-/.][0-9])"
_EXTENSION = re.compile(
    r"\s?,?\s?(?:\(?(?:ext\.?|extension|extn\.?|x|durchwahl|dw|poste|p\.|int\.?|interno|anexo|ramal"
    r"|toestel|apparaat|doorkies|anknytning|内線|分机)|#)\s?[:.#]?\s?\d{1,6}(?!\d)\)?",
    re.IGNORECASE,
)
_INTERNATIONAL = re.compile(
    r"(?<![A-Za-z0-9_+])\(?(?:\+|00(?=[1-9 ]))\)?[ ]?\(?\d{1,4}\)?"
    r"(?:[ .\-/()]{0,3}\d){5,13}(?![A-Za-z0-9_])"
)
_NORTH_AMERICA = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9][.\-/ ])(?:(?:\+?1|001)[ .\-])?"
    r"(?:\([2-9]\d{2}\)[ \-.]{0,2}\d{3}[ .\-]\d{4}|[1-9]\d{2}([.\-])\d{3}\1\d{4}"
    r"|8(?:00|33|44|55|66|77|88)[ .\-]\d{3}[ .\-]\d{4}|(?P<bare>[2-9]\d{2} [2-9]\d{2} \d{4})"
    r"|[2-9]\d{2}[ /][2-9]\d{2}[ \-]\d{4})" + _RIGHT
)
# A number of fiction; brackets; mobile prefixes of CN, BR, UK, FR, NL, DE, AU, JP.
_FICTION = re.compile(_LEFT + r"555-\d{4}" + _RIGHT)
_MOBILE = re.compile(
    r"(?:(?<!\w)\(\d{2,5}\)[ \-]?\d{3,5}[ \-]?\d{3,5}|(?<![A-Za-z0-9_+])(?<![0-9][.\-/])"
    r"(?:1[3-9]\d([ \-])\d{4}\1\d{4}|\d{2} 9\d{4}-\d{4}|07\d{9}|0[67]\d{8}|01[5-7]\d{8,9}"
    r"|04\d{8}|0[789]0\d{8}))" + _RIGHT
)
# With a trunk zero. "01 02 03 04 05" counts; "02110-1301" is a postcode with its extension.
_TRUNK = re.compile(
    _LEFT + r"(?<![0-9] )(?!\d{3}-\d{2}-\d{4})(?!\d{5}-\d{4}(?!\d))(?!0\d(?: 0\d)+(?! ?\d))"
    r"\(?0\d{1,5}\)?(?:[ .\-/]{1,3}\d{1,8}){1,5}" + _RIGHT
)
_LABELLED = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]/)[+(]{0,2}\d(?:[ \-./()]{0,3}\d){5,14}(?![A-Za-z0-9_])"
    r"(?! ?-?\d{3})"
)
# Numbers that look like these are days, times, fractions or addresses of machines.
_DATE = re.compile(
    r"[+(]*(?:(?:(?:19|20)\d\d[\-./ ]\d{1,2}[\-./ ]\d{1,2}|\d{1,2}([\-./])\d{1,2}\1(?:19|20)?\d\d)"
    r"(?: .*)?|\d+\.\d+|\d{1,3}(?:\.\d{1,3}){3})\Z"
)
_FRACTION = re.compile(
    r"[+(]*(?:[1-9]\d* ?/ ?\d{1,4}|[1-9]\d* - \d+|(?:19|20)\d{2}-\d{4}|\d+(?:\.\d{1,2}){2}"
    r"|\d+00000|\d{1,6})\Z"
)
# Where national numbers without a label may be at home.
_REGIONS = "GB DE FR IT NL AU JP IN CH AT BE SE CN IE NZ ZA".split()
# "call the function f(12345678)": a program calls, not a person.
_ARGUMENT = re.compile(r"\w\((?:\w+, )*\Z")
_LAST_GROUP = re.compile(r"[ .\-/()]+\d+\)?\Z")
_REACH, _REACH_UNGROUPED = 5, 3


def phones(page: Page, chunk: Chunk) -> Iterator[Found]:
    """Telephone numbers in a chunk of seven or more digits."""
    text, lo, hi = page.text, max(0, chunk.start - 3), chunk.end
    for match in _INTERNATIONAL.finditer(text, lo, hi):
        if found := _international(page, *match.span()):
            yield _extended(text, found)
    for pattern in (_NORTH_AMERICA, _FICTION, _MOBILE, _TRUNK, _LABELLED):
        for match in pattern.finditer(text, lo, hi):
            number, (start, end) = match.group(), match.span()
            around = page.around(start, end)
            if _DATE.match(number) or in_sum(page, start, end):
                continue
            if pattern is _LABELLED:
                reach = _REACH_UNGROUPED if number.isdigit() else _REACH
                called = _ARGUMENT.search(text, max(0, start - 24), start)
                fits = around.distance("phone") <= reach and not called
                fits = fits and not _FRACTION.match(number)
            else:
                fits = not around.is_harmless and _is_national(page, match)
            if fits:
                end -= number.endswith(")") and "(" not in number
                priority = {_LABELLED: Rank.LABELLED, _FICTION: Rank.SHAPE}.get(
                    pattern, Rank.VALID_SHAPE
                )
                yield _extended(text, Found(priority, "phone", start, end))


def _is_national(page: Page, match: re.Match[str]) -> bool:
    """Whether a number can be a national one without any label."""
    number = match.group()
    digits = sum(map(str.isdigit, number))
    if match.re is _NORTH_AMERICA and match["bare"]:
        # Three groups apart by spaces are as often a sum or a table.
        return page.around(*match.span()).distance("phone") <= _REACH or _plan(number, "US")[1]
    if match.re is not _TRUNK:
        return match.re is not _MOBILE or digits <= 12
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
        if (group := _LAST_GROUP.search(dialled)) is None:
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
    """With the extension that follows."""
    match = _EXTENSION.match(text, found.end, found.end + 24)
    return found._replace(end=match.end()) if match else found
