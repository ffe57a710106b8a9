"""One row of one task -> the prompts and replies it yields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.templating.choose import TemplateChoice, draw_numbers, row_key, task_key
from mlx_itune.dataset.templating.optionless import OPTIONS
from mlx_itune.dataset.templating.options import (
    NO_OPTIONS,
    OPTIONS_MODES,
    OptionsMode,
    Style,
    style_for,
)
from mlx_itune.dataset.templating.pattern import Pattern
from mlx_itune.dataset.templating.rows import Values, shown, values_of
from mlx_itune.dataset.templating.shots import ExemplarPool, FewShot, Measure, fit
from mlx_itune.dataset.templating.tasks import Kind, Task, Template
from mlx_itune.kit.errors import UsageError

_MOST_SHOTS = 100


@dataclass(frozen=True)
class Settings:
    """What a rendering depends on, next to its rows and templates.

    Each row is drawn `draws` times; each draw gets one of `shots` (a number of exemplars), and
    its prompt stays within `shot_budget_tokens` where it has any. Raises UsageError.
    """

    draws: int = 1
    seed: int = 0
    options: OptionsMode = "lines"
    inverse_weight: float = 0.3
    shots: tuple[int, ...] = (0,)
    shot_budget_tokens: int = 1920

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UsageError(f"cannot draw a row {self.draws} times")
        if self.options not in OPTIONS_MODES:
            raise UsageError(f"options must be one of {', '.join(OPTIONS_MODES)}")
        if not self.shots or not all(0 <= count <= _MOST_SHOTS for count in self.shots):
            raise UsageError(f"shots must be numbers from 0 to {_MOST_SHOTS}, such as 0,1,2,5")
        if self.shot_budget_tokens < 1:
            raise UsageError("the shot budget must be at least one token")
        if not 0 <= self.inverse_weight < math.inf:
            raise UsageError(f"an inverse weight of {self.inverse_weight} is not a number >= 0")

    @property
    def wants_exemplars(self) -> bool:
        """Whether any draw asks for one."""
        return max(self.shots) > 0


class Rendered(NamedTuple):
    """One example. `shots` exemplars stand in the prompt of the `shots_asked` that were wanted.

    One that was asked for exemplars and could keep none is `is_dropped`.
    """

    task: str
    template: int
    kind: Kind
    prompt: str
    completion: str
    shots: int
    shots_asked: int

    @property
    def is_dropped(self) -> bool:
        """Whether it has lost all of its exemplars."""
        return self.shots_asked > 0 and self.shots == 0


class Draft(NamedTuple):
    """A Rendered whose exemplars have not met the budget yet (`few` None: it has none to lose)."""

    task: str
    template: Template
    prompt: str
    completion: str
    asked: int
    few: FewShot | None

    def finished(self) -> Rendered:
        """The example with the exemplars it has now."""
        few = self.few
        return Rendered(
            self.task,
            self.template.index,
            self.template.kind,
            self.prompt if few is None else few.text(),
            self.completion,
            0 if few is None else len(few.exemplars),
            self.asked,
        )


class Renderer:
    """Renders rows of one task. Equal rows give equal examples, wherever they stand.

    `pool` must hold the training rows before the first row that asks for exemplars.
    Raises DataError for a task that cannot be rendered with these settings.
    """

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task = task
        self.settings = settings
        self.pool = ExemplarPool(settings.seed, task.name, settings.shot_budget_tokens)
        self._key = task_key(settings.seed, task.name)
        self._draws_more = settings.wants_exemplars or settings.options == "random"
        self.choice = TemplateChoice(task, settings.inverse_weight)
        self._sides: dict[int, tuple[Pattern, Pattern]] = {
            template.index: task.without_options(template)
            if settings.options == "none"
            else (template.input, template.target)
            for template in task.templates
        }

    def values(self, row: Mapping[str, Any]) -> Values:
        """The row's values, as `drafts` and the pool take them. Raises RowFault."""
        return values_of(self.task, row)

    def drafts(self, values: Values) -> list[Draft]:
        """The examples of a row, before the budget. Raises RowFault for an empty side."""
        settings = self.settings
        key = row_key(self._key, values.content())
        drafts = []
        for draw in range(settings.draws):
            template = self.choice.template(key, draw)
            for_style, for_count, for_exemplars = (
                draw_numbers(key, draw) if self._draws_more else (0, 0, 0)
            )
            style = style_for(settings.options, for_style, values.options)
            prompt, completion = self._pair(template, values, style)
            for side, text in (("prompt", prompt), ("completion", completion)):
                if not text.strip():
                    place = self.task.place(template.index)
                    raise RowFault("empty", f"{place}: the {side} of this row is empty")
            asked = settings.shots[for_count % len(settings.shots)]
            few = None
            if asked:
                chosen = self._exemplars(template, values, style, asked, for_exemplars)
                few = FewShot(
                    [self._example(template, x, y) for x, y in chosen],
                    self.task.example_separator,
                    self._query(template, prompt),
                )
            drafts.append(Draft(self.task.name, template, prompt, completion, asked, few))
        return drafts

    def _pair(self, template: Template, values: Values, style: Style) -> tuple[str, str]:
        asked, told = self._sides[template.index]
        # An answer is a letter only where the prompt shows what the letter stands for.
        has_list = OPTIONS in asked.fields or OPTIONS in told.fields
        texts = shown(self.task, values, style if has_list else NO_OPTIONS)
        return asked.render(texts), told.render(texts)

    def _exemplars(
        self, template: Template, values: Values, style: Style, count: int, number: int
    ) -> list[tuple[str, str]]:
        """Other rows through the same template, none of which reads like the query or another."""
        seen = {self._pair(template, values, style)}
        chosen: list[tuple[str, str]] = []
        for candidate in self.pool.candidates(values, number):
            pair = self._pair(template, candidate, style)
            if pair not in seen and pair[0].strip() and pair[1].strip():
                seen.add(pair)
                chosen.append(pair)
                if len(chosen) == count:
                    break
        return chosen

    def _example(self, template: Template, prompt: str, completion: str) -> str:
        return (
            f"{template.input_prefix}{prompt}{self.task.xy_delimiter}"
            f"{template.target_prefix}{completion}"
        )

    def _query(self, template: Template, prompt: str) -> str:
        asked = f"{template.input_prefix}{prompt}"
        if not template.target_prefix.strip():
            return asked
        return f"{asked}{self.task.xy_delimiter}{template.target_prefix}".rstrip()


def finish(drafts: Sequence[Draft], budget_tokens: int, measure: Measure) -> list[Rendered]:
    """The drafts as examples, exemplars pruned to the budget, all of them measured together."""
    fit([draft.few for draft in drafts if draft.few is not None], budget_tokens, measure)
    return [draft.finished() for draft in drafts]


def conversation_of(example: Rendered, origin: str, source: str) -> Conversation:
    """The example as a prompt and its reply. Exemplars are part of the prompt: never learned."""
    return Conversation(
        (Turn("user", example.prompt), Turn("assistant", example.completion)),
        origin,
        tags={
            "task": example.task,
            "template": str(example.template),
            "template_kind": example.kind,
            "shots": str(example.shots),
            "source": source,
        },
    )
