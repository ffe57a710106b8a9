"""A JSON Schema as a grammar of llama.cpp (GBNF)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import ANY_ORDER

# White space as llama.cpp's own conversion bounds it; strings and numbers as JSON has them.
_BASICS = {
    "ws": '| " " | "\\n" [ \\t]{0,20}',
    "string": '"\\"" char* "\\""',
    "char": '[^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\bfnrt] | "u" [0-9a-fA-F]{4})',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "array": '"[" ws (value ("," ws value)*)? "]" ws',
    "object": '"{" ws (member ("," ws member)*)? "}" ws',
    "member": 'string ws ":" ws value',
    "value": "(object | array | string | number | boolean | null) ws",
}
_SAID = frozenset(
    ("$schema", "$id", "$defs", "title", "description", "default", "examples", *ANY_ORDER)
)
# Of keys in any order that have to be there, each doubles the rules.
_MOST_REQUIRED = 6
_KNOWN = frozenset(
    "type properties required additionalProperties items minItems maxItems enum const anyOf "
    "$ref".split()
)


def to_gbnf(schema: Mapping[str, Any]) -> str:
    """The grammar, its first rule `root`: what it lets through satisfies the schema. An object that
    may have keys which are not named has none of them. Raises DataError, with the path of the
    keyword, for what a grammar of this kind does not say (patterns, formats, bounds)."""
    made = _Rules(schema)
    rules = {"root": made.of(schema, "#"), **made.rules, **_BASICS}
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


class _Rules:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self.rules: dict[str, str] = {}

    def of(self, schema: Any, path: str) -> str:
        """The name of a rule, or a group, for a value and the white space behind it."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise DataError(f"{path}: no grammar for {json.dumps(schema)}")
        for key in schema:
            if key not in _KNOWN | _SAID:
                raise DataError(f"{path}/{key}: no grammar of llama.cpp is made for it")
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]), path)
        if "const" in schema or "enum" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return _any(f"{_literal(json.dumps(v, ensure_ascii=False))} ws" for v in values)
        if "anyOf" in schema:
            each = enumerate(schema["anyOf"])
            return _any(self.of(part, f"{path}/anyOf/{n}") for n, part in each)
        types = schema.get("type", [])
        kinds = [types] if isinstance(types, str) else list(types)
        return _any(self._kind(kind, schema, path) for kind in kinds) if kinds else "value"

    def _kind(self, kind: str, schema: Mapping[str, Any], path: str) -> str:
        if kind == "object" and ("properties" in schema or "additionalProperties" in schema):
            return self._object(schema, path)
        if kind == "array" and schema.keys() & {"items", "minItems", "maxItems"}:
            return self._array(schema, path)
        return kind if kind in ("object", "array") else f"{kind} ws"

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        item = self.of(schema.get("items", {}), f"{path}/items")
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most == 0:
            return '"[" ws "]" ws'
        more = f"{{{max(0, least - 1)},{'' if most is None else int(most) - 1}}}"
        inside = f'{item} ("," ws {item}){more}'
        return f'"[" ws {inside if least else f"({inside})?"} "]" ws'

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        properties = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        if not properties and other is not False:
            member = f'string ws ":" ws {self.of(other, f"{path}/additionalProperties")}'
            return f'"{{" ws ({member} ("," ws {member})*)? "}}" ws'
        name = self._new("object")
        required = set(schema.get("required", ()))
        if unknown := required - properties.keys():
            raise DataError(f"{path}/required: {min(unknown)!r} is no property")
        members = [
            (key in required, f'{_literal(json.dumps(key, ensure_ascii=False))} ws ":" ws {value}')
            for key, part in properties.items()
            for value in [self.of(part, f"{path}/properties/{key}")]
        ]
        if ANY_ORDER.items() <= schema.items() and len(required) <= _MOST_REQUIRED:
            return self._any_order(name, members)
        # What may follow member n, whether something stands before it or not.
        for n, (is_required, member) in reversed([*enumerate(members)]):
            for before, comma in (("first", ""), ("next", '"," ws ')):
                rest = f"{name}-{n + 1}-next" if n + 1 < len(members) else ""
                skip = f"{name}-{n + 1}-{before}" if n + 1 < len(members) else ""
                rule = f"{comma}{member} {rest}".strip()
                if not is_required:
                    rule = f"{rule} | {skip}" if skip else f"({rule})?"
                self.rules[f"{name}-{n}-{before}"] = rule
        body = f"{name}-0-first " if members else ""
        self.rules[name] = f'"{{" ws {body}"}}" ws'
        return name

    def _any_order(self, name: str, members: Sequence[tuple[bool, str]]) -> str:
        """Members as they come, one rule for each set of those that still have to; a key may come
        again, and the last one counts."""
        bits = itertools.count()
        flags = [(1 << next(bits) if is_required else 0, member) for is_required, member in members]
        full = (1 << next(bits)) - 1
        for had in range(full + 1):
            for at, comma in (("first", ""), ("next", '"," ws ')):
                each = [f"{comma}{member} {name}-{had | flag}-next" for flag, member in flags]
                end = ['""'] if had == full else []
                self.rules[f"{name}-{had}-{at}"] = " | ".join([*each, *end])
        self.rules[name] = f'"{{" ws {name}-0-first "}}" ws'
        return name

    def _reference(self, reference: str, path: str) -> str:
        if reference == "#":
            return "root"
        prefix, _, key = reference.rpartition("/")
        if prefix != "#/$defs" or key not in self._schema.get("$defs", {}):
            raise DataError(f"{path}/$ref: {reference} is not one of $defs")
        name = "def-" + "".join(char if char.isalnum() and char.isascii() else "-" for char in key)
        if name not in self.rules:
            # Named before it is made: it may refer to itself.
            self.rules[name] = ""
            self.rules[name] = self.of(self._schema["$defs"][key], reference)
        return name

    def _new(self, kind: str) -> str:
        name = f"{kind}-{len(self.rules)}"
        self.rules[name] = ""
        return name


def _any(parts: Any) -> str:
    each = list(parts)
    return each[0] if len(each) == 1 else f"({' | '.join(each)})"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
