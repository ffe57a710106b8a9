"""Which template a row gets: a pure function of (seed, task, row content, draw)."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from mlx_itune.dataset.templating.tasks import Task, Template
from mlx_itune.kit.errors import DataError, UsageError

_MASK = 2**64 - 1
# 2**64 over the golden ratio: steps of it spread over a circle as evenly as any do, so that the
# draws of one row take its templates in turn.
_STEP = 0x9E3779B97F4A7C15


def task_key(seed: int, task: str) -> bytes:
    """32 bytes that stand for one task under one seed."""
    return hashlib.blake2b(f"{seed} {task}".encode(), digest_size=32).digest()


def row_key(task_key: bytes, content: bytes) -> bytes:
    """32 bytes that stand for one row of a task."""
    return hashlib.blake2b(content, digest_size=32, key=task_key).digest()


def draw_numbers(key: bytes, draw: int) -> tuple[int, int, int]:
    """Three independent 64-bit numbers of one draw of a row."""
    digest = hashlib.blake2b(draw.to_bytes(8, "big"), digest_size=24, key=key).digest()
    a, b, c = digest[:8], digest[8:16], digest[16:]
    return int.from_bytes(a, "big"), int.from_bytes(b, "big"), int.from_bytes(c, "big")


def stream(start: int) -> Iterator[int]:
    """Endless 64-bit numbers (SplitMix64), a pure function of `start`."""
    state = start
    while True:
        state = (state + _STEP) & _MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        yield mixed ^ (mixed >> 31)


class TemplateChoice:
    """Draws templates of one task; inverse ones, as a group, count `inverse_weight` to 1.

    Within each group templates are drawn by their own weights. A task with templates of one kind
    only draws from that kind. Raises UsageError for a weight that is negative or not finite,
    DataError where it leaves a task without templates.
    """

    def __init__(self, task: Task, inverse_weight: float) -> None:
        if not 0 <= inverse_weight < math.inf:
            raise UsageError(f"an inverse weight of {inverse_weight} is not a number >= 0")
        groups: dict[str, list[Template]] = {"normal": [], "inverse": []}
        for template in task.templates:
            groups[template.kind].append(template)
        if not groups["normal"] and inverse_weight == 0:
            raise DataError(
                f"{task.place(None)}: all templates are inverse, and inverse ones weigh 0"
            )
        weights = _scaled(groups["normal"], 1.0) | _scaled(groups["inverse"], inverse_weight)
        drawn = [t for t in task.templates if weights[t.index] > 0]
        total = math.fsum(weights.values())
        shares = [weights[t.index] / total for t in drawn]
        self._templates = tuple(drawn)
        self._borders = [int(border * 2**64) for border in accumulate(shares)]
        self.shares = {t.index: share for t, share in zip(drawn, shares, strict=True)}

    def template(self, key: bytes, draw: int) -> Template:
        """The template of one draw of the row with this key."""
        point = (int.from_bytes(key[:8], "big") + draw * _STEP) & _MASK
        return self._templates[min(bisect_right(self._borders, point), len(self._borders) - 1)]


def _scaled(templates: Sequence[Template], total: float) -> dict[int, float]:
    if not templates:
        return {}
    # Scaled first, so that weights near the largest float do not sum to infinity.
    largest = max(template.weight for template in templates)
    rates = {template.index: template.weight / largest for template in templates}
    whole = math.fsum(rates.values())
    return {index: total * rate / whole for index, rate in rates.items()}
