"""A raw row -> the values its task's templates show."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.templating.optionless import OPTIONS
from mlx_itune.dataset.templating.options import Style, answer_text, block
from mlx_itune.dataset.templating.tasks import ANSWER, Task

_MISSING = "missing-field"


class Values(NamedTuple):
    """A row's fields as text, in the task's order, its options, and which of them is right.

    `right` is -1 for a task without options.
    """

    texts: tuple[str, ...]
    options: tuple[str, ...]
    right: int

    def content(self) -> bytes:
        """Bytes that are equal exactly for equal rows."""
        return _canonical([self.texts, self.options, self.right])

    def likeness(self) -> bytes:
        """Bytes that are equal for rows that differ in case and spacing only."""
        texts = [" ".join(text.casefold().split()) for text in (*self.texts, *self.options)]
        return _canonical(texts)

    def size(self) -> int:
        """Characters in all."""
        return sum(map(len, self.texts)) + sum(map(len, self.options))


def _canonical(value: list[Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # half of a surrogate pair, which readers refuse
        return json.dumps(value).encode()


def values_of(task: Task, row: Mapping[str, Any]) -> Values:
    """The values of a row. Raises RowFault naming the task and a template that needs them."""
    texts: dict[str, str] = {}
    for name, column in task.fields.items():
        if name == task.options:
            texts[name] = ""
            continue
        texts[name] = _text(task, name, _cell(task, row, name, column))
    if task.options is None:
        return Values(tuple(texts.values()), (), -1)
    options = _options(task, row, texts)
    right = _right(task, texts, options)
    if task.answer is not None:
        texts[task.answer] = options[right]
    return Values(tuple(texts.values()), options, right)


def shown(task: Task, values: Values, style: Style) -> dict[str, str]:
    """What each field reads in a prompt of this style; the answer as the options call it."""
    texts = dict(zip(task.fields, values.texts, strict=True))
    if task.answer is not None:
        answer = texts[task.answer]
        if values.right >= 0:
            answer = answer_text(values.options, values.right, style)
        texts[ANSWER] = texts[task.answer] = answer
    if values.right >= 0:
        texts[OPTIONS] = block(values.options, style)
    return texts


def _cell(task: Task, row: Mapping[str, Any], name: str, column: str) -> Any:
    value = row.get(column)
    if value is None and column not in row and "." in column:
        value = _nested(row, column)
    if value is None:
        which = "" if name == column else f" (column {column!r})"
        if column in row:
            raise _fault(task, name, _MISSING, f"field {name!r}{which} is null in this row")
        found = ", ".join(map(repr, list(row)[:6])) or "none"
        raise _fault(task, name, _MISSING, f"the row has no field {name!r}{which}; it has {found}")
    return value


def _nested(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(task: Task, name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    kind = value if isinstance(value, float) else f"a {type(value).__name__}"
    raise _fault(task, name, "type", f"field {name!r} is {kind}, not text or a number")


def _options(task: Task, row: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[str, ...]:
    if isinstance(task.options, tuple):
        options = [pattern.render(texts) for pattern in task.options]
    else:
        name = str(task.options)
        value = _cell(task, row, name, task.fields[name])
        if isinstance(value, str) and task.options_separator is not None:
            value = [part.strip() for part in value.split(task.options_separator)]
        if not isinstance(value, list):
            hint = " (options_separator splits a text)" if isinstance(value, str) else ""
            raise _fault(
                task, name, "type", f"field {name!r} is a {type(value).__name__}, not a list{hint}"
            )
        options = [_text(task, name, item) for item in value]
    if not options:
        raise _fault(task, OPTIONS, "options", "the row has no options")
    if not all(option.strip() for option in options):
        raise _fault(task, OPTIONS, "options", "an option is empty")
    return tuple(options)


def _right(task: Task, texts: Mapping[str, str], options: tuple[str, ...]) -> int:
    answer = texts[task.answer or ANSWER]
    if task.answer_is == "text":
        right = [n for n, option in enumerate(options) if option.strip() == answer.strip()]
        what = "is none of"
    elif task.answer_is == "index":
        index = {"false": "0", "true": "1"}.get(answer, answer).strip()
        right = [int(index)] if index.isascii() and index.isdigit() and len(index) < 10 else []
        what = "is not the index, from 0, of one of"
    else:
        letter = answer.strip(" ().[]:").upper()
        right = [ord(letter) - ord("A")] if len(letter) == 1 and "A" <= letter <= "Z" else []
        what = "is not the letter of one of"
    if not right or right[0] >= len(options):
        listed = ", ".join(map(repr, options[:6]))
        raise _fault(task, OPTIONS, "options", f"the answer {answer[:60]!r} {what}: {listed}")
    chosen = options[right[0]].strip()
    if sum(option.strip() == chosen for option in options) > 1:
        raise _fault(task, OPTIONS, "options", f"the answer {chosen[:60]!r} equals two options")
    return right[0]


def _fault(task: Task, name: str, code: str, message: str) -> RowFault:
    template = task.first_use.get(name)
    if template is None and name == OPTIONS:
        template = task.first_use.get(task.answer or ANSWER)
    hint = "check the task's fields, or choose tasks with --task" if code == _MISSING else ""
    return RowFault(code, f"{task.place(template)}: {message}", hint)
