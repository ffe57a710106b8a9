"""How a template writes tool calls, found out by rendering two of them; and the way back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.dialect import PROBE
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

Call = dict[str, Any]

# Names and values that occur nowhere else.
PROBES: tuple[Call, ...] = (
    {"name": "qzvxcall", "arguments": {"kzwjone": "xwvqzk"}},
    {"name": "kzwjcall", "arguments": {"kzwjtwo": "qkzvwx"}},
)
# An id is nine letters to Mistral's templates, and the very name to Kimi's.
_IDS = ("call0000{n}", "functions.{name}:{n}")
_NAME = re.compile(r"[\w.:-]{1,200}")
_BETWEEN = re.compile(r"[\s,;]*")
_decode = json.JSONDecoder(strict=False).raw_decode


def tools_for(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Tools that `calls` may call."""
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}

    def tool(call: Call) -> dict[str, Any]:
        given = call["arguments"].items()
        types = {name: {"type": names.get(type(value), "string")} for name, value in given}
        parameters = {"type": "object", "properties": types}
        function = {"name": call["name"], "description": "d", "parameters": parameters}
        return {"type": "function", "function": function}

    return [tool(call) for call in calls]


def written(chat: ChatTokenizer, calls: Sequence[Call]) -> Iterator[str]:
    """What a model has to write to make calls, up to the end of its turn, in each way in which the
    template takes their ids; nothing where the template does not show them all."""
    asked, tools = Turn("user", "a"), tools_for(calls)
    plain = _rendered(chat, [asked, Turn("assistant", PROBE)], tools).partition(PROBE)
    for form in _IDS:
        ids = [form.format(n=n, name=call["name"]) for n, call in enumerate(calls)]
        made = tuple(
            {"type": "function", "id": own, "function": call}
            for own, call in zip(ids, calls, strict=True)
        )
        text = _rendered(chat, [asked, Turn("assistant", "", tool_calls=made)], tools)
        # What a turn of words begins with, too, is none of the calls.
        begins = text[: _shared(plain[0], text)]
        opened = begins.rfind("<")
        text = text[opened if ">" not in begins[opened:] and opened >= 0 else len(begins) :]
        ends = [text.find(end) for end in _ends(chat) if end in text]
        # Nor is what the template writes behind either.
        behind = len(text) - _shared(plain[2][::-1], text[::-1])
        text = text[: min(ends, default=behind)]
        if all(call["name"] in text for call in calls):
            yield text


def _rendered(chat: ChatTokenizer, turns: Sequence[Turn], tools: Sequence[Any]) -> str:
    try:
        return chat.render_text(chat.messages(turns), tools=tools, add_generation_prompt=False)
    except DataError:
        return ""


def _shared(one: str, other: str) -> int:
    """With how many characters both begin."""
    pairs = zip(one, other, strict=False)
    alike = (n for n, (a, b) in enumerate(pairs) if a != b)
    return next(alike, min(len(one), len(other)))


def _ends(chat: ChatTokenizer) -> list[str]:
    tokens = [chat.hf.convert_ids_to_tokens(token) for token in chat.eos_ids]
    return [*filter(None, tokens), *chat.stop_strings]


@dataclass(frozen=True)
class CallForm:
    """Calls in a text. start, end: the marks around one or more of them; "" is none. names: the
    keys of name and arguments in an object; else `middle` stands between a name and its arguments,
    and `joint` between two calls."""

    start: str
    end: str = ""
    names: tuple[str, str] | None = None
    middle: str = ""
    joint: str = ""

    def parse(self, text: str) -> list[Call]:
        """The calls that stand between the marks. Raises ValueError for what is none."""
        made = list(self._objects(text) if self.names else self._named(text))
        if not made:
            raise ValueError("no call")
        return made

    def _objects(self, text: str) -> Iterator[Call]:
        name, arguments = self.names or ("", "")
        at = 0
        while (at := _skip(text, at)) < len(text):
            # Without an end, the next call begins within the text.
            if self.start and text.startswith(self.start, at):
                at += len(self.start)
                continue
            value, at = _decode(text, at)
            for each in value if isinstance(value, list) else [value]:
                inner = _holder(each, name)
                yield _call(inner[name], inner[arguments])

    def _named(self, text: str) -> Iterator[Call]:
        rest = text.strip()
        while rest:
            name, found, rest = rest.partition(self.middle)
            if not found:
                raise ValueError("no arguments")
            value, at = _decode(rest, _skip(rest, 0))
            yield _call(name.strip(), value)
            rest = rest[at:].strip()
            if rest and not (self.joint and rest.startswith(self.joint)):
                raise ValueError("more than calls")
            rest = rest[len(self.joint) :].strip()


def call_form(chat: ChatTokenizer) -> CallForm | None:
    """How a template writes calls whose arguments are JSON, if it does."""
    for one in written(chat, PROBES[:1]):
        two = next((text for text in written(chat, PROBES) if one.startswith(text[:1])), "")
        if (form := _object_form(one) or _named_form(one, two)) is not None:
            return form
    return None


def _object_form(one: str) -> CallForm | None:
    """Of an object, or a list of them, that holds name and arguments."""
    name, given = PROBES[0].values()
    for at in (found.start() for found in re.finditer(r"[\[{]", one)):
        try:
            value, end = _decode(one, at)
            inner = _holder(value[0] if isinstance(value, list) else value, name, by_value=True)
        except (ValueError, LookupError):
            continue
        keys = {key for key, item in inner.items() if item == name}
        told = {k for k, item in inner.items() if item == given or item == json.dumps(given)}
        if keys and told:
            names = (min(keys), min(told))
            return CallForm(one[:at].strip(), one[end:].strip(), names=names)
    return None


def _named_form(one: str, two: str) -> CallForm | None:
    """Of a name with its arguments behind it."""
    (name, given), (other, _) = (probe.values() for probe in PROBES)
    start, _, rest = one.partition(name)
    at = rest.find("{")
    try:
        value, end = _decode(rest, at)
    except ValueError:
        return None
    middle = rest[:at].strip()
    if at < 0 or value != given or not middle:
        return None
    after, joint = rest[end:].strip(), ""
    if other in two:
        between = two[two.index(json.dumps(given)) + len(json.dumps(given)) : two.index(other)]
        # Calls between marks of their own are told apart by those.
        joint = between.strip() if not (after and between.strip().startswith(after)) else ""
    return CallForm(start.strip(), after, middle=middle, joint=joint)


def _holder(value: Any, name: str, *, by_value: bool = False) -> Mapping[str, Any]:
    """The object that has a key, or a value, of that name: `value`, or one within."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    if name in (value.values() if by_value else value):
        return value
    for inner in value.values():
        if isinstance(inner, dict):
            return _holder(inner, name, by_value=by_value)
    raise ValueError(f"no {name}")


def _call(name: Any, arguments: Any) -> Call:
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not (isinstance(name, str) and _NAME.fullmatch(name) and isinstance(arguments, dict)):
        raise ValueError("no call")
    return {"name": name, "arguments": arguments}


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at
