"""What looks wrong in a template without breaking a rule: warnings, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_itune.dataset.templating.tasks import ANSWER, OPTIONS, Task, Template

# Code, what to look for in a side as it is written, and what is wrong with it.
_LOOKS = [
    (code, re.compile(pattern, re.IGNORECASE), message)
    for code, pattern, message in (
        # A newline that lost its backslash: "{hypothesis}n" before a line's end or a field.
        ("stray-n", r"\}n+(?=\n|\{|$)", "has a lone 'n' where a line break may be meant: {}"),
        (
            "backslash",
            r"\\[nt]",
            "has {} as two characters; TOML reads escapes in \"...\" and not in '...'",
        ),
        ("blank-lines", r"\n[ \t]*\n[ \t]*\n", "has two blank lines in a row"),
        ("trailing-space", r"(?<![ \t])[ \t]+(?=\n|$)", "has spaces at the end of a line"),
        ("double-space", r"\S {2,}(?=\S)", "has two spaces in a row"),
        ("outer-space", r"\A[ \t\n]|\n\Z", "starts or ends with blank space"),
        ("doubled-prefix", r"(?<!\w)((?:\w[\w ]{0,30})?\w ?:)\s*\1(?!:)", "has {} twice in a row"),
    )
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
        for code, message in (*_written(template), *_meant(task, template))
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


def _meant(task: Task, template: Template) -> Iterator[tuple[str, str]]:
    sides = template.patterns
    given = (template.input_prefix, template.target_prefix)
    before, after = (
        (own if own is not None else shared).strip().lower()
        for own, shared in zip(given, (task.input_prefix, task.target_prefix), strict=True)
    )
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
