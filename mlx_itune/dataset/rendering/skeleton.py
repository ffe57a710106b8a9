"""Templates that only put contents in their places: rendered once per sequence of roles.

Most chat templates never look at what a message says; they write it between constant texts, perhaps
trimmed. For these the text of a conversation is a skeleton, which depends on the roles alone, with
the contents filled in. `is_opaque` proves the property on the template's syntax tree by following
every value that comes from a content; whatever it does not understand, it does not accept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import nodes

# What an expression may hold: nothing of a content; a content's text, never empty; messages.
_PLAIN, _TEXT, _BOX = 0, 1, 2
_STRIPS = ("strip", "lstrip", "rstrip")
_OF_TYPE = frozenset("defined undefined none string mapping iterable sequence boolean".split())
_LOOP = frozenset("index index0 revindex revindex0 first last length depth depth0".split())

# A content that shows, in the rendered text, where it went and which of its ends were stripped.
_EDGE, _OPEN, _CLOSE = "\u2003", "\U0010fff0", "\U0010fff1"
_PLACE = re.compile(f"({_EDGE}?){_OPEN}([0-9]+){_CLOSE}({_EDGE}?)")


class Skeleton:
    """The text of conversations with one sequence of roles: constants and numbered places."""

    def __init__(self, rendered: str) -> None:
        self._parts: list[tuple[str, int, str]] = []
        at = 0
        for match in _PLACE.finditer(rendered):
            before, number, after = match.groups()
            strip = {("", ""): "strip", ("", _EDGE): "lstrip", (_EDGE, ""): "rstrip"}
            mode = strip.get((before, after), "")
            self._parts.append((rendered[at : match.start()], int(number), mode))
            at = match.end()
        self._tail = rendered[at:]

    @staticmethod
    def probe(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Messages of the same roles whose contents mark their places."""
        return [
            {"role": m["role"], "content": f"{_EDGE}{_OPEN}{number}{_CLOSE}{_EDGE}"}
            for number, m in enumerate(messages)
        ]

    def fill(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of `messages`, none of whose contents is blank."""
        out = []
        for constant, number, mode in self._parts:
            content: str = messages[number]["content"]
            out.append(constant)
            out.append(getattr(content, mode)() if mode else content)
        out.append(self._tail)
        return "".join(out)


def shape(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """The roles of messages that have a content which is not blank and nothing else, or None."""
    roles = []
    for message in messages:
        if len(message) != 2 or message["content"].isspace() or not message["content"]:
            return None
        roles.append(message["role"])
    return tuple(roles)


def is_opaque(tree: nodes.Template) -> bool:
    """Whether contents reach the text of this template unexamined."""
    if any(_EDGE in data.data for data in tree.find_all(nodes.TemplateData)):
        return False
    try:
        flow = _Flow()
        # A name may be used above the line that gives it a content (in a loop): once more.
        while flow.walk(tree.body):
            pass
    except _Examined:
        return False
    return True


class _Examined(Exception):
    """A content, or a whole message, is used in a way that its value could matter."""


class _Flow:
    """What each name and each namespace attribute may hold, found by walking the tree."""

    def __init__(self) -> None:
        self.names = {"messages": _BOX, "loop": _BOX}
        self.attributes: dict[str, int] = {}
        self._changed = False

    def walk(self, body: Sequence[nodes.Node]) -> bool:
        """Follow the statements once; whether anything new was learned."""
        self._changed = False
        for node in body:
            self._statement(node)
        return self._changed

    def _block(self, body: Sequence[nodes.Node]) -> None:
        for node in body:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Output):
            for child in node.nodes:
                if self._value(child) == _BOX:
                    raise _Examined
        elif isinstance(node, nodes.If):
            self._value(node.test)
            for part in (node.body, node.elif_, node.else_):
                self._block(part)
        elif isinstance(node, nodes.For):
            held = self._value(node.iter)
            if held == _TEXT or node.recursive:
                raise _Examined
            self._give(node.target, held)
            if node.test is not None:
                self._value(node.test)
            self._block(node.body)
            self._block(node.else_)
        elif isinstance(node, nodes.Assign):
            self._give(node.target, self._value(node.node))
        elif type(node).__name__ not in ("Break", "Continue"):
            raise _Examined

    def _give(self, target: nodes.Node, held: int) -> None:
        if isinstance(target, nodes.Name):
            table, name = self.names, target.name
        elif isinstance(target, nodes.NSRef):
            table, name = self.attributes, target.attr
        elif held == _PLAIN and isinstance(target, nodes.Tuple):
            for item in target.items:
                self._give(item, _PLAIN)
            return
        else:
            raise _Examined
        both = _join(table.get(name, held), held)
        if table.get(name) != both:
            table[name] = both
            self._changed = True

    def _value(self, node: nodes.Node) -> int:
        if isinstance(node, (nodes.Const, nodes.TemplateData)):
            return _PLAIN
        if isinstance(node, nodes.Name):
            return self.names.get(node.name, _PLAIN)
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            return self._member(node)
        if isinstance(node, (nodes.Add, nodes.Concat)):
            parts = node.nodes if isinstance(node, nodes.Concat) else (node.left, node.right)
            held = [self._value(part) for part in parts]
            if _BOX in held:
                raise _Examined
            return max(held)
        if isinstance(node, (nodes.And, nodes.Or)):
            return _join(self._value(node.left), self._value(node.right))
        if isinstance(node, nodes.Not):
            self._value(node.node)
            return _PLAIN
        if isinstance(node, nodes.CondExpr):
            self._value(node.test)
            other = self._value(node.expr2) if node.expr2 is not None else _PLAIN
            return _join(self._value(node.expr1), other)
        if isinstance(node, nodes.Compare):
            return self._compare(node)
        if isinstance(node, nodes.Test):
            if node.name not in _OF_TYPE or node.args:
                self._all_plain(node)
            else:
                self._value(node.node)
            return _PLAIN
        if isinstance(node, nodes.Filter):
            return self._filter(node)
        if isinstance(node, nodes.Call):
            return self._call(node)
        self._all_plain(node)
        return _PLAIN

    def _member(self, node: nodes.Getattr | nodes.Getitem) -> int:
        base = self._value(node.node)
        if isinstance(node, nodes.Getattr):
            key: Any = node.attr
        elif isinstance(node.arg, nodes.Const):
            key = node.arg.value
        else:
            self._all_plain(node.arg)
            key = 0
        if base == _TEXT:
            raise _Examined
        if base == _PLAIN:
            return self.attributes.get(key, _PLAIN) if isinstance(key, str) else _PLAIN
        if not isinstance(key, str):
            return _BOX
        if key == "content":
            return _TEXT
        if key in ("previtem", "nextitem"):
            return _BOX
        # Any other key of a message is undefined here; a method would lead to all of it.
        if key != "role" and key not in _LOOP and (hasattr(dict, key) or hasattr(list, key)):
            raise _Examined
        return _PLAIN

    def _compare(self, node: nodes.Compare) -> int:
        """Texts may be compared with what they never are: false, none, the empty text."""
        held = [self._value(node.expr), *(self._value(op.expr) for op in node.ops)]
        if max(held) > _PLAIN:
            (op, *more), sides = node.ops, (node.expr, node.ops[0].expr)
            never = [
                isinstance(side, nodes.Const) and side.value in (None, False, "") for side in sides
            ]
            if more or op.op not in ("eq", "ne") or _BOX in held or not any(never):
                raise _Examined
        return _PLAIN

    def _filter(self, node: nodes.Filter) -> int:
        held = self._value(node.node) if node.node is not None else _TEXT
        if held == _BOX and node.name in ("length", "count"):
            return _PLAIN
        if held == _TEXT and node.name in ("trim", "string") and not node.args:
            return _TEXT
        self._all_plain(node)
        return _PLAIN

    def _call(self, node: nodes.Call) -> int:
        function = node.node
        if isinstance(function, nodes.Getattr) and function.attr in _STRIPS and not node.args:
            held = self._value(function.node)
            if held == _BOX:
                raise _Examined
            return held
        if isinstance(function, nodes.Name) and function.name == "namespace" and not node.args:
            for pair in node.kwargs:
                self._give(nodes.NSRef("", pair.key), self._value(pair.value))
            return _PLAIN
        self._all_plain(node)
        return _PLAIN

    def _all_plain(self, node: nodes.Node) -> None:
        """Nothing in `node`, however deep, may hold a content or a message."""
        for child in node.iter_child_nodes():
            if isinstance(child, nodes.Expr):
                if self._value(child) != _PLAIN:
                    raise _Examined
            else:
                self._all_plain(child)


def _join(one: int, other: int) -> int:
    if _BOX in (one, other) and one != other:
        raise _Examined
    return max(one, other)
