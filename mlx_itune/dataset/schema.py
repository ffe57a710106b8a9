"""A JSON Schema (2020-12) of the answers of a data set: inferred from them, and what breaks one.

What an answer may be is judged by what was seen more than once: a value that stands alone says that
there are others, and then no list of values or keys is closed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import ANY_ORDER, depth_of, read_object
from mlx_itune.kit.wording import brief

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_MAX_DEPTH = 50
# A list of values: at most so many, of at most so many characters, each seen so often on average.
_VALUES, _VALUE_CHARACTERS, _VALUE_SEEN = 100, 60, 5
_FEWEST_TEXTS = 20
# Where some may be mistakes, a longer list has values that are right and rare.
_VALUES_AMONG_MISTAKES = 12
# Of more keys than these, if any was seen once only, the object is a map.
_MAP_KEYS = 50
_SHOWN_CHARACTERS = 160


def json_of(answer: str) -> Any:
    """The JSON object or list that an answer is, else None; a text or a number alone is none."""
    if answer.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return value if depth_of(value) <= _MAX_DEPTH else None


def answers_of(row: Conversation) -> Iterator[str]:
    """What the assistant says in a row, calls of tools aside."""
    for turn in row.turns:
        if turn.role == "assistant" and turn.content.strip() and not turn.tool_calls:
            yield turn.content


@dataclass
class Shape:
    """What was seen of the values at one place."""

    types: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Shape] = field(default_factory=dict)
    # Pairs of neighbouring keys, in their order.
    neighbours: dict[tuple[str, str], None] = field(default_factory=dict)
    items: Shape | None = None

    def add(self, value: Any) -> None:
        """One more value."""
        kind = _kind(value)
        self.types[kind] += 1
        if isinstance(value, str):
            if len(self.texts) <= _VALUES:
                self.texts[value] += 1
        elif isinstance(value, dict):
            for key, each in value.items():
                self.keys.setdefault(key, Shape()).add(each)
            self.neighbours.update(dict.fromkeys(pairwise(value)))
        elif isinstance(value, list):
            self.items = self.items or Shape()
            for each in value:
                self.items.add(each)

    @property
    def seen(self) -> int:
        """How many values."""
        return self.types.total()

    def schema(self, tolerance: float = 0.0) -> dict[str, Any]:
        """The schema that they have; tolerance: the share of them that may be mistakes, and is
        left out of account."""
        rare = tolerance * self.seen
        types = {kind: n for kind, n in self.types.items() if n > rare}
        if "number" in types:
            types.pop("integer", None)
        # null last, as it is read.
        names = sorted(types, key=lambda kind: (kind == "null", kind))
        found: dict[str, Any] = {"type": names[0] if len(names) == 1 else names} if names else {}
        if values := self._values(rare) if "string" in types and types.keys() <= _TEXT else []:
            found["enum"] = [*values, *([None] if "null" in types else [])]
        if "object" in types:
            found |= self._object(tolerance)
        if "array" in types and self.items and self.items.seen:
            found["items"] = self.items.schema(tolerance)
        return found

    def _values(self, rare: float) -> list[str]:
        """The values of a text, where they are a closed list."""
        alone = sum(n == 1 for n in self.texts.values())
        values = [text for text, n in self.texts.items() if n > 1]
        most = _VALUES_AMONG_MISTAKES if rare else _VALUES
        if len(self.texts) > _VALUES or alone > rare or not 0 < len(values) <= most:
            return []
        often = self.types["string"] >= max(_FEWEST_TEXTS, _VALUE_SEEN * len(values))
        return sorted(values) if often and max(map(len, values)) <= _VALUE_CHARACTERS else []

    def _object(self, tolerance: float) -> dict[str, Any]:
        objects = self.types["object"]
        alone = [key for key, shape in self.keys.items() if shape.seen == 1]
        is_open = objects > 1 and len(alone) > tolerance * objects
        if is_open and len(self.keys) > _MAP_KEYS:
            return {"additionalProperties": _merged(self.keys.values()).schema(tolerance)}
        order = self._order()
        kept = {
            key: self.keys[key]
            for key in order or self.keys
            if self.keys[key].seen > min(tolerance * objects, 1)
        }
        required = [k for k, shape in kept.items() if shape.seen >= objects * (1 - tolerance)]
        found: dict[str, Any] = {
            "properties": {key: shape.schema(tolerance) for key, shape in kept.items()},
            **({} if order or len(kept) < 2 else ANY_ORDER),
        }
        if required:
            found["required"] = required
        return found if is_open else {**found, "additionalProperties": False}

    def _order(self) -> list[str] | None:
        """The order that all keys come in, None where they come in several."""
        sorter = TopologicalSorter[str](dict.fromkeys(self.keys, ()))
        for before, after in self.neighbours:
            sorter.add(after, before)
        try:
            return list(sorter.static_order())
        except CycleError:
            return None


_TEXT = {"string", "null"}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"))
    return next((name for kind, name in kinds if isinstance(value, kind)), None) or (
        "object" if isinstance(value, dict) else "array"
    )


def _merged(shapes: Iterable[Shape]) -> Shape:
    whole = Shape()
    for shape in shapes:
        whole.types += shape.types
        whole.texts += shape.texts
        for key, each in shape.keys.items():
            whole.keys[key] = _merged([whole.keys.get(key, Shape()), each])
        whole.neighbours |= shape.neighbours
        if shape.items:
            whole.items = _merged([whole.items or Shape(), shape.items])
    return whole


@dataclass(frozen=True)
class Inferred:
    """A schema and what it rests on: `answers`, of which `json` are an object or a list; the first
    that is none; the share of the second half of them that the schema of the first half allows."""

    schema: Mapping[str, Any]
    answers: int
    json: int
    first_other: str | None
    held_out: float | None


def infer(rows: Iterable[Conversation]) -> Inferred:
    """The schema of the answers of `rows`. Raises DataError where none is JSON."""
    found, other, answers = list[Any](), None, 0
    for row in rows:
        for answer in answers_of(row):
            answers += 1
            if (value := json_of(answer)) is not None:
                found.append(value)
            else:
                other = other or row.origin
    if not found:
        hint = "its answers are texts" if answers else "it has no answers"
        raise DataError("no answer is a JSON object or list", where=other, hint=hint)
    whole, half = Shape(), Shape()
    for n, value in enumerate(found):
        whole.add(value)
        if n % 2 == 0:
            half.add(value)
    held = found[1::2]
    fault = faults_by(half.schema())
    share = sum(fault(value) is None for value in held) / len(held) if held else None
    schema = {"$schema": DRAFT, **whole.schema()}
    return Inferred(schema, answers, len(found), other, share)


def read_schema(path: Path) -> dict[str, Any]:
    """A schema from a file. Raises DataError for what is none, and for what reaches elsewhere."""
    schema = read_object(path, error=DataError)
    faults_by(schema, where=str(path))
    return schema


def faults_by(
    schema: Mapping[str, Any], *, where: str | None = None
) -> Callable[[Any], str | None]:
    """What tells of a JSON value how it breaks the schema, None where it does not. Raises DataError
    for what is no schema."""
    from jsonschema_rs import ValidationError, validator_for

    def nowhere(uri: str) -> Any:
        raise ValueError("it is not in the schema")

    try:
        validator = validator_for(dict(schema), validate_formats=True, retriever=nowhere)
    except ValidationError as error:
        at = "/".join(map(str, ["#", *error.instance_path]))
        raise DataError(f"no JSON Schema: {at}: {brief(error.message)}", where=where) from error

    def fault(value: Any) -> str | None:
        error = next(iter(validator.iter_errors(value)), None)
        if error is None:
            return None
        place, told = (
            ".".join(map(str, error.instance_path)),
            brief(error.message, _SHOWN_CHARACTERS),
        )
        return f"{place}: {told}" if place else told

    return fault


def valid(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether an answer is JSON of a schema."""
    try:
        return faults_by(schema)(json.loads(text)) is None
    except (ValueError, RecursionError):
        return False
