"""The part of Go's text/template that exported Modelfiles use, and Ollama's Modelfile parser.

Written from their documentation (pkg.go.dev/text/template; ollama/ollama, parser/parser.go), and
apart from the code that writes what they read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_LAYOUT = " \t\r\n"
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
    """What the template writes for `messages`, given as Ollama gives them: run as Python."""
    root = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    lines: list[str] = []
    blocks: list[str] = []
    at = 0
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        lines.append(_line(blocks, f"out({text.rstrip(_LAYOUT) if match[1] else text!r})"))
        at = match.end()
        kind, _, rest = match[2].strip().partition(" ")
        named = re.fullmatch(r"(\$\w+) :?= (.*)", match[2].strip())
        looped = re.fullmatch(r"(\$\w+), (\$\w+) := (.*)", rest)
        if kind == "end":
            lines += ["dot = root"] if blocks.pop() == "range" and not blocks else []
        elif kind == "else":
            lines.append(_line(blocks[:-1], f"elif {_value(rest.removeprefix('if '))}:"))
            lines.append(_line(blocks, "pass"))
        elif kind == "range" and looped:
            names = f"{_name(looped[1])}, dot"
            lines.append(_line(blocks, f"for {names} in enumerate({_value(looped[3])}):"))
            blocks.append(kind)
        elif kind == "if":
            lines.append(_line(blocks, f"if {_value(rest)}:"))
            blocks.append(kind)
        elif named:
            lines.append(_line(blocks, f"{_name(named[1])} = {_value(named[2])}"))
        else:
            lines.append(_line(blocks, f"out({_value(match[2].strip())})"))
    assert not blocks
    written: list[str] = []
    exec("\n".join(lines), {**_FUNCTIONS, "root": root, "dot": root, "out": written.append})
    return "".join([*written, template[at:]])


def _line(blocks: Sequence[str], text: str) -> str:
    return " " * len(blocks) + text


def _name(variable: str) -> str:
    return variable.replace("$", "named_")


def _value(text: str) -> str:
    tokens = _TOKEN.findall(text)
    value = _call(tokens)
    assert not tokens, text
    return value


def _call(tokens: list[str]) -> str:
    """Go's `f a (g b)` as Python's `f(a, g(b))`."""
    found: list[str] = []
    while tokens and tokens[0] != ")":
        token = tokens.pop(0)
        if token == "(":
            found.append(_call(tokens))
            assert tokens.pop(0) == ")"
        elif token.startswith('"'):
            # Go's escapes that JSON has too; \U with eight digits is Go's alone.
            text = re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m[1], 16)), token)
            found.append(repr(json.loads(text)))
        elif f"go_{token}" in _FUNCTIONS:
            found.append(f"go_{token}")
        else:
            head, *fields = token.split(".")
            value = {"": "dot", "$": "root"}.get(head, _name(head))
            found.append(value + "".join(f"[{field!r}]" for field in fields))
    head, *rest = found
    if head in _FUNCTIONS:
        return f"{head}({', '.join(rest)})"
    assert not rest, found
    return head


_FUNCTIONS: dict[str, Any] = {
    "go_eq": lambda a, *others: a in others,
    "go_ne": lambda a, b: a != b,
    "go_or": lambda *values: next((v for v in values if v), values[-1]),
    "go_not": lambda value: not value,
    "go_len": len,
    "go_slice": lambda items, start: items[start:],
}
