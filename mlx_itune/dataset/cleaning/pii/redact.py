"""Typed placeholders in place of personal data, equal values under equal numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any

from mlx_itune.dataset.cleaning.pii.find import find, known_kinds
from mlx_itune.dataset.cleaning.pii.hits import Detector, Hit
from mlx_itune.dataset.conversation import Conversation, Turn

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_JOINTS = re.compile(r"[\s.\-/()]+")
# Kinds whose value is the same however it is grouped.
_GROUPED = frozenset(
    """phone card iban bank_account ssn national_id tax_id health_id medical_record provider_id
    passport driving_licence plate vin mac""".split()
)
_FOLDED = _GROUPED | {"email", "ip", "username", "address"}


class Placeholders:
    """Numbers the values of one text or conversation by kind, in order of appearance."""

    def __init__(self, *, consistent: bool = True) -> None:
        self._consistent = consistent
        self._numbers: dict[tuple[str, str], int] = {}
        self._last: dict[str, int] = {}

    def name(self, hit: Hit) -> str:
        """The placeholder of a hit: "[EMAIL_1]", or "[EMAIL]" where numbers were not asked for."""
        if not self._consistent:
            return f"[{hit.kind.upper()}]"
        key = (hit.kind, canonical(hit))
        if key not in self._numbers:
            self._last[hit.kind] = self._last.get(hit.kind, 0) + 1
            self._numbers[key] = self._last[hit.kind]
        return f"[{hit.kind.upper()}_{self._numbers[key]}]"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def canonical(hit: Hit) -> str:
    """The value without the accidents of its spelling."""
    value = _JOINTS.sub("", hit.text) if hit.kind in _GROUPED else hit.text
    return value.lower() if hit.kind in _FOLDED else value


def redact(
    text: str,
    kinds: Collection[str] | None = None,
    *,
    consistent: bool = True,
    detectors: Sequence[Detector] = (),
    placeholders: Placeholders | None = None,
) -> tuple[str, list[Hit]]:
    """`text` with placeholders for personal data, and what was replaced.

    Pass the same `placeholders` for several texts to number them together.
    """
    hits = find(text, kinds, detectors=detectors)
    return _replaced(text, hits, placeholders or Placeholders(consistent=consistent)), hits


def _replaced(text: str, hits: Sequence[Hit], names: Placeholders) -> str:
    if not hits:
        return text
    parts, last = [], 0
    for hit in hits:
        parts += [text[last : hit.start], names.name(hit)]
        last = hit.end
    return "".join([*parts, text[last:]])


def redact_conversation(
    conversation: Conversation,
    kinds: Collection[str] | None = None,
    *,
    consistent: bool = True,
    tags: bool = False,
    detectors: Sequence[Detector] = (),
) -> tuple[Conversation, list[Hit]]:
    """The conversation with placeholders in contents, tool-call arguments, tool results and names.

    JSON stays JSON of the same structure; a number that is personal data becomes a string. A
    conversation without hits comes back as it is. Positions in hits count from the start of the
    string that each was found in.
    """
    cleaner = _Cleaner(
        known_kinds(kinds), Placeholders(consistent=consistent), tuple(detectors), []
    )
    turns = tuple(cleaner.turn(turn) for turn in conversation.turns)
    new_tags = conversation.tags
    if tags:
        new_tags = {key: cleaner.field(key, value) for key, value in conversation.tags.items()}
    if not cleaner.hits:
        return conversation, cleaner.hits
    return dataclasses.replace(conversation, turns=turns, tags=new_tags), cleaner.hits


@dataclasses.dataclass(frozen=True)
class _Cleaner:
    """One conversation's redaction: the numbering, and the hits as they come."""

    kinds: frozenset[str]
    names: Placeholders
    detectors: tuple[Detector, ...]
    hits: list[Hit]

    def turn(self, turn: Turn) -> Turn:
        before = len(self.hits)
        content, context = self._content(turn)
        calls = tuple(self._call(call) for call in turn.tool_calls)
        name = self._text(turn.name) if turn.name is not None else None
        if len(self.hits) == before:
            return turn
        return dataclasses.replace(
            turn, content=content, input=context, tool_calls=calls, name=name
        )

    def _find(self, text: str) -> list[Hit]:
        return find(text, self.kinds, detectors=self.detectors)

    def _text(self, text: str) -> str:
        found = self._find(text)
        self.hits.extend(found)
        return _replaced(text, found, self.names)

    def _content(self, turn: Turn) -> tuple[str, str | None]:
        text = turn.content
        if not turn.input and text.lstrip()[:1] in ("{", "["):
            return self._json_text(text), turn.input
        found = self._find(text)
        self.hits.extend(found)
        if not turn.input or not text.endswith(turn.input):
            return _replaced(text, found, self.names), turn.input
        # Alpaca's input is the end of the content, and has to stay so.
        border = len(text) - len(turn.input)
        border = max([border, *(hit.end for hit in found if hit.start < border)])
        head = _replaced(text[:border], [hit for hit in found if hit.end <= border], self.names)
        moved = [
            dataclasses.replace(hit, start=hit.start - border, end=hit.end - border)
            for hit in found
            if hit.start >= border
        ]
        tail = _replaced(text[border:], moved, self.names)
        return head + tail, tail

    def _json_text(self, text: str) -> str:
        """JSON in a string stays JSON, if it was: its spacing too, unless escapes forbid that."""
        found = self._find(text)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            self.hits.extend(found)
            return _replaced(text, found, self.names)
        if "\\u" not in text:
            new = self._in_json(text, found)
            if _is_json(new):
                self.hits.extend(found)
                return new
        # An escape may hide a value or be cut by one, so the strings are read one by one.
        new_value = self._value("", value)
        return text if new_value == value else json.dumps(new_value, ensure_ascii=text.isascii())

    def _in_json(self, text: str, found: list[Hit]) -> str:
        """The placeholders put into JSON; a bare number is replaced by a string in quotes."""
        strings = [match.span() for match in _JSON_STRING.finditer(text)]
        starts = [start for start, _ in strings]
        parts, last = [], 0
        for hit in found:
            at = bisect_right(starts, hit.start) - 1
            quoted = at >= 0 and hit.end <= strings[at][1]
            name = self.names.name(hit)
            parts += [text[last : hit.start], name if quoted else json.dumps(name)]
            last = hit.end
        return "".join([*parts, text[last:]])

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function")
        if not isinstance(function, dict):
            return call
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            # Kept as JSON text by a caller that built the turn without the readers.
            new: Any = self._json_text(arguments)
        else:
            new = self._value("", arguments)
        return {**call, "function": {**function, "arguments": new}}

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._text(name): self._value(name, inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._value(key, inner) for inner in value]
        if isinstance(value, str):
            return self.field(key, value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            written = str(value)
            new = self.field(key, written)
            return value if new == written else new
        return value

    def field(self, key: str, value: str) -> str:
        """The value of a field, read with its key as its label."""
        lead = f"{key}: " if key else ""
        found = [
            dataclasses.replace(hit, start=hit.start - len(lead), end=hit.end - len(lead))
            for hit in self._find(lead + value)
            if hit.start >= len(lead)
        ]
        self.hits.extend(found)
        return _replaced(value, found, self.names)
