"""What a task is: named fields, an answer, options, and the templates that lay them out.

Every rule that a task file can break is checked when a Task is made, whoever makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_itune.dataset.templating.optionless import OPTIONS, without_options
from mlx_itune.dataset.templating.pattern import Pattern
from mlx_itune.kit.errors import DataError, closest

Kind = Literal["normal", "inverse"]
AnswerIs = Literal["text", "index", "letter"]
ANSWER = "answer"
SPECIAL = (OPTIONS, ANSWER)


class TaskError(DataError):
    """A task breaks rules: `problems` lists (template index or None, text)."""

    def __init__(self, problems: Sequence[tuple[int | None, str]]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Template:
    """One way to ask: `input` becomes the prompt, `target` the reply. `index` counts from 0.

    `kind` "inverse" marks a template that turns the task around; `weight` is relative within its
    kind. `input_no_options` is what the input reads when options are left out (None: the input
    without what speaks of them). The prefixes stand before each side in few-shot prompts.
    """

    index: int
    input: Pattern
    target: Pattern
    kind: Kind = "normal"
    weight: float = 1.0
    input_no_options: Pattern | None = None
    input_prefix: str = ""
    target_prefix: str = ""

    @property
    def patterns(self) -> tuple[tuple[str, Pattern], ...]:
        """Each side with its name in the task file."""
        other = self.input_no_options
        extra = (("input_no_options", other),) if other is not None else ()
        return (("input", self.input), ("target", self.target), *extra)


@dataclass(frozen=True)
class Task:
    """Fields of a row (name -> column), which of them is the answer, and how to ask for it.

    `options` is the field that holds a row's list of options, or the options themselves.
    `answer_is` says whether the answer is spelled out or is an option's index or letter.
    Raises TaskError with every broken rule, naming the task and the template.
    """

    name: str
    fields: Mapping[str, str]
    templates: tuple[Template, ...]
    answer: str | None = None
    options: str | tuple[Pattern, ...] | None = None
    answer_is: AnswerIs = "text"
    options_separator: str | None = None
    xy_delimiter: str = "\n\n"
    example_separator: str = "\n\n\n"
    first_use: Mapping[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise TaskError(problems)
        object.__setattr__(self, "first_use", _first_use(self))

    def place(self, template: int | None) -> str:
        """How faults name a template of this task."""
        return place(self.name, template)

    def without_options(self, template: Template) -> tuple[Pattern, Pattern]:
        """The template's input and target with no trace of the options.

        Raises DataError where they are woven into the wording.
        """
        sides = []
        for side, pattern in (("input", template.input), ("target", template.target)):
            if side == "input" and template.input_no_options is not None:
                sides.append(template.input_no_options)
                continue
            plain, left = without_options(pattern)
            if left:
                raise DataError(
                    f"{self.place(template.index)}: the {side} speaks of its options in {left}",
                    hint="write input_no_options for it"
                    if side == "input"
                    else "render with options",
                )
            sides.append(plain)
        return sides[0], sides[1]


def place(task: str, template: int | None) -> str:
    """How faults name a template."""
    return f"task {task!r}" + ("" if template is None else f", template {template}")


def _problems(task: Task) -> Iterator[tuple[int | None, str]]:
    """Every broken rule, as (template index or None, text that names the place)."""
    here = place(task.name, None)
    if not task.name.strip():
        yield None, "a task has no name"
    if not task.templates:
        yield None, f"{here}: has no template"
    if not task.fields:
        yield None, f"{here}: declares no field"
    for name in task.fields:
        if name == OPTIONS or (name == ANSWER and task.answer not in (None, ANSWER)):
            yield None, f"{here}: no field can be called {name!r}, a special field's name"
        elif not name or set(name) & set("{}"):
            yield None, f"{here}: {name!r} cannot be a field's name"
    yield from ((None, f"{here}: {text}") for text in _answer_problems(task))
    known = _known(task)
    for template in task.templates:
        at = place(task.name, template.index)
        for text in _template_problems(template, task, known):
            yield template.index, f"{at}: {text}"
    used = _used(task)
    if task.templates:
        for name in task.fields:
            if name not in used:
                last = len(task.templates) - 1
                yield (
                    None,
                    f"{here}: field {name!r} is declared and no template (0-{last}) uses it",
                )


def _answer_problems(task: Task) -> Iterator[str]:
    for key, name in (("answer", task.answer), ("options", task.options)):
        if isinstance(name, str) and name not in task.fields:
            yield f"{key} names {name!r}, which is not a field{_meant(name, task.fields)}"
    if isinstance(task.options, tuple):
        if len(task.options) < 2:
            yield "options lists fewer than two"
        for pattern in task.options:
            for name in pattern.fields:
                if name not in task.fields:
                    yield f"an option uses {{{name}}}, which is not a field"
        texts = [pattern.text for pattern in task.options]
        for text in dict.fromkeys(text for text in texts if texts.count(text) > 1):
            yield f"options lists {text!r} twice"
    if task.options is not None and task.answer is None:
        yield "options without an answer"
    if task.options is None:
        if task.answer_is != "text":
            yield f"answer_is = {task.answer_is!r} without options"
        if task.options_separator is not None:
            yield "options_separator without options"
    if task.options is not None and task.options == task.answer:
        yield f"field {task.answer!r} cannot be both the answer and the options"
    if isinstance(task.options, tuple) and task.options_separator is not None:
        yield "options_separator has no effect on options that are listed"
    if task.options_separator == "":
        yield "options_separator is empty"


def _template_problems(template: Template, task: Task, known: set[str]) -> Iterator[str]:
    for side, pattern in template.patterns:
        for name in pattern.fields:
            if name == task.options:
                yield (
                    f"the {side} uses {{{name}}}, which is a list; write {{{OPTIONS}}} for the "
                    "options as text"
                )
            elif name in known:
                continue
            elif name == OPTIONS:
                yield f"the {side} uses {{{OPTIONS}}} and the task has no options"
            elif name == ANSWER:
                yield f"the {side} uses {{{ANSWER}}} and the task has no answer"
            elif name.endswith("_"):
                yield (
                    f"the {side} uses {{{name}}}, an unknown special field"
                    f"{_meant(name, [*known, *SPECIAL])}"
                )
            else:
                yield f"the {side} uses {{{name}}}, which is not a field{_meant(name, known)}"
    if template.input_no_options is not None:
        if OPTIONS not in template.input.fields:
            yield f"has input_no_options, and its input no {{{OPTIONS}}}"
        if OPTIONS in template.input_no_options.fields:
            yield f"input_no_options uses {{{OPTIONS}}}"
    for side, pattern in template.patterns:
        if not pattern.text.strip():
            yield f"the {side} is empty"
    if not 0 < template.weight < float("inf"):
        yield f"weight {template.weight} is not a finite number above 0"
    if template.kind == "inverse":
        for name in _on_both_sides(template, task):
            yield (
                f"is inverse and has {{{name}}} in its input and in its target, "
                "so the answer is given away"
            )


def _on_both_sides(template: Template, task: Task) -> list[str]:
    """Fields that the prompt shows and the reply repeats; the answer goes by two names."""

    def real(pattern: Pattern) -> set[str]:
        return {task.answer if f == ANSWER and task.answer else f for f in pattern.fields}

    asked = real(template.input)
    if template.input_no_options is not None:
        asked |= real(template.input_no_options)
    return sorted(asked & real(template.target))


def _known(task: Task) -> set[str]:
    known = set(task.fields)
    if task.answer is not None:
        known.add(ANSWER)
    if task.options is not None:
        known.add(OPTIONS)
    return known


def _used(task: Task) -> set[str]:
    """Fields that at least one template shows, through a special field or by name."""
    shown = {f for t in task.templates for _, pattern in t.patterns for f in pattern.fields}
    if ANSWER in shown and task.answer is not None:
        shown.add(task.answer)
    if OPTIONS in shown:
        if isinstance(task.options, str):
            shown.add(task.options)
        elif task.options is not None:
            shown |= {f for pattern in task.options for f in pattern.fields}
    return shown


def _first_use(task: Task) -> dict[str, int]:
    """The first template that shows each field: the one a fault about the field names."""
    first: dict[str, int] = {}
    for template in task.templates:
        names = [f for _, pattern in template.patterns for f in pattern.fields]
        if ANSWER in names and task.answer is not None:
            names.append(task.answer)
        if OPTIONS in names and isinstance(task.options, str):
            names.append(task.options)
        if OPTIONS in names and isinstance(task.options, tuple):
            names += [f for pattern in task.options for f in pattern.fields]
        for name in names:
            first.setdefault(name, template.index)
    return first


def _meant(name: str, options: Mapping[str, str] | set[str] | list[str]) -> str:
    near = closest(name.strip(), sorted(options))
    return f" (did you mean {near}?)" if near else ""
