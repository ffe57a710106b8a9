"""TOML task files -> tasks: strict keys, strict types, every error at once, at its line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from mlx_itune.dataset.templating.pattern import Pattern, PatternError
from mlx_itune.dataset.templating.tasks import (
    AnswerIs,
    Kind,
    Task,
    TaskError,
    Template,
    place,
)
from mlx_itune.kit.errors import DataError, closest
from mlx_itune.kit.files import storage_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_TEMPLATE_KEYS = (
    "input", "target", "kind", "weight", "input_no_options", "input_prefix", "target_prefix",
)  # fmt: skip
_TASK_KEYS = (
    "name", "fields", "answer", "answer_is", "options", "options_separator", "template",
    "input_prefix", "target_prefix", "xy_delimiter", "example_separator",
)  # fmt: skip
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*task[ \t]*(\.[ \t]*template[ \t]*)?\]\]", re.MULTILINE)


def load_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks of a TOML file, in order.

    Raises DataError with everything that is wrong in it, each with its task, template and line;
    StorageError when it cannot be read.
    """
    path = Path(path)
    with storage_errors(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a TOML file: {error}", where=str(path)) from error
    reader = _Reader(_lines_of(text))
    tasks = reader.tasks(document)
    if reader.problems:
        first = reader.problems[0]
        rest = [f"line {line}: {said}" for line, said in reader.problems[1:]]
        raise DataError("; ".join([first[1], *rest]), where=f"{path}:{first[0]}")
    return tasks


class _Reader:
    """Collects problems as (line, text) while it reads."""

    def __init__(self, line_of: Callable[[int | None, int | None], int]) -> None:
        self.problems: list[tuple[int, str]] = []
        self._line_of = line_of
        self._line = 1

    def tasks(self, document: Mapping[str, Any]) -> tuple[Task, ...]:
        self._unknown(document, ("task",), "the file")
        tables = document.get("task")
        if not isinstance(tables, list) or not tables or not all(map(_is_table, tables)):
            self._say("has no [[task]]")
            return ()
        tasks: list[Task] = []
        for number, table in enumerate(tables):
            made = self._task(table, number)
            if made and any(made.name == other.name for other in tasks):
                self._say(f"task {made.name!r} is defined twice")
            tasks += [made] if made else []
        return tuple(tasks)

    def _task(self, table: Mapping[str, Any], number: int) -> Task | None:
        self._line = self._line_of(number, None)
        before = len(self.problems)
        name = table.get("name")
        here = place(name, None) if isinstance(name, str) else f"task {number + 1}"
        if not isinstance(name, str) or not name.strip():
            self._say(f"{here}: has no name")
            name = ""
        self._unknown(table, _TASK_KEYS, here)
        values: dict[str, Any] = {
            "fields": self._fields(table.get("fields"), here),
            "options": self._options(table.get("options"), here),
        }
        for key in ("answer", "options_separator", "xy_delimiter", "example_separator"):
            if self._is_text(table, key, here):
                values[key] = table[key]
        if self._is_one_of(table, "answer_is", get_args(AnswerIs), here):
            values["answer_is"] = table["answer_is"]
        if "answer" not in values and "answer" in values["fields"]:
            values["answer"] = "answer"
        prefixes = {
            key: table[key]
            for key in ("input_prefix", "target_prefix")
            if self._is_text(table, key, here)
        }
        values["templates"] = self._templates(table.get("template"), name, number, prefixes)
        if len(self.problems) > before:
            return None
        try:
            return Task(name=name, **values)
        except TaskError as error:
            for index, text in error.problems:
                self._line = self._line_of(number, index)
                self._say(text)
            return None

    def _fields(self, value: Any, here: str) -> dict[str, str]:
        if isinstance(value, list) and value and all(isinstance(f, str) for f in value):
            for name in dict.fromkeys(f for f in value if value.count(f) > 1):
                self._say(f"{here}: fields lists {name!r} twice")
            return {name: name for name in value}
        if _is_table(value) and value and all(isinstance(c, str) for c in value.values()):
            return dict(value)
        self._say(f'{here}: fields must be a list of names, or a table of name = "column"')
        return {}

    def _options(self, value: Any, here: str) -> str | tuple[Pattern, ...] | None:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._say(f"{here}: options must be a field's name or a list of strings")
            return None
        try:
            return tuple(map(Pattern, value))
        except PatternError as error:
            self._say(f"{here}: options: {error}")
            return None

    def _templates(
        self, value: Any, task: str, number: int, prefixes: Mapping[str, str]
    ) -> tuple[Template, ...]:
        if not isinstance(value, list) or not value or not all(map(_is_table, value)):
            self._say(f"{place(task, None)}: has no [[task.template]]")
            return ()
        made = []
        for index, table in enumerate(value):
            self._line = self._line_of(number, index)
            template = self._template(table, index, place(task, index), prefixes)
            made += [template] if template else []
        self._line = self._line_of(number, None)
        return tuple(made)

    def _template(
        self, table: Mapping[str, Any], index: int, here: str, prefixes: Mapping[str, str]
    ) -> Template | None:
        before = len(self.problems)
        self._unknown(table, _TEMPLATE_KEYS, here)
        values: dict[str, Any] = dict(prefixes)
        for key in ("input", "target", "input_no_options"):
            if key not in table:
                if key != "input_no_options":
                    self._say(f"{here}: has no {key}")
            elif self._is_text(table, key, here):
                try:
                    values[key] = Pattern(table[key])
                except PatternError as error:
                    self._say(f"{here}: the {key} has {error}")
        for key in ("input_prefix", "target_prefix"):
            if self._is_text(table, key, here):
                values[key] = table[key]
        if self._is_one_of(table, "kind", get_args(Kind), here):
            values["kind"] = table["kind"]
        weight = table.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            self._say(f"{here}: weight must be a number, not {weight!r}")
        values["weight"] = weight
        return None if len(self.problems) > before else Template(index, **values)

    def _unknown(self, table: Mapping[str, Any], keys: Iterable[str], here: str) -> None:
        for key in table:
            if key not in keys:
                near = closest(key, keys)
                meant = f" (did you mean {near}?)" if near else ""
                self._say(f"{here}: unknown key {key!r}{meant}")

    def _is_text(self, table: Mapping[str, Any], key: str, here: str) -> bool:
        if key in table and not isinstance(table[key], str):
            self._say(f"{here}: {key} must be a string, not {table[key]!r}")
            return False
        return key in table

    def _is_one_of(
        self, table: Mapping[str, Any], key: str, values: tuple[str, ...], here: str
    ) -> bool:
        if key in table and table[key] not in values:
            self._say(f"{here}: {key} must be one of {', '.join(values)}, not {table[key]!r}")
            return False
        return key in table

    def _say(self, text: str) -> None:
        self.problems.append((self._line, text))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _lines_of(text: str) -> Callable[[int | None, int | None], int]:
    """The line on which a task, or one of its templates, starts."""
    starts: list[tuple[int, list[int]]] = []
    for found in _HEADER.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found.group(1) is None:
            starts.append((line, []))
        elif starts:
            starts[-1][1].append(line)

    def line_of(task: int | None, template: int | None) -> int:
        if task is None or task >= len(starts):
            return 1
        line, templates = starts[task]
        if template is None or template >= len(templates):
            return line
        return templates[template]

    return line_of
