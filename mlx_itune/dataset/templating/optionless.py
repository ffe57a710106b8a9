"""A template without its options: neither the list, nor its header, nor the gap it leaves."""

from __future__ import annotations

import re

from mlx_itune.dataset.templating.pattern import Pattern

OPTIONS = "options_"

# While it is cut, a pattern is one string: fields as START name END, the options as LIST.
_START, _END, _LIST = "\x00", "\x01", "\x02"
_FIELD = re.compile(f"{_START}[^{_END}]*{_END}")
_UNIT = re.compile(
    f"{_LIST}|(?:{_FIELD.pattern}|[^\n{_LIST}{_START}])+?"
    f"(?:[.:?!]+(?=[ \t\n{_LIST}{_START}]|$)|(?=[\n{_LIST}])|$)"
)
# Words that speak of the list wherever they stand.
_MENTION = re.compile(
    r"\b(?:options?|option\(s\)|choices?|candidates?|mult(?:i|iple)[- ]choice|alternatives"
    r"|(?:possible|available|following|given|suggested) answers?|answers? below"
    r"|(?:choose|pick|select)\s+(?:from|one|between|among|an answer|the answer|the (?:right|correct"
    r"|best) (?:answer|one)|your answer)"
    r"|from (?:the|this|these) (?:list|following)"
    r"|(?:one|which) of (?:the following|these|those))\b",
    re.IGNORECASE,
)
# Words that do so only right before the list.
_HEADER = re.compile(
    r"\b(?:following|these|those|below|answers|list|choose|pick|select|labels?|classes)\b",
    re.IGNORECASE,
)

_NO_HEADERS = {"a", "answer", "q", "question", "the answer", "your answer"}
_BEFORE_LIST = re.compile(
    f"(?P<before>^|[\n{_END}]|[.?!:][ \t]+)"
    f"(?P<sentence>[^\n.?!:{_START}{_END}{_LIST}]+:)\\s*{_LIST}"
)


def without_options(pattern: Pattern) -> tuple[Pattern, str]:
    """The pattern with no trace of its options, and "" or the wording that could not be cut.

    Sentences that speak of the list and hold no field go with it, and so does the line that heads
    it. A pattern without `{options_}` is returned as it is.
    """
    if OPTIONS not in pattern.fields:
        return pattern, ""
    joined = "".join(
        piece if not n % 2 else _LIST if piece == OPTIONS else f"{_START}{piece}{_END}"
        for n, piece in enumerate(pattern.pieces)
    )
    problem = _woven_in(joined)
    headless = _cut_header(joined)
    lines: list[str | None] = []
    for line in headless.split("\n"):
        kept, left = _cut_line(line)
        problem = problem or left
        lines.append(kept)
    text = "\n".join(_close_gaps(lines))
    if not text.strip():
        problem = problem or "nothing else stands there"
    return _pattern(text), problem


def _woven_in(text: str) -> str:
    """The wording around a list that is part of a sentence."""
    for line in text.split("\n"):
        before, found, after = line.partition(_LIST)
        stem = before.rstrip()
        if found and (
            (stem and stem[-1] not in f".:?!;{_END}")
            or (after.strip() and after[0] not in f" \t{_LIST}")
        ):
            return _readable(line)
    return ""


def _cut_header(text: str) -> str:
    """Without the literal sentence that ends in a colon right before each list."""

    def cut(match: re.Match[str]) -> str:
        sentence = match["sentence"]
        words = sentence.strip(" \t:").split()
        short = len(words) <= 2 and sentence.strip(" \t:").lower() not in _NO_HEADERS
        if _MENTION.search(sentence) or _HEADER.search(sentence) or short:
            return match["before"] + _LIST
        return match.group()

    return _BEFORE_LIST.sub(cut, text)


def _cut_line(line: str) -> tuple[str | None, str]:
    """A line without the list and its mentions (None: the line goes), and what had to stay."""
    kept: list[str] = []
    cut = False
    left = ""
    for unit in _UNIT.findall(line):
        if unit == _LIST:
            cut = True
        elif not _MENTION.search(_FIELD.sub(" ", unit)):
            joins = cut and kept and kept[-1][-1:] in " \t"
            kept.append(unit.lstrip(" \t") if joins else unit)
        elif _START in unit:
            kept.append(unit)
            left = left or _readable(unit)
        else:
            cut = True
    if not cut:
        return line, left
    text = "".join(kept).strip(" \t")
    return (text or None), left


def _close_gaps(lines: list[str | None]) -> list[str]:
    """The lines, with one gap (the widest) where several meet because a line went."""
    out: list[str] = []
    position = 0
    while position < len(lines):
        end = position
        while end < len(lines) and not (lines[end] or "").strip():
            end += 1
        if end == position:
            out.append(lines[position] or "")
            position += 1
            continue
        gap = lines[position:end]
        if None not in gap:
            out += [line or "" for line in gap]
        elif out and end < len(lines):
            runs = "".join("x" if line is None else " " for line in gap).split("x")
            out += [""] * max(map(len, runs))
        position = end
    return out


def _pattern(text: str) -> Pattern:
    pieces = re.split(f"{_START}([^{_END}]*){_END}", text)
    return Pattern.of_pieces(tuple(pieces))


def _readable(text: str) -> str:
    plain = text.replace(_START, "{").replace(_END, "}").replace(_LIST, "{options_}")
    return repr(plain.strip())
