"""The part of Go's text/template that exported Modelfiles use, and Ollama's Modelfile parser.

Written from their documentation (pkg.go.dev/text/template; ollama/ollama, parser/parser.go), and
apart from the code that writes what they read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ACTION = re.compile(r'\{\{(- )?((?:"(?:[^"\\]|\\.)*"|[^"])*?)( -)?\}\}', re.DOTALL)
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
    """What the template writes for `messages`, given as Ollama gives them."""
    rows = [{"Role": m["role"], "Content": m["content"]} for m in messages]
    data = {"Messages": rows}
    nodes = _nodes(template)
    out: list[str] = []
    rest = _run(nodes, 0, {"$": data}, data, out, live=True)
    assert rest == len(nodes)
    return "".join(out)


def _nodes(template: str) -> list[tuple[str, str]]:
    """("text", ...) and ("action", ...) with trim markers applied."""
    nodes: list[tuple[str, str]] = []
    at, strip_left = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip(" \t\r\n") if strip_left else text
        nodes.append(("text", text.rstrip(" \t\r\n") if match.group(1) else text))
        nodes.append(("action", match.group(2).strip()))
        at, strip_left = match.end(), bool(match.group(3))
    text = template[at:]
    nodes.append(("text", text.lstrip(" \t\r\n") if strip_left else text))
    return nodes


def _run(
    nodes: Sequence[tuple[str, str]],
    at: int,
    names: dict[str, Any],
    dot: Any,
    out: list[str],
    *,
    live: bool,
) -> int:
    """Execute from `at` to the `end` or `else` of this level; its place, or the end of all."""
    while at < len(nodes):
        kind, text = nodes[at]
        if kind == "text":
            out += [text] if live else []
        elif text == "end" or text == "else" or text.startswith("else if "):
            return at
        elif text.startswith("if "):
            at = _if(nodes, at, names, dot, out, live=live)
        elif text.startswith("range "):
            at = _range(nodes, at, names, dot, out, live=live)
        elif live and (found := re.match(r"(\$\w+) :?= (.*)", text)):
            names[found.group(1)] = _value(found.group(2), names, dot)
        elif live:
            out.append(str(_value(text, names, dot)))
        at += 1
    return at


def _if(nodes: Any, at: int, names: Any, dot: Any, out: Any, *, live: bool) -> int:
    done = not live
    while True:
        text = nodes[at][1]
        if text == "end":
            return at
        asked = text.removeprefix("else").strip()
        taken = not done and (not asked or bool(_value(asked[3:], names, dot)))
        at = _run(nodes, at + 1, names, dot, out, live=taken)
        done = done or taken


def _range(nodes: Any, at: int, names: Any, dot: Any, out: Any, *, live: bool) -> int:
    found = re.fullmatch(r"range (\$\w+), (\$\w+) := (.*)", nodes[at][1])
    assert found is not None, nodes[at][1]
    items = _value(found.group(3), names, dot) if live else []
    for number, item in enumerate(items):
        names |= {found.group(1): number, found.group(2): item}
        end = _run(nodes, at + 1, names, item, out, live=True)
    return end if items else _run(nodes, at + 1, names, dot, out, live=False)


def _value(text: str, names: Mapping[str, Any], dot: Any) -> Any:
    tokens = _TOKEN.findall(text)
    value, rest = _call(tokens, names, dot)
    assert not rest, text
    return value


def _call(tokens: list[str], names: Mapping[str, Any], dot: Any) -> tuple[Any, list[str]]:
    args: list[Any] = []
    function = tokens[0] if tokens[0] in _FUNCTIONS else None
    tokens = tokens[1:] if function else tokens
    while tokens and tokens[0] != ")":
        token, tokens = tokens[0], tokens[1:]
        if token == "(":
            value, tokens = _call(tokens, names, dot)
            assert tokens[0] == ")"
            tokens = tokens[1:]
        else:
            value = _operand(token, names, dot)
        args.append(value)
    if function is None:
        assert len(args) == 1
        return args[0], tokens
    return _FUNCTIONS[function](*args), tokens


def _operand(token: str, names: Mapping[str, Any], dot: Any) -> Any:
    if token.startswith('"'):
        # Go's escapes that JSON has too; \U with eight digits is Go's alone.
        return json.loads(re.sub(r"\\U([0-9a-f]{8})", lambda m: chr(int(m.group(1), 16)), token))
    if token.isdigit():
        return int(token)
    head, *fields = token.split(".")
    value = dot if head == "" else names[head]
    for field in fields:
        value = value[field]
    return value


_FUNCTIONS = {
    "eq": lambda a, *others: any(a == b for b in others),
    "ne": lambda a, b: a != b,
    "or": lambda *values: next((v for v in values if v), values[-1]),
    "not": lambda value: not value,
    "len": len,
    "slice": lambda items, start: items[start:],
}
