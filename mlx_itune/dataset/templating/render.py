"""Rows of one task -> examples: which template, which options, how many exemplars.

Each choice is a pure function of the seed, the task, the row's fields and the number of the draw.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Annotated, Any

from annotated_types import Interval

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.templating.options import (
    NO_OPTIONS,
    OptionsMode,
    Style,
    style_for,
    without_options,
)
from mlx_itune.dataset.templating.pattern import Pattern
from mlx_itune.dataset.templating.rows import Example, Values
from mlx_itune.dataset.templating.shots import ExemplarPool
from mlx_itune.dataset.templating.tasks import OPTIONS, Task
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.settings import setting

_MOST_SHOTS = 100
_MASK = 2**64 - 1
# 2**64 over the golden ratio: steps of it spread over a circle as evenly as any do, so that the
# draws of one row take its templates in turn.
_STEP = 0x9E3779B97F4A7C15

Count = Annotated[int, Interval(ge=1, le=10**6)]


@dataclass(frozen=True)
class RenderPlan:
    """How to render. Raises UsageError for what is no number, share or name."""

    task: tuple[str, ...] = setting(
        (), "Render this task only (repeatable); without it, every task of the file.", "NAME"
    )
    draws: Count = setting(1, "Examples per row and task.")
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = setting(0, "Of everything that is drawn.")
    shots: str = setting("0", "Numbers of exemplars; each example draws one of them.", "N,N,...")
    shot_budget: Count = setting(
        1920, "Exemplars are taken out of a prompt until it is this short.", "TOKENS"
    )
    model: str | None = setting(
        None,
        "Whose tokenizer measures the budget: 'starter', a directory or a Hub id.",
        "MODEL",
    )
    inverse_weight: Annotated[float, Interval(ge=0, le=1e9)] = setting(
        0.3, "How often inverse templates are drawn, to 1 for the others."
    )
    options: OptionsMode = setting(
        "lines", "How answer options are laid out; with letters the answer is the letter."
    )
    split: str | None = setting(
        None,
        "train/valid/test, such as 0.9/0.05/0.05; without it, every row is a training row.",
        "SHARES",
    )
    columns: str | None = setting(
        None, "Names of the columns of a table without a header line.", "NAME,NAME,..."
    )
    keep_going: bool = setting(
        False, "Leave out rows that cannot be rendered; rejected.jsonl lists them."
    )

    def __post_init__(self) -> None:
        if not math.isfinite(self.inverse_weight):
            raise UsageError(f"an inverse weight of {self.inverse_weight} is not a number >= 0")
        if self.wants_exemplars and self.model is None:
            raise UsageError(
                "--shots needs --model, whose tokenizer measures the budget",
                hint="such as --model starter",
            )
        if self.model is not None and not self.wants_exemplars:
            raise UsageError("--model has no effect without --shots above 0")
        names = self.column_names
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(f"--columns {self.columns!r} must be different names between commas")

    @property
    def shot_counts(self) -> tuple[int, ...]:
        """`shots` as numbers."""
        parts = [part.strip() for part in self.shots.split(",")]
        if not all(p.isascii() and p.isdigit() and int(p) <= _MOST_SHOTS for p in parts):
            raise UsageError(f"--shots {self.shots!r} is not a list of numbers such as 0,1,2,5")
        return tuple(map(int, parts))

    @property
    def wants_exemplars(self) -> bool:
        """Whether any draw asks for one."""
        return max(self.shot_counts) > 0

    @property
    def column_names(self) -> tuple[str, ...]:
        """`columns` as names."""
        return tuple(name.strip() for name in self.columns.split(",")) if self.columns else ()

    @property
    def recorded(self) -> dict[str, Any]:
        """What was asked for."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}


class Renderer:
    """Renders rows of one task. Equal rows give equal examples, wherever they stand.

    `pool` must hold the training rows before the first row that asks for exemplars.
    Raises DataError for a task that cannot be rendered with these settings.
    """

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
        key = hashlib.blake2b(values.content(), digest_size=32, key=self._key).digest()
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
        task, template = self.task, self.task.template[example.template]
        before = template.input_prefix if template.input_prefix is not None else task.input_prefix
        after = template.target_prefix if template.target_prefix is not None else task.target_prefix
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
        if self._plan.options == "none":
            for side in ("input", "target"):
                if side == "input" and "input_no_options" in patterns:
                    patterns["input"] = patterns["input_no_options"]
                    continue
                patterns[side], left = without_options(patterns[side])
                if left:
                    hint = "write input_no_options for it" if side == "input" else None
                    place = self.task.place(index)
                    raise DataError(
                        f"{place}: the {side} speaks of its options in {left}",
                        hint=hint or "render with options",
                    )
        return patterns["input"], patterns["target"]


def _shares(task: Task, inverse_weight: float) -> list[float]:
    """How often each template is drawn. Inverse ones, as a group, count `inverse_weight` to 1."""
    kinds = [template.kind for template in task.template]
    groups = {"normal": 1.0, "inverse": inverse_weight}
    if "normal" not in kinds and not inverse_weight:
        raise DataError(f"{task.place()}: all templates are inverse, and inverse ones weigh 0")
    total = math.fsum(groups[kind] for kind in set(kinds))
    whole = {k: math.fsum(t.weight for t in task.template if t.kind == k) for k in set(kinds)}
    return [groups[t.kind] / total * t.weight / whole[t.kind] for t in task.template]
