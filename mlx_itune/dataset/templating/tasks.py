"""A task, a table of a TOML file: fields, an answer, options, and templates that lay them out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mlx_itune.dataset.templating.options import OPTIONS, Pattern, PatternError, parse
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import data_file, read_toml, wrong_type
from mlx_itune.kit.wording import did_you_mean

ANSWER = "answer"
SIDES = ("input", "target", "input_no_options")
Kind = Literal["normal", "inverse"]
# A problem, and which template has it (None: the task itself).
Problem = tuple[int | None, str]

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*task[ \t]*(\.[ \t]*template[ \t]*)?\]\]", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """One way to ask: `input` becomes the prompt, `target` the reply; see docs/templates.md. The
    prefixes stand before each side in few-shot prompts; None: the task's."""

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


@dataclass(frozen=True)
class Task:
    """Fields of a row (names, or name -> column), which is the answer, and how to ask for it.
    `options` is the field that holds a row's list of options, or the options themselves."""

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

    @cached_property
    def columns(self) -> dict[str, str]:
        """Each field's column."""
        fields = self.fields
        return dict(fields) if isinstance(fields, dict) else {name: name for name in fields}

    def place(self, template: int | None = None) -> str:
        """How faults name a template of this task."""
        return f"task {self.name!r}" + ("" if template is None else f", template {template}")

    def prefixes(self, template: Template) -> tuple[str, str]:
        """What stands before the two sides of a template in few-shot prompts."""
        asked, told = template.input_prefix, template.target_prefix
        return (
            self.input_prefix if asked is None else asked,
            self.target_prefix if told is None else told,
        )

    def first_use(self, field: str) -> int | None:
        """The first template that shows a field, by name or through a special one."""
        names = {field} | ({ANSWER} if field == self.answer else set())
        listed = self.options if isinstance(self.options, tuple) else ()
        if field == self.options or any(field in parse(text).fields for text in listed):
            names.add(OPTIONS)
        for index, template in enumerate(self.template):
            if any(names & {*pattern.fields} for pattern in template.patterns.values()):
                return index
        return None


def load_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks of a TOML file. Raises DataError with all that is wrong in it and its lines."""
    document, text = read_toml(path, error=DataError)
    lines = _lines_of(text)
    tables = document.pop("task", None)
    problems = [(1, f"unknown key {key!r}{_meant(key, ['task'])}") for key in document]
    if not isinstance(tables, list):
        problems.append((1, "has no [[task]]"))
        tables = []
    tasks: list[Task] = []
    for number, table in enumerate(tables):
        task, found = _task(table, number)
        if any(task.name == other.name for other in tasks):
            found.append((None, "is defined twice"))
        problems += [(lines.get((number, at), 1), f"{task.place(at)}: {it}") for at, it in found]
        tasks.append(task)
    if problems:
        (line, first), *rest = problems
        told = "; ".join([first, *(f"line {line}: {text}" for line, text in rest)])
        raise DataError(told, where=f"{path}:{line}")
    return tuple(tasks)


def _task(value: Any, number: int) -> tuple[Task, list[Problem]]:
    table = dict(value) if isinstance(value, dict) else {}
    templates = table.pop("template", [])
    problems: list[Problem] = []
    made: list[Template] = []
    for index, each in enumerate(templates if isinstance(templates, list) else [templates]):
        template, wrong = wrong_type(each, Template)
        made.append(template)
        problems += [(index, wrong)] if wrong else []
    task, wrong = wrong_type({**table, "template": []}, Task)
    problems += [(None, wrong)] if wrong else []
    if problems:
        return Task(str(table.get("name", number)), (), ()), problems
    task = replace(task, template=tuple(made))
    problems = [(None, text) for text in _task_problems(task)]
    for index, template in enumerate(made):
        problems += [(index, text) for text in _template_problems(task, template)]
    if not problems:
        what = f"is declared and no template (0-{len(made) - 1}) uses it"
        unused = [name for name in task.fields if task.first_use(name) is None]
        problems = [(None, f"field {name!r} {what}") for name in unused]
    return task, problems


def _lines_of(text: str) -> dict[tuple[int, int | None], int]:
    lines: dict[tuple[int, int | None], int] = {}
    task = template = -1
    for found in _HEADER.finditer(text):
        is_template = found.group(1) is not None
        task, template = (task, template + 1) if is_template else (task + 1, -1)
        lines[task, template if is_template else None] = text.count("\n", 0, found.start()) + 1
    return lines


def _task_problems(task: Task) -> Iterator[str]:
    names, options = list(task.fields), task.options
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
        for text in dict.fromkeys(options):
            if options.count(text) > 1:
                yield f"options lists {text!r} twice"
            pattern, wrong = _parsed(text)
            if wrong:
                yield f"an option has {wrong}"
            elif unknown := sorted({*pattern.fields} - {*names}):
                yield f"an option uses {{{unknown[0]}}}, which is not a field"
    if options is None and (task.answer_is != "text" or task.options_separator is not None):
        yield "answer_is and options_separator need options"
    if options is not None and task.answer is None:
        yield "options without an answer"
    if options is not None and options == task.answer:
        yield f"field {task.answer!r} cannot be both the answer and the options"
    if task.options_separator == "" or (isinstance(options, tuple) and task.options_separator):
        yield "options_separator splits the text of a field, at one character or more"


def _template_problems(task: Task, template: Template) -> Iterator[str]:
    special = {ANSWER: task.answer, OPTIONS: task.options}
    known = {*task.fields, *(name for name, is_there in special.items() if is_there)}
    fields: dict[str, tuple[str, ...]] = {}
    for side in SIDES:
        text = getattr(template, side)
        pattern, wrong = _parsed(text or "")
        fields[side] = pattern.fields
        if text is not None and not text.strip():
            yield f"the {side} is empty"
        if wrong:
            yield f"the {side} has {wrong}"
        for name in pattern.fields:
            here = f"the {side} uses {{{name}}}"
            if name == task.options:
                yield f"{here}, which is a list; write {{{OPTIONS}}} for the options as text"
            elif name in special and name not in known:
                yield f"{here} and the task has no {name.rstrip('_')}"
            elif name not in known:
                what = "an unknown special field" if name.endswith("_") else "which is not a field"
                yield f"{here}, {what}{_meant(name, [*known, OPTIONS, ANSWER])}"
    if template.input_no_options is not None and OPTIONS not in fields["input"]:
        yield f"has input_no_options, and its input no {{{OPTIONS}}}"
    if OPTIONS in fields["input_no_options"]:
        yield f"input_no_options uses {{{OPTIONS}}}"
    if template.kind == "inverse":
        # The answer goes by two names.
        asked, told = (
            {str(task.answer) if name == ANSWER else name for name in names}
            for names in (fields["input"] + fields["input_no_options"], fields["target"])
        )
        for name in sorted(asked & told):
            yield (
                f"is inverse and has {{{name}}} in its input and in its target, "
                "so the answer is given away"
            )


def _parsed(text: str) -> tuple[Pattern, str]:
    """The pattern, and "" or what is wrong with it."""
    try:
        return parse(text), ""
    except PatternError as error:
        return Pattern(("",)), str(error)


def _meant(name: str, options: Iterable[str]) -> str:
    near = did_you_mean(name.strip(), sorted(options))
    return f" ({near})" if near else ""


# Code, what to look for in a side as it is written, and what is wrong with it.
_LOOKS = [
    (code, re.compile(pattern, re.IGNORECASE), message)
    for code, (pattern, message) in data_file(__file__, "wordings")["looks"].items()
]


@dataclass(frozen=True)
class TemplateWarning:
    """One suspicious place: a stable code, where, and what."""

    task: str
    template: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"task {self.task!r}, template {self.template}: {self.code}: {self.message}"


def lint(tasks: Sequence[Task]) -> list[TemplateWarning]:
    """Every warning about the templates of `tasks`, in order."""
    return [
        TemplateWarning(task.name, index, code, message)
        for task in tasks
        for index, template in enumerate(task.template)
        for code, message in (*_written(template), *_compared(task, template))
    ]


def _written(template: Template) -> Iterator[tuple[str, str]]:
    for side in template.patterns:
        text = getattr(template, side)
        for code, pattern, message in _LOOKS:
            if found := pattern.search(text):
                near = found.group(1) if pattern.groups else found.group()
                if code == "stray-n":
                    near = text[max(0, found.start() - 12) : found.end() + 2]
                yield code, f"the {side} " + message.format(repr(near))


def _compared(task: Task, template: Template) -> Iterator[tuple[str, str]]:
    sides = template.patterns
    before, after = (prefix.strip().lower() for prefix in task.prefixes(template))
    asked, told = (getattr(template, side).lstrip().lower() for side in ("input", "target"))
    ending = asked.rsplit("\n", 1)[-1].strip()
    for side, prefix, text in (("input", before, asked), ("target", after, told)):
        if prefix and text.startswith(prefix):
            yield "doubled-prefix", f"{side}_prefix {prefix!r} also starts the {side}"
    if ending and ending == after:
        yield "doubled-prefix", f"target_prefix {ending!r} also ends the input"
    if len(ending) > 1 and ending.endswith(":") and told.startswith(ending):
        yield "doubled-prefix", f"the input ends with {ending!r} and the target starts with it"
    if not any(re.search(r"\w", str(sides[side])) for side in ("input", "target")):
        yield "empty", "neither the input nor the target holds a word or a field"
    elif not sides["target"].fields:
        yield "constant-target", "the target holds no field: every row gets the same answer"
    if task.answer is None:
        return
    names = {ANSWER, task.answer}
    shows, tells = (names & {*sides[side].fields} for side in ("input", "target"))
    if template.kind == "normal" and shows and tells:
        yield "answer-in-input", "the input shows the answer that the target asks for"
    elif template.kind == "normal" and shows:
        yield "looks-inverse", 'the input shows the answer; is it kind = "inverse"?'
    if template.kind == "inverse" and tells and OPTIONS not in sides["target"].fields:
        yield "looks-normal", 'the target is the answer; is it kind = "normal"?'
