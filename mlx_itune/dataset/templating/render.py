"""A raw row of one task -> its values -> examples: which template, which options, which exemplars.
Each choice is a pure function of the seed, the task, the row's fields and the number of the
draw."""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from math import gcd
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Conversation, RowFault, Turn
from mlx_itune.dataset.templating.options import (
    NO_OPTIONS,
    OPTIONS,
    Pattern,
    Style,
    parse,
    style_for,
    without_options,
)
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.dataset.templating.tasks import ANSWER, Task
from mlx_itune.kit.errors import DataError

_MASK = 2**64 - 1
# 2**64 over the golden ratio: steps of it spread over a circle as evenly as any do, so that the
# draws of one row take its templates in turn.
_STEP = 0x9E3779B97F4A7C15
# Enough rows that a prompt seldom meets the same exemplar twice, few enough to stay in memory.
_POOL_ROWS = 10_000
# A row with more characters than this per token of the budget is never an exemplar.
_CHARS_PER_TOKEN = 16

# How many tokens each text has.
Measure = Callable[[Sequence[str]], Sequence[int]]


class Values(NamedTuple):
    """A row's fields as text in the task's order, its options, which is right (-1: it has none)."""

    texts: tuple[str, ...]
    options: tuple[str, ...] = ()
    right: int = -1

    def shown(self, task: Task, style: Style) -> dict[str, str]:
        """What each field reads in a prompt of this style; the answer as the options call it."""
        texts = dict(zip(task.columns, self.texts, strict=True))
        if task.answer is not None:
            if self.right >= 0:
                texts[task.answer] = style.answer(self.options, self.right)
                texts[OPTIONS] = style.block(self.options)
            texts[ANSWER] = texts[task.answer]
        return texts


def values_of(task: Task, row: Mapping[str, Any]) -> Values:
    """The values of a row. Raises RowFault naming the task and a template that needs them."""
    texts = {
        name: "" if name == task.options else _text(task, name, _cell(task, row, name))
        for name in task.columns
    }
    if task.options is None:
        return Values(tuple(texts.values()))
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
    stripped = [option.strip() for option in options]
    right = len(options)
    if task.answer_is == "text":
        what = "is none of"
        right = stripped.index(answer.strip()) if answer.strip() in stripped else right
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
    if stripped.count(stripped[right]) > 1:
        what = f"the answer {stripped[right][:60]!r} equals two options"
        raise _fault(task, OPTIONS, "options", what)
    return right


def _fault(task: Task, name: str, code: str, message: str, hint: str = "") -> RowFault:
    template = task.first_use(name)
    if template is None and task.answer:
        template = task.first_use(task.answer)
    return RowFault(code, f"{task.place(template)}: {message}", hint)


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


class Renderer:
    """Renders rows of one task. Equal rows give equal examples, wherever they stand. `pool` must
    hold the training rows first. Raises DataError for settings that do not fit."""

    def __init__(self, task: Task, plan: RenderPlan) -> None:
        self.task = task
        self.pool = ExemplarPool(plan.seed, task.name, plan.shot_budget)
        self.shares = _shares(task, plan.inverse_weight)
        self._plan, self._counts = plan, plan.shot_counts
        self._key = hashlib.blake2b(f"{plan.seed} {task.name}".encode(), digest_size=32).digest()
        self._drawn = [index for index, share in enumerate(self.shares) if share]
        borders = accumulate(self.shares[index] for index in self._drawn)
        self._borders = [int(border * 2**64) for border in borders]
        self._sides = [self._sides_of(index) for index in range(len(task.template))]

    def examples(self, values: Values) -> list[Example]:
        """The examples of a row, before the budget. Raises RowFault for an empty side."""
        plan = self._plan
        said = json.dumps(values).encode()
        key = hashlib.blake2b(said, digest_size=32, key=self._key).digest()
        made = []
        for draw in range(plan.draws):
            digest = hashlib.blake2b(draw.to_bytes(8, "big"), digest_size=24, key=key).digest()
            for_style, for_count, for_shots = (
                int.from_bytes(digest[at : at + 8], "big") for at in (0, 8, 16)
            )
            point = (int.from_bytes(key[:8], "big") + draw * _STEP) & _MASK
            at = min(bisect_right(self._borders, point), len(self._drawn) - 1)
            index = self._drawn[at]
            style = style_for(plan.options, for_style, values.options)
            prompt, completion = self._pair(index, values, style)
            for side, text in (("prompt", prompt), ("completion", completion)):
                if not text.strip():
                    place = self.task.place(index)
                    raise RowFault("empty", f"{place}: the {side} of this row is empty")
            example = Example(self.task, index, prompt, completion)
            example.asked = self._counts[for_count % len(self._counts)]
            if example.asked:
                self._add_exemplars(example, values, style, for_shots)
            made.append(example)
        return made

    def _pair(self, index: int, values: Values, style: Style) -> tuple[str, str]:
        asked, told = self._sides[index]
        # An answer is a letter only where the prompt shows what the letter stands for.
        has_list = OPTIONS in asked.fields or OPTIONS in told.fields
        texts = values.shown(self.task, style if has_list else NO_OPTIONS)
        return asked.render(texts), told.render(texts)

    def _add_exemplars(self, example: Example, values: Values, style: Style, number: int) -> None:
        """Other rows through the same template, none of which reads like the query or another."""
        task = self.task
        before, after = task.prefixes(task.template[example.template])
        seen = {(example.prompt, example.completion)}
        for candidate in self.pool.candidates(values, number):
            pair = prompt, completion = self._pair(example.template, candidate, style)
            if pair not in seen and prompt.strip() and completion.strip():
                seen.add(pair)
                example.exemplars.append(f"{before}{prompt}{task.xy_delimiter}{after}{completion}")
                if len(seen) > example.asked:
                    break
        asked = f"{before}{example.prompt}"
        told = f"{task.xy_delimiter}{after}"
        example.query = f"{asked}{told}".rstrip() if after.strip() else asked

    def _sides_of(self, index: int) -> tuple[Pattern, Pattern]:
        """A template's input and target; without options, neither has a trace of them."""
        patterns = self.task.template[index].patterns
        sides = {"input": patterns["input"], "target": patterns["target"]}
        for side in sides if self._plan.options == "none" else ():
            sides[side], left = without_options(sides[side])
            if side == "input" and "input_no_options" in patterns:
                sides[side] = patterns["input_no_options"]
            elif left:
                ours = "write input_no_options for it"
                what = f"{self.task.place(index)}: the {side} speaks of its options in {left}"
                raise DataError(what, hint=ours if side == "input" else "render with options")
        return sides["input"], sides["target"]


def _shares(task: Task, inverse_weight: float) -> list[float]:
    """How often each template is drawn. Inverse ones, as a group, count `inverse_weight` to 1."""
    kinds = {template.kind for template in task.template}
    groups = {"normal": 1.0, "inverse": inverse_weight}
    if "normal" not in kinds and not inverse_weight:
        raise DataError(f"{task.place()}: all templates are inverse, and inverse ones weigh 0")
    total = math.fsum(groups[kind] for kind in kinds)
    whole = {kind: math.fsum(t.weight for t in task.template if t.kind == kind) for kind in kinds}
    return [groups[t.kind] / total * t.weight / whole[t.kind] for t in task.template]


class ExemplarPool:
    """Rows of the training split that prompts may show, a seeded sample once there are many. It
    holds the rows of the smallest hashes, in any order; case and spacing make no other row."""

    def __init__(self, seed: int, task: str, budget_tokens: int, most: int = _POOL_ROWS) -> None:
        self._key = hashlib.blake2b(f"{seed} {task} pool".encode(), digest_size=32).digest()
        self._longest = budget_tokens * _CHARS_PER_TOKEN
        self._most = most
        self._rows: dict[bytes, Values] = {}
        self._order: list[bytes] = []

    def add(self, values: Values) -> None:
        """Offer a row of the training split."""
        name = self._name(values)
        there = self._rows.get(name)
        is_short = sum(map(len, values.texts + values.options)) <= self._longest
        # Of equal rows in several spellings, one that no order of reading can change.
        if is_short and (there is None or values < there):
            self._rows[name] = values
            self._order = []
            if len(self._rows) > 2 * self._most:
                self._ordered()

    def remove(self, values: Values) -> None:
        """Keep out a row of another split, however it is spelled; to be called after any `add`."""
        self._rows.pop(self._name(values), None)
        self._order = []

    def candidates(self, values: Values, number: int) -> Iterator[Values]:
        """Rows other than `values`, each once, in an order that is a function of `number`."""
        order, own = self._ordered(), self._name(values)
        size = len(order) or 1
        rest, start = divmod(number, size)
        # A step without a common divisor meets every row once.
        step = next(step for step in count(rest % size + 1) if gcd(step, size) == 1)
        for turn in range(len(order)):
            name = order[(start + turn * step) % size]
            if name != own:
                yield self._rows[name]

    def _name(self, values: Values) -> bytes:
        texts = [" ".join(text.casefold().split()) for text in values.texts + values.options]
        said = json.dumps(texts).encode()
        return hashlib.blake2b(said, digest_size=16, key=self._key).digest()

    def _ordered(self) -> list[bytes]:
        if not self._order:
            self._order = sorted(self._rows)[: self._most]
            self._rows = {name: self._rows[name] for name in self._order}
        return self._order


def fit(examples: Sequence[Example], budget_tokens: int, measure: Measure) -> None:
    """Take the longest exemplar out of each prompt until it has at most `budget_tokens`."""
    over = [example for example in examples if example.exemplars]
    while over:
        counts = measure([example.text for example in over])
        over = [e for e, size in zip(over, counts, strict=True) if size > budget_tokens]
        for example in over:
            example.exemplars.remove(max(example.exemplars, key=len))
        over = [example for example in over if example.exemplars]
