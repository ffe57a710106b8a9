"""HTML, as web pages of chats were saved, back into the Markdown it was made from."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = "p|div|pre|ul|ol|li|h[1-6]|table|tr|td|th|blockquote"
_STARTS = re.compile(rf"\s*<(?:{_BLOCKS}|br|span|strong|em|b|i|code)\b[^<>]*>", re.IGNORECASE)
_CLOSES = re.compile(rf"</(?:{_BLOCKS})\s*>", re.IGNORECASE)
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_LANGUAGE = re.compile(r"(?:language|lang|highlight-source)-([A-Za-z0-9+#.-]+)")
_WORD = re.compile(r"[A-Za-z0-9+#.-]{1,20}")
_BUTTONS = re.compile(r"^([A-Za-z0-9+#.-]{1,20})?[ \t]*Copy code", re.IGNORECASE)
_SKIPPED = frozenset({"script", "style", "svg", "button", "head", "title", "noscript"})
_VOID = frozenset({"br", "hr", "img", "input", "meta", "link", "col", "wbr", "area", "source"})
_MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~", "code": "`"}
_HEADS = {f"h{depth}": "\n\n" + "#" * depth + " " for depth in range(1, 7)}
_OPENING = {**_MARKS, **_HEADS, "br": "\n", "hr": "\n\n---\n\n", "table": "\n\n"}
_CLOSING = {**_MARKS, **dict.fromkeys(_HEADS, "\n\n")}
_ITEM = re.compile(r"(?:- |\d+\. )\Z")
_CODE = re.compile("\0([0-9]+)\0")


def is_html(text: str) -> bool:
    """Whether a text is a piece of a web page, rather than one that speaks of tags. It begins with
    a tag that lays out text and closes one, or closes several outside of code."""
    if "</" not in text and "<br" not in text.lower():
        return False
    bare = _FENCED.sub("", text)
    closed = len(_CLOSES.findall(bare))
    return (bool(_STARTS.match(bare)) and ("</" in bare or "<br" in bare.lower())) or closed >= 3


def to_markdown(text: str) -> str:
    """The Markdown of a piece of HTML; code keeps its line breaks and gets its fence."""
    parser = _Markdown()
    parser.feed(text)
    parser.close()
    return parser.text()


class _Markdown(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._skipping: list[str] = []
        self._lists: list[tuple[str, int]] = []  # kind, number of the next item
        self._quotes: list[int] = []  # where in the parts each open quotation begins
        self._codes: list[str] = []  # blocks of code, which stay as they are
        self._pre: list[str] | None = None
        self._language = ""
        self._link = ""
        self._cells: list[str] | None = None
        self._cell_start = 0
        self._rows: list[list[str]] = []

    def text(self) -> str:
        if self._pre is not None:
            self._close_pre()
        while self._quotes:
            self._close_quote()
        return self._cut(0)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if self._skipping or tag in _SKIPPED:
            self._skipping += [tag] * (tag not in _VOID)
        elif self._pre is not None or tag == "pre":
            self._inside_pre(tag, given)
        elif tag in _OPENING:
            self._parts.append(_OPENING[tag])
        elif tag == "a":
            self._link = given.get("href", "")
            self._parts.append("[" if self._link else "")
        elif tag == "img":
            self._parts.append(f"![{given.get('alt', '')}]({given.get('src', '')})")
        elif tag in ("ul", "ol"):
            start = given.get("start", "")
            self._lists.append((tag, int(start) if start.isdecimal() else 1))
            self._line() if len(self._lists) > 1 else self._parts.append("\n\n")
        elif tag == "li":
            self._item()
        elif tag == "blockquote":
            self._parts.append("\n\n")
            self._quotes.append(len(self._parts))
        elif tag == "tr":
            self._cells = []
        elif tag in ("td", "th"):
            self._cell_start = len(self._parts)
        elif tag in ("p", "div"):
            self._paragraph()

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            while tag in self._skipping and self._skipping.pop() != tag:
                pass
        elif self._pre is not None:
            if tag == "pre":
                self._close_pre()
        elif tag in _CLOSING:
            self._parts.append(_CLOSING[tag])
        elif tag == "a" and self._link:
            self._parts.append(f"]({self._link})")
            self._link = ""
        elif tag in ("ul", "ol"):
            self._lists = self._lists[:-1]
            self._line() if self._lists else self._parts.append("\n\n")
        elif tag in ("td", "th") and self._cells is not None:
            self._cells.append(" ".join(self._cut(self._cell_start).split()))
        elif tag == "tr" and self._cells is not None:
            self._rows.append(self._cells)
            self._cells = None
        elif tag == "table" and self._rows:
            self._table()
        elif tag == "blockquote":
            self._close_quote()
        elif tag in ("p", "div"):
            self._paragraph()

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        # Line breaks inside a paragraph stay: chats are shown with them.
        if self._pre is not None:
            self._pre.append(data)
        elif data.strip() or "\n" not in data:
            self._parts.append(data)

    def _inside_pre(self, tag: str, attrs: dict[str, str]) -> None:
        if self._pre is None:
            self._pre, self._language = [], ""
        found = _LANGUAGE.search(attrs.get("class", ""))
        self._language = self._language or (found[1] if found else "")
        if tag == "br":
            self._pre.append("\n")
        elif tag == "code":
            # What stands before the code is the page's header: the language and a button.
            header = "".join(self._pre).strip()
            self._language = self._language or header * bool(_WORD.fullmatch(header))
            self._pre.clear()

    def _close_pre(self) -> None:
        code = "".join(self._pre or ())
        self._pre = None
        if button := _BUTTONS.match(code.lstrip()):
            code = code.lstrip()[button.end() :]
            self._language = self._language or button[1] or ""
        self._parts.append(f"\n\n\0{len(self._codes)}\0\n\n")
        self._codes.append(f"```{self._language}\n" + code.strip("\n") + "\n```")

    def _close_quote(self) -> None:
        quoted = self._cut(self._quotes.pop()) if self._quotes else ""
        lines = (f"> {line}".rstrip() for line in quoted.split("\n") if quoted)
        # Like code, what is quoted is laid out already.
        self._parts.append(f"\0{len(self._codes)}\0\n\n" * bool(quoted))
        self._codes.append("\n".join(lines))

    def _item(self) -> None:
        self._line()
        kind, number = self._lists[-1] if self._lists else ("ul", 1)
        mark = f"{number}. " if kind == "ol" else "- "
        self._parts.append("  " * (len(self._lists) - 1) + mark)
        self._lists[-1:] = [(kind, number + 1)] * bool(self._lists)

    def _paragraph(self) -> None:
        """A border between paragraphs; in an item of a list a line, in a cell a space."""
        if self._cells is not None:
            self._parts.append(" ")
        elif not self._lists:
            self._parts.append("\n\n")
        elif self._parts and not _ITEM.search(self._parts[-1]):
            self._line()

    def _table(self) -> None:
        width = max(map(len, self._rows))
        lines = [" | ".join([*row, *[""] * (width - len(row))]) for row in self._rows]
        lines.insert(1, " | ".join(["---"] * width))
        self._parts.append("\n".join(f"| {line} |" for line in lines) + "\n\n")
        self._rows = []

    def _cut(self, start: int) -> str:
        """The parts from `start` on, taken out and laid out."""
        text = re.sub(r"[ \t]+\n", "\n", "".join(self._parts[start:]))
        del self._parts[start:]
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
        return _CODE.sub(lambda place: self._codes[int(place[1])], text)

    def _line(self) -> None:
        if self._parts and not "".join(self._parts[-2:]).endswith("\n"):
            self._parts.append("\n")
