"""What a task is: named fields, an answer, options, and the templates that lay them out.

A task file (TOML) holds such tables; whoever makes a Task, every rule is checked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Interval

from mlx_itune.dataset.templating.pattern import Pattern, PatternError, parse
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import read_bytes, wrong_type
from mlx_itune.kit.wording import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

ANSWER, OPTIONS = "answer", "options_"
SIDES = ("input", "target", "input_no_options")
Kind = Literal["normal", "inverse"]

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*task[ \t]*(\.[ \t]*template[ \t]*)?\]\]", re.MULTILINE)
_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Template:
    """One way to ask: `input` becomes the prompt, `target` the reply.

    `kind` "inverse" marks a template that turns the task around; `weight` is relative within its
    kind. `input_no_options` is what the input reads when options are left out. The prefixes stand
    before each side in few-shot prompts; None: the task's.
    """

    input: str
    target: str
    kind: Kind = "normal"
    weight: Annotated[float, Interval(gt=0, le=1e9)] = 1.0
    input_no_options: str | None = None
    input_prefix: str | None = None
    target_prefix: str | None = None

    @property
    def patterns(self) -> dict[str, Pattern]:
        """Each side that is given, by its name in the task file. Raises PatternError."""
        texts = {side: getattr(self, side) for side in SIDES}
        return {side: parse(text) for side, text in texts.items() if text is not None}

    @property
    def fields(self) -> set[str]:
        """Every field that a side shows."""
        return {name for pattern in self.patterns.values() for name in pattern.fields}


@dataclass(frozen=True)
class Task:
    """Fields of a row (names, or name -> column), which is the answer, and how to ask for it.

    `options` is the field that holds a row's list of options, or the options themselves.
    `answer_is` says whether the answer is spelled out or is an option's index or letter.
    Raises TaskError with every broken rule, naming the task and the template (from 0).
    """

    name: str
    fields: tuple[str, ...] | dict[str, str]
    template: tuple[Template, ...]
    answer: str | None = None
    answer_is: Literal["text", "index", "letter"] = "text"
    options: str | tuple[str, ...] | None = None
    options_separator: str | None = None
    input_prefix: str = ""
    target_prefix: str = ""
    xy_delimiter: str = "\n\n"
    example_separator: str = "\n\n\n"

    def __post_init__(self) -> None:
        if self.answer is None and ANSWER in self.fields:
            object.__setattr__(self, "answer", ANSWER)
        if problems := list(_problems(self)):
            raise TaskError(problems)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Each field's column."""
        named = isinstance(self.fields, dict)
        return dict(self.fields) if named else {name: name for name in self.fields}  # type: ignore[arg-type]

    def place(self, template: int | None = None) -> str:
        """How faults name a template of this task."""
        return f"task {self.name!r}" + ("" if template is None else f", template {template}")

    def shows(self, fields: Iterable[str]) -> set[str]:
        """The row's own fields that a pattern with these fields shows."""
        shown = set(fields)
        if ANSWER in shown and self.answer:
            shown.add(self.answer)
        if OPTIONS in shown and isinstance(self.options, str):
            shown.add(self.options)
        if OPTIONS in shown and isinstance(self.options, tuple):
            shown |= {name for text in self.options for name in parse(text).fields}
        return shown

    def first_use(self, field: str) -> int | None:
        """The first template that shows a field: the one a fault about it names."""
        uses = (n for n, each in enumerate(self.template) if field in self.shows(each.fields))
        return next(uses, None)


class TaskError(DataError):
    """A task breaks rules: `problems` lists (template index or None, text)."""

    def __init__(self, problems: list[tuple[int | None, str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = problems


_HINTS = get_type_hints(Task)


def load_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks of a TOML file, in order.

    Raises DataError with everything that is wrong in it, each with its task, template and line.
    """
    raw = read_bytes(path, error=DataError, limit_bytes=_LIMIT_BYTES)
    try:
        text = raw.decode("utf-8")
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a TOML file: {error}", where=str(path)) from None
    lines = _lines_of(text)
    problems: list[tuple[int, str]] = []
    tasks: dict[str, Task] = {}
    for key in document.keys() - {"task"}:
        meant = did_you_mean(key, ["task"])
        problems.append((1, f"unknown key {key!r}" + (f" ({meant})" if meant else "")))
    tables = document.get("task")
    if not isinstance(tables, list):
        problems.append((1, "has no [[task]]"))
        tables = []
    for number, table in enumerate(tables):
        task, wrong = _task(table, number)
        problems += [(lines.get((number, index), 1), text) for index, text in wrong]
        if task and task.name in tasks:
            problems.append((lines[number, None], f"task {task.name!r} is defined twice"))
        if task:
            tasks[task.name] = task
    if problems:
        (line, first), *rest = problems
        told = [first, *(f"line {line}: {text}" for line, text in rest)]
        raise DataError("; ".join(told), where=f"{path}:{line}")
    return tuple(tasks.values())


def _task(value: Any, number: int) -> tuple[Task | None, list[tuple[int | None, str]]]:
    """A table of the file as a Task, or what is wrong with it."""
    table = dict(value) if isinstance(value, dict) else {}
    here = f"task {table['name']!r}" if "name" in table else f"task {number + 1}"
    wrong: list[tuple[int | None, str]] = []
    templates = []
    inner = table.pop("template", [])
    for index, each in enumerate(inner if isinstance(inner, list) else [inner]):
        template, said = wrong_type(each, Template)
        templates.append(template)
        wrong += [(index, f"{here}, template {index}: {said}")] if said else []
    values: dict[str, Any] = {}
    faults = [f"has no {key}" for key in ("name", "fields") if key not in table]
    for key, given in table.items():
        if key not in _HINTS:
            faults.append(f"unknown key {key!r}{_meant(key, _HINTS)}")
            continue
        values[key], said = wrong_type(given, _HINTS[key])
        faults += [f"{key}: {said}"] if said else []
    wrong += [(None, f"{here}: {text}") for text in faults]
    if wrong:
        return None, wrong
    try:
        return Task(**values, template=tuple(templates)), []
    except TaskError as error:
        return None, error.problems


def _lines_of(text: str) -> dict[tuple[int, int | None], int]:
    """The line on which each task, and each of its templates, starts."""
    lines: dict[tuple[int, int | None], int] = {}
    task = template = -1
    for found in _HEADER.finditer(text):
        is_template = found.group(1) is not None
        task, template = (task, template + 1) if is_template else (task + 1, -1)
        lines[task, template if is_template else None] = text.count("\n", 0, found.start()) + 1
    return lines


def _problems(task: Task) -> Iterator[tuple[int | None, str]]:
    """Every broken rule, as (template index or None, text that names the place)."""
    here = task.place()
    names = list(task.fields)
    yield from ((None, f"{here}: {text}") for text in _task_problems(task, names))
    known = {*names} | ({ANSWER} if task.answer else set()) | ({OPTIONS} if task.options else set())
    used: set[str] = set()
    for index, template in enumerate(task.template):
        try:
            used |= template.fields
            problems = list(_template_problems(task, template, known))
        except PatternError:
            problems = list(_broken(template))
            used |= known
        yield from ((index, f"{task.place(index)}: {text}") for text in problems)
    for name in names:
        if task.template and name not in task.shows(used):
            last = len(task.template) - 1
            yield None, f"{here}: field {name!r} is declared and no template (0-{last}) uses it"


def _task_problems(task: Task, names: list[str]) -> Iterator[str]:
    options = task.options
    if not task.name.strip():
        yield "has no name"
    if not task.template:
        yield "has no [[task.template]]"
    if not names:
        yield "declares no field"
    for name in names:
        if name == OPTIONS or (name == ANSWER and task.answer != ANSWER):
            yield f"no field can be called {name!r}, a special field's name"
        elif not name or set(name) & set("{}") or names.count(name) > 1:
            yield f"{name!r} cannot be a field's name, or is listed twice"
    for key, value in (("answer", task.answer), ("options", options)):
        if isinstance(value, str) and value not in names:
            yield f"{key} names {value!r}, which is not a field{_meant(value, names)}"
    if isinstance(options, tuple):
        if len(options) < 2:
            yield "options lists fewer than two"
        for text in dict.fromkeys(text for text in options if options.count(text) > 1):
            yield f"options lists {text!r} twice"
        try:
            unknown = {n for text in options for n in parse(text).fields} - {*names}
        except PatternError as error:
            unknown = set()
            yield f"an option has {error}"
        for name in sorted(unknown):
            yield f"an option uses {{{name}}}, which is not a field"
    if options is None and (task.answer_is != "text" or task.options_separator is not None):
        yield "answer_is and options_separator need options"
    if options is not None and task.answer is None:
        yield "options without an answer"
    if options is not None and options == task.answer:
        yield f"field {task.answer!r} cannot be both the answer and the options"
    if task.options_separator == "" or (isinstance(options, tuple) and task.options_separator):
        yield "options_separator splits the text of a field, at one character or more"


def _template_problems(task: Task, template: Template, known: set[str]) -> Iterator[str]:
    patterns = template.patterns
    for side, pattern in patterns.items():
        for name in pattern.fields:
            if name == task.options:
                yield (
                    f"the {side} uses {{{name}}}, which is a list; write {{{OPTIONS}}} for the "
                    "options as text"
                )
            elif name in known:
                continue
            elif name in (ANSWER, OPTIONS):
                what = "answer" if name == ANSWER else "options"
                yield f"the {side} uses {{{name}}} and the task has no {what}"
            else:
                what = "an unknown special field" if name.endswith("_") else "which is not a field"
                meant = _meant(name, [*known, OPTIONS, ANSWER])
                yield f"the {side} uses {{{name}}}, {what}{meant}"
        if not str(pattern).strip():
            yield f"the {side} is empty"
    other = patterns.get("input_no_options")
    if other and OPTIONS not in patterns["input"].fields:
        yield f"has input_no_options, and its input no {{{OPTIONS}}}"
    if other and OPTIONS in other.fields:
        yield f"input_no_options uses {{{OPTIONS}}}"
    if template.kind == "inverse":
        # The answer goes by two names.
        both = [
            {
                task.answer if name == ANSWER else name
                for pattern in sides
                for name in pattern.fields
            }
            for sides in ([patterns["input"], other or patterns["input"]], [patterns["target"]])
        ]
        for name in sorted(map(str, both[0] & both[1])):
            yield (
                f"is inverse and has {{{name}}} in its input and in its target, "
                "so the answer is given away"
            )


def _broken(template: Template) -> Iterator[str]:
    for side in SIDES:
        try:
            parse(getattr(template, side) or "")
        except PatternError as error:
            yield f"the {side} has {error}"


def _meant(name: str, options: Iterable[str]) -> str:
    near = did_you_mean(name.strip(), sorted(options))
    return f" ({near})" if near else ""
