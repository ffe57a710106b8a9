"""Rows of one task -> examples: which template, which options, how many exemplars.

Each choice is a pure function of the seed, the task, the row's fields and the number of the draw.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import gcd

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.templating.options import (
    NO_OPTIONS,
    OPTIONS,
    Pattern,
    Style,
    style_for,
    without_options,
)
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.dataset.templating.rows import Example, Values
from mlx_itune.dataset.templating.tasks import Task
from mlx_itune.kit.errors import DataError

_MASK = 2**64 - 1
# 2**64 over the golden ratio: steps of it spread over a circle as evenly as any do, so that the
# draws of one row take its templates in turn.
_STEP = 0x9E3779B97F4A7C15


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


# Enough rows that a prompt seldom meets the same exemplar twice, few enough to stay in memory.
_POOL_ROWS = 10_000
# A row with more characters than this per token of the budget is never an exemplar.
_CHARS_PER_TOKEN = 16

# How many tokens each text has.
Measure = Callable[[Sequence[str]], Sequence[int]]


class ExemplarPool:
    """Rows of the training split that prompts may show, a seeded sample once there are many.

    Which rows it holds depends on the rows, not on their order: those with the smallest hashes.
    Rows that differ only in case and spacing count as one.
    """

    def __init__(self, seed: int, task: str, budget_tokens: int, most: int = _POOL_ROWS) -> None:
        self._key = hashlib.blake2b(f"{seed} {task} pool".encode(), digest_size=32).digest()
        self._longest = budget_tokens * _CHARS_PER_TOKEN
        self._most = most
        self._rows: dict[bytes, Values] = {}
        self._order: list[bytes] | None = None

    def add(self, values: Values) -> None:
        """Offer a row of the training split."""
        name = self._name(values)
        there = self._rows.get(name)
        # Of equal rows in several spellings, one that no order of reading can change.
        if values.size() <= self._longest and (there is None or values < there):
            self._rows[name] = values
            self._order = None
            if len(self._rows) > 2 * self._most:
                self._ordered()

    def remove(self, values: Values) -> None:
        """Keep out a row of another split, however it is spelled; to be called after any `add`."""
        self._rows.pop(self._name(values), None)
        self._order = None

    def candidates(self, values: Values, number: int) -> Iterator[Values]:
        """Rows other than `values`, each once, in an order that is a function of `number`."""
        order, own = self._ordered(), self._name(values)
        if not order:
            return
        rest, start = divmod(number, len(order))
        # A step without a common divisor meets every row once.
        step = next(
            s
            for s in range(rest % len(order) + 1, rest % len(order) + 1 + len(order))
            if gcd(s, len(order)) == 1
        )
        for turn in range(len(order)):
            name = order[(start + turn * step) % len(order)]
            if name != own:
                yield self._rows[name]

    def _name(self, values: Values) -> bytes:
        return hashlib.blake2b(values.likeness(), digest_size=16, key=self._key).digest()

    def _ordered(self) -> list[bytes]:
        if self._order is None:
            self._order = sorted(self._rows)[: self._most]
            self._rows = {name: self._rows[name] for name in self._order}
        return self._order


def fit(examples: Sequence[Example], budget_tokens: int, measure: Measure) -> None:
    """Take the longest exemplar out of each prompt until it has at most `budget_tokens`."""
    over = [example for example in examples if example.exemplars]
    while over:
        counts = measure([example.text for example in over])
        over = [e for e, count in zip(over, counts, strict=True) if count > budget_tokens]
        for example in over:
            example.exemplars.remove(max(example.exemplars, key=len))
        over = [example for example in over if example.exemplars]
