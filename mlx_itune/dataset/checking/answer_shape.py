"""Answers that break the JSON Schema of their data set: one that is given, or else the shape that
nearly all of them have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Fault, fault_at
from mlx_itune.dataset.schema import Shape, answers_of, faults_by, json_of
from mlx_itune.kit.wording import count, percent

# Of fewer answers nothing is said, nor where a smaller share of them is JSON.
_FEWEST, _JSON_SHARE = 20, 0.9
# What so few rows do is their mistake; where more of them break the shape, they have several.
_TOLERANCE, _BROKEN_SHARE = 0.02, 0.1


class AnswerShape:
    """Sees rows, and then tells which of their answers break the schema, as warnings."""

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self._schema = schema
        self._seen: list[tuple[str, Any]] = []
        self._json = 0
        self._is_over = False

    def see(self, row: Conversation) -> None:
        """One more row; without a schema, answers that are texts end it."""
        if self._is_over:
            return
        for answer in answers_of(row):
            value = json_of(answer)
            self._seen.append((row.origin, value))
            self._json += value is not None
        if self._schema is None and len(self._seen) >= _FEWEST and not self._are_json:
            self._is_over, self._seen = True, []

    @property
    def _are_json(self) -> bool:
        return self._json >= _JSON_SHARE * len(self._seen)

    def faults(self) -> Iterator[Fault]:
        """Of every answer that breaks the schema."""
        schema, of = self._schema, "the schema"
        if schema is None:
            if len(self._seen) < _FEWEST or not self._are_json:
                return
            shape, of = Shape(), f"the shape of {count(self._json, 'answer')}"
            for _, value in self._seen:
                if value is not None:
                    shape.add(value)
            schema = shape.schema(_TOLERANCE)
        fault_of = faults_by(schema)
        found = []
        for origin, value in self._seen:
            if value is None:
                told = f"the answer is no JSON, as {percent(self._json / len(self._seen))} are"
                found.append((origin, "answer-no-json", told))
            elif told_of := fault_of(value):
                found.append((origin, "answer-shape", f"the answer breaks {of}: {told_of}"))
        if self._schema is None and len(found) > _BROKEN_SHARE * len(self._seen):
            return
        hint = "mend the row; `mlx-itune data schema` shows the shape, --schema FILE gives another"
        for origin, code, message in found:
            yield fault_at(origin, code, message, hint, "warning")
