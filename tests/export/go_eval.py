"""The part of Go's text/template that exported Modelfiles use, and Ollama's Modelfile parser.

Written from their documentation (pkg.go.dev/text/template; ollama/ollama, parser/parser.go), and
apart from the code that writes what they read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

_ACTION = re.compile(r'\{\{(- )?((?:"(?:[^"\\]|\\.)*"|[^"])*?)\}\}', re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')


def parse_modelfile(text: str) -> dict[str, list[str]]:
    """Command -> its arguments, as Ollama's parser reads them, "PARAMETER stop" being one."""
    found: dict[str, list[str]] = {}
    lines = text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line.strip() or line.startswith("#"):
            continue
        command, _, value = line.partition(" ")
        if command == "PARAMETER":
            name, _, value = value.partition(" ")
            command = f"PARAMETER {name}"
        while (bare := _unquoted(value.strip())) is None:
            value += "\n" + lines.pop(0)
        # What Go's strconv.IsPrint rejects is dropped, layout apart.
        bare = "".join(c for c in bare if c in "\n\t\r " or c.isprintable())
        found.setdefault(command, []).append(bare)
    return found


def _unquoted(text: str) -> str | None:
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def render(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What the template writes for `messages`, given as Ollama gives them: as a Jinja template."""
    kinds: list[str] = []

    def translated(match: re.Match[str]) -> str:
        trim, action = match.groups()
        kind, _, rest = action.strip().partition(" ")
        named = re.fullmatch(r"\$(\w+) :?= (.*)", action.strip())
        if kind in ("if", "range"):
            kinds.append(kind)
        if kind == "end":
            said = f"% end{kinds.pop().replace('range', 'for')} %"
        elif kind == "else":
            said = f"% elif {_value(rest.removeprefix('if '))} %"
        elif kind == "range":
            _, dot, items = re.split(", | := ", rest)
            said = f"% for dot in {_value(items)} %}}{{% set named.i = loop.index0 %"
            said += f"}}{{% set named.{dot[1:]} = dot %"
        elif kind == "if":
            said = f"% if {_value(rest)} %"
        elif named:
            said = f"% set named.{named[1]} = {_value(named[2])} %"
        else:
            said = f"{{ {_value(action)} }}"
        return f"{{{said[0]}{'-' * bool(trim)}{said[1:]}}}"

    text = "{% set named = namespace() %}" + _ACTION.sub(translated, template)
    assert not kinds
    root = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    jinja = Environment(keep_trailing_newline=True)
    return jinja.from_string(text).render(root=root, dot=root, **_FUNCTIONS)


def _value(text: str) -> str:
    """Go's `f a (g b)` as `f(a, g(b))`."""
    found: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "(":
            found.append([])
        elif token == ")":
            found[-2].append(_called(found.pop()))
        elif token.startswith('"'):
            # Go's escapes that JSON has too; \U with eight digits is Go's alone.
            plain = re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), token)
            found[-1].append(repr(json.loads(plain)))
        elif f"go_{token}" in _FUNCTIONS:
            found[-1].append(f"go_{token}")
        else:
            head, *fields = token.split(".")
            value = {"": "dot", "$": "root"}.get(head, head.replace("$", "named."))
            found[-1].append(value + "".join(f"[{field!r}]" for field in fields))
    (whole,) = found
    return _called(whole)


def _called(words: Sequence[str]) -> str:
    head, *rest = words
    assert head in _FUNCTIONS or not rest, words
    return f"{head}({', '.join(rest)})" if head in _FUNCTIONS else head


_FUNCTIONS: dict[str, Any] = {
    "go_eq": lambda a, *others: a in others,
    "go_ne": lambda a, b: a != b,
    "go_or": lambda *values: next((v for v in values if v), values[-1]),
    "go_not": lambda value: not value,
    "go_len": len,
    "go_slice": lambda items, start: items[start:],
}
