"""Objects whose keys come in any order, as a Lark grammar of llguidance.

Its conversion of a JSON Schema has keys in the schema's order. A rule with a set of bits, one for
each key that has been written, lets them come in any order and none twice:
https://github.com/guidance-ai/llguidance/blob/main/docs/parametric.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_itune.kit.json_files import ANY_ORDER

# llguidance's rules have 64 bits.
_MOST_KEYS = 64
# What such an object may say of itself, and what an array of them may.
_OBJECT = {"type", "properties", "required", "additionalProperties", *ANY_ORDER}
_ARRAY = {"type", "items"}
_SAID = {"$schema", "$id", "title", "description", "default", "examples"}
_BASICS = r"""ws: WS?
WS: /\n {0,16}| /"""


def any_order(schema: Mapping[str, Any], how: Mapping[str, Any]) -> str | None:
    """The grammar of a schema in which keys of some object come in any order, and then those of the
    objects around it, too; keys that are not named do not come. None where no keys do, or where
    such an object says more than keys and values. how: llguidance's options of what is within."""
    if "$ref" in json.dumps(schema) or not _is_free(schema):
        return None
    rules: list[str] = []
    try:
        start = _value(schema, rules, how)
    except _Other:
        return None
    return "\n".join([f"start: {start}", *rules, _BASICS])


class _Other(Exception):
    """An object says more than its keys."""


def _is_free(schema: Any) -> bool:
    """Whether keys of an object in it, at a place that rules reach, come in any order."""
    if not isinstance(schema, Mapping):
        return False
    within = [*schema.get("properties", {}).values(), schema.get("items")]
    return ANY_ORDER.items() <= schema.items() or any(map(_is_free, within))


def _value(schema: Any, rules: list[str], how: Mapping[str, Any]) -> str:
    """The name of a rule for a value; rules: gets what it consists of."""
    name = f"v{len(rules)}"
    rules.append("")
    place = len(rules) - 1
    if schema is False:
        raise _Other
    if schema is True or not _is_free(schema):
        within = {} if schema is True else schema
        rules[place] = f"{name}: %json {json.dumps({'x-guidance': how, **within})}"
        return name
    kind, said = schema.get("type"), schema.keys() - _SAID
    if kind == "array" and said <= _ARRAY:
        item = _value(schema["items"], rules, how)
        rules[place] = f'{name}: "[" ws ({item} ("," ws {item})* ws)? "]"'
    elif kind == "object" and said <= _OBJECT and len(schema["properties"]) <= _MOST_KEYS:
        rules[place] = "\n".join(_object(name, schema, rules, how))
    else:
        raise _Other
    return name


def _object(
    name: str, schema: Mapping[str, Any], rules: list[str], how: Mapping[str, Any]
) -> Iterator[str]:
    properties, required = schema["properties"], set(schema.get("required", ()))
    if required - properties.keys():
        raise _Other
    # Those that have to be there come first: they are the lowest bits.
    keys = sorted(properties, key=lambda key: key not in required)
    members = [
        f'{_literal(key)} ws ":" ws {_value(properties[key], rules, how)} '
        f"{name}_on::set_bit({bit}) %if bit_clear({bit})"
        for bit, key in enumerate(keys)
    ]
    end = 'ws "}"' + (f" %if is_ones([0:{len(required)}])" if required else "")
    # No comma where no key is left.
    more = f" %if bit_count_lt(_, {len(keys)})"
    yield f'{name}: "{{" ws {name}_in::0x0'
    yield f"{name}_in::_: {end}\n  | {name}_member::_"
    yield f"{name}_member::_: " + "\n  | ".join(members)
    yield f'{name}_on::_: {end}\n  | "," ws {name}_member::_{more}'


def _literal(key: str) -> str:
    return json.dumps(json.dumps(key, ensure_ascii=False), ensure_ascii=False)
