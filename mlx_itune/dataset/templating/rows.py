"""A raw row -> the values its task's templates show; a prompt with its reply."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.templating.options import OPTIONS, Style, parse
from mlx_itune.dataset.templating.tasks import ANSWER, Task


class Values(NamedTuple):
    """A row's fields as text, in the task's order, its options, and which of them is right.

    `right` is -1 for a task without options.
    """

    texts: tuple[str, ...]
    options: tuple[str, ...]
    right: int

    def content(self) -> bytes:
        """Bytes that are equal exactly for equal rows."""
        return json.dumps(self).encode()

    def likeness(self) -> bytes:
        """Bytes that are equal for rows that differ in case and spacing only."""
        texts = [" ".join(text.casefold().split()) for text in (*self.texts, *self.options)]
        return json.dumps(texts).encode()

    def size(self) -> int:
        """Characters in all."""
        return sum(map(len, self.texts)) + sum(map(len, self.options))

    def shown(self, task: Task, style: Style) -> dict[str, str]:
        """What each field reads in a prompt of this style; the answer as the options call it."""
        texts = dict(zip(task.columns, self.texts, strict=True))
        if task.answer is not None:
            if self.right >= 0:
                texts[task.answer] = style.answer(self.options, self.right)
                texts[OPTIONS] = style.block(self.options)
            texts[ANSWER] = texts[task.answer]
        return texts


@dataclass
class Example:
    """One prompt and its reply. `exemplars` stand before the `query` of the `asked` that were
    wanted; one that was to have some and could keep none is dropped."""

    task: Task
    template: int
    prompt: str
    completion: str
    query: str = ""
    asked: int = 0
    exemplars: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The prompt with the exemplars it has now."""
        separator = self.task.example_separator
        return separator.join([*self.exemplars, self.query]) if self.exemplars else self.prompt

    @property
    def is_dropped(self) -> bool:
        """Whether it has lost all of its exemplars."""
        return self.asked > 0 and not self.exemplars

    def conversation(self, origin: str, tags: Mapping[str, str]) -> Conversation:
        """As a row. Exemplars are part of the prompt: never learned."""
        all_tags = {
            "task": self.task.name,
            "template": str(self.template),
            "template_kind": self.task.template[self.template].kind,
            "shots": str(len(self.exemplars)),
            **tags,
        }
        turns = (Turn("user", self.text), Turn("assistant", self.completion))
        return Conversation(turns, origin, tags=all_tags)


def values_of(task: Task, row: Mapping[str, Any]) -> Values:
    """The values of a row. Raises RowFault naming the task and a template that needs them."""
    texts = {
        name: "" if name == task.options else _text(task, name, _cell(task, row, name))
        for name in task.columns
    }
    if task.options is None:
        return Values(tuple(texts.values()), (), -1)
    if isinstance(task.options, tuple):
        options = [parse(text).render(texts) for text in task.options]
    else:
        options = _listed(task, task.options, _cell(task, row, task.options))
    if not options or not all(option.strip() for option in options):
        what = "an option is empty" if options else "the row has no options"
        raise _fault(task, OPTIONS, "options", what)
    right = _right(task, texts[str(task.answer)], options)
    texts[str(task.answer)] = options[right]
    return Values(tuple(texts.values()), tuple(options), right)


def cell(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column, or behind a dotted path; None for nothing."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for part in column.split("."):
        if isinstance(value, list):
            value = value[int(part)] if part.isdigit() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _cell(task: Task, row: Mapping[str, Any], name: str) -> Any:
    column = task.columns[name]
    value = cell(row, column)
    if value is not None:
        return value
    which = f"field {name!r}" + ("" if name == column else f" (column {column!r})")
    found = ", ".join(map(repr, list(row)[:6])) or "none"
    lacks = f"{which} is null in this row" if column in row else ""
    message = lacks or f"the row has no {which}; it has {found}"
    hint = "check the task's fields, or choose tasks with --task"
    raise _fault(task, name, "missing-field", message, hint)


def _text(task: Task, name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    kind = value if isinstance(value, float) else f"a {type(value).__name__}"
    raise _fault(task, name, "type", f"field {name!r} is {kind}, not text or a number")


def _listed(task: Task, name: str, value: Any) -> list[str]:
    if isinstance(value, str) and task.options_separator is not None:
        return [part.strip() for part in value.split(task.options_separator)]
    if isinstance(value, list):
        return [_text(task, name, item) for item in value]
    hint = " (options_separator splits a text)" if isinstance(value, str) else ""
    what = f"field {name!r} is a {type(value).__name__}, not a list{hint}"
    raise _fault(task, name, "type", what)


def _right(task: Task, answer: str, options: list[str]) -> int:
    """Which option is the answer."""
    right = len(options)
    if task.answer_is == "text":
        what = "is none of"
        right = next((n for n, o in enumerate(options) if o.strip() == answer.strip()), right)
    elif task.answer_is == "index":
        what = "is not the index, from 0, of one of"
        index = {"false": "0", "true": "1"}.get(answer, answer).strip()
        right = int(index) if re.fullmatch("[0-9]{1,9}", index) else right
    else:
        what = "is not the letter of one of"
        letter = answer.strip(" ().[]:").upper()
        right = ord(letter) - ord("A") if re.fullmatch("[A-Z]", letter) else right
    if right >= len(options):
        listed = ", ".join(map(repr, options[:6]))
        raise _fault(task, OPTIONS, "options", f"the answer {answer[:60]!r} {what}: {listed}")
    chosen = options[right].strip()
    if sum(option.strip() == chosen for option in options) > 1:
        raise _fault(task, OPTIONS, "options", f"the answer {chosen[:60]!r} equals two options")
    return right


def _fault(task: Task, name: str, code: str, message: str, hint: str = "") -> RowFault:
    template = task.first_use(name)
    if template is None and task.answer:
        template = task.first_use(task.answer)
    return RowFault(code, f"{task.place(template)}: {message}", hint)
