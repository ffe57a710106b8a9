"""What looks wrong in a template without breaking a rule: warnings, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_itune.dataset.templating.optionless import OPTIONS
from mlx_itune.dataset.templating.pattern import Pattern
from mlx_itune.dataset.templating.tasks import ANSWER, Task, Template

# A newline that lost its backslash: "{hypothesis}n" before a line's end or the next field.
_STRAY_N = re.compile(r"\}n+(?=\n|\{|$)")
_BLANK_LINES = re.compile(r"\n[ \t]*\n[ \t]*\n")
_BACKSLASH = re.compile(r"\\[nt]")
_TRAILING = re.compile(r"[ \t]+(?=\n|$)")
_DOUBLE_SPACE = re.compile(r"\S {2,}(?=\S)")
_TWICE = re.compile(r"(?<!\w)((?:\w[\w ]{0,30})?\w[ ]?:)\s*\1(?!:)", re.IGNORECASE)
_WORDS = re.compile(r"\w")


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
        TemplateWarning(task.name, template.index, code, message)
        for task in tasks
        for template in task.templates
        for code, message in (*_of_sides(template), *_of_template(template, task))
    ]


def _of_sides(template: Template) -> Iterator[tuple[str, str]]:
    for side, pattern in template.patterns:
        text = pattern.text
        if found := _STRAY_N.search(text):
            yield (
                "stray-n",
                f"the {side} has a lone 'n' where a line break may be meant: "
                + repr(text[max(0, found.start() - 12) : found.end() + 2]),
            )
        if found := _BACKSLASH.search(text):
            yield (
                "backslash",
                f"the {side} has {found.group()!r} as two characters; TOML reads escapes in "
                "\"...\" and not in '...'",
            )
        if _BLANK_LINES.search(text):
            yield "blank-lines", f"the {side} has two blank lines in a row"
        if _TRAILING.search(text):
            yield "trailing-space", f"the {side} has spaces at the end of a line"
        if _DOUBLE_SPACE.search(text):
            yield "double-space", f"the {side} has two spaces in a row"
        if text != text.strip("\n") or text[:1] in (" ", "\t"):
            yield "outer-space", f"the {side} starts or ends with blank space"
        if found := _TWICE.search(text):
            yield "doubled-prefix", f"the {side} has {found.group(1)!r} twice in a row"


def _of_template(template: Template, task: Task) -> Iterator[tuple[str, str]]:
    for side, prefix, pattern in (
        ("input", template.input_prefix, template.input),
        ("target", template.target_prefix, template.target),
    ):
        bare = prefix.strip()
        if bare and pattern.text.lstrip().lower().startswith(bare.lower()):
            yield "doubled-prefix", f"{side}_prefix {bare!r} also starts the {side}"
    ending = template.input.text.rsplit("\n", 1)[-1].strip().lower()
    if ending and ending == template.target_prefix.strip().lower():
        yield "doubled-prefix", f"target_prefix {ending!r} also ends the input"
    target = template.target.text.lstrip().lower()
    if len(ending) > 1 and ending.endswith(":") and target.startswith(ending):
        yield "doubled-prefix", f"the input ends with {ending!r} and the target starts with it"
    if not any(map(_says_something, (template.input, template.target))):
        yield "empty", "neither the input nor the target holds a word or a field"
    elif not template.target.fields:
        yield "constant-target", "the target holds no field: every row gets the same answer"
    if task.answer is None:
        return
    names = {ANSWER, task.answer}
    asked, told = names & {*template.input.fields}, names & {*template.target.fields}
    if template.kind == "normal" and asked and told:
        yield "answer-in-input", "the input shows the answer that the target asks for"
    elif template.kind == "normal" and asked:
        yield "looks-inverse", 'the input shows the answer; is it kind = "inverse"?'
    if template.kind == "inverse" and told and OPTIONS not in template.target.fields:
        yield "looks-normal", 'the target is the answer; is it kind = "normal"?'


def _says_something(pattern: Pattern) -> bool:
    return bool(pattern.fields) or any(_WORDS.search(literal) for literal in pattern.literals)
