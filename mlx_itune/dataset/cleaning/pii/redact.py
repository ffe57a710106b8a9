"""Typed placeholders in place of personal data, equal values under equal numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from mlx_itune.dataset.cleaning.pii.checks import compact
from mlx_itune.dataset.cleaning.pii.find import Detector, Hit, find, known_kinds
from mlx_itune.dataset.cleaning.rows import with_text
from mlx_itune.dataset.conversation import Conversation, Turn

# A string or a number of JSON; a string before a colon is a key.
_SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"(?P<key>\s*:)?|-?[0-9][0-9.eE+\-]*', re.DOTALL)
# Kinds whose value is the same however it is grouped, or written in capitals.
_GROUPED = frozenset(
    """phone card iban bank_account ssn national_id tax_id health_id medical_record provider_id
    passport driving_licence plate vin mac""".split()
)
_REMEMBERED_CHARS = 2000
_FOLDED = frozenset(("email", "ip", "username", "address"))


@lru_cache(4096)
def _remembered(text: str, kinds: frozenset[str]) -> tuple[Hit, ...]:
    return tuple(find(text, kinds))


def redact(
    text: str, kinds: Collection[str] | None = None, *, detectors: Sequence[Detector] = ()
) -> tuple[str, list[Hit]]:
    """`text` with placeholders for personal data, and what was replaced."""
    cleaner = _Cleaner(known_kinds(kinds), tuple(detectors))
    return cleaner.text(text), cleaner.hits


def redact_conversation(
    conversation: Conversation,
    kinds: Collection[str] | None = None,
    *,
    detectors: Sequence[Detector] = (),
) -> tuple[Conversation, list[Hit]]:
    """The conversation with placeholders in every text: turns, tool calls, tools and tags. JSON
    stays JSON of the same structure; a number that is personal data becomes a string. Without hits
    it comes back as it is. Positions count from the start of the string of each hit."""
    cleaner = _Cleaner(known_kinds(kinds), tuple(detectors))
    turns = tuple(map(cleaner.turn, conversation.turns))
    tools = tuple(map(cleaner.value, conversation.tools))
    tags = {key: cleaner.field(value, key) for key, value in conversation.tags.items()}
    if not cleaner.hits:
        return conversation, []
    return Conversation(turns, conversation.origin, tools, tags, checked=True), cleaner.hits


@dataclasses.dataclass(frozen=True)
class _Cleaner:
    """One conversation's redaction: the hits as they come, and the numbers of their values."""

    kinds: frozenset[str]
    detectors: tuple[Detector, ...]
    hits: list[Hit] = dataclasses.field(default_factory=list)
    numbers: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    def hits_in(self, text: str) -> Sequence[Hit]:
        """The hits in a text; system prompts and tools are the same in row after row."""
        if self.detectors or len(text) > _REMEMBERED_CHARS:
            return find(text, self.kinds, detectors=self.detectors)
        return _remembered(text, self.kinds)

    def placeholder(self, hit: Hit) -> str:
        """ "[EMAIL_1]"; equal values of one kind, however they are written, have equal numbers."""
        value = compact(hit.text) if hit.kind in _GROUPED else hit.text
        value = value.lower() if hit.kind in _FOLDED else value
        numbers = self.numbers.setdefault(hit.kind, {})
        return f"[{hit.kind.upper()}_{numbers.setdefault(value, len(numbers) + 1)}]"

    def turn(self, turn: Turn) -> Turn:
        turn = with_text(turn, self.field)
        return dataclasses.replace(
            turn,
            tool_calls=tuple(map(self.value, turn.tool_calls)),
            name=self.text(turn.name) if turn.name is not None else None,
            # Read as it is in the call that it answers, so that the two stay equal.
            tool_call_id=turn.tool_call_id and self.text(turn.tool_call_id, "id"),
        )

    def text(self, text: str, key: str = "") -> str:
        lead = f"{key}: " if key else ""
        parts, last = [], 0
        for hit in self.hits_in(lead + text):
            start, end = hit.start - len(lead), hit.end - len(lead)
            if start >= 0:
                self.hits.append(dataclasses.replace(hit, start=start, end=end))
                parts += [text[last:start], self.placeholder(hit)]
                last = end
        return "".join([*parts, text[last:]])

    def field(self, text: str, key: str = "") -> str:
        return (self.json_text if text.lstrip()[:1] in ("{", "[") else self.text)(text, key)

    def value(self, value: dict[str, Any]) -> Any:
        """A value of JSON; whatever text in it is JSON again is kept as such."""
        written = json.dumps(value, ensure_ascii=False)
        new = self.json_text(written)
        return value if new == written else json.loads(new)

    def json_text(self, text: str, key: str = "") -> str:
        """JSON in a string stays JSON, its spacing too; what is none is a text like any other."""
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text, key)

        def scalar(match: re.Match[str]) -> str:
            nonlocal key
            value = json.loads(match.group().removesuffix(match["key"] or ""))
            if match["key"]:
                new = self.text(value)
                key = value
            else:
                new = self.field(str(value), key)
            if new == str(value):
                return match.group()
            return json.dumps(new, ensure_ascii=match.group().isascii()) + (match["key"] or "")

        return _SCALAR.sub(scalar, text)
