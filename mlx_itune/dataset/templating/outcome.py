"""What a rendering gave: counts, faults, requested and achieved shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.templating.render import Rendered, Renderer
from mlx_itune.kit.errors import DataError

_FAULTS_KEPT = 50
_FAULTS_SHOWN = 3


@dataclass
class TaskCount:
    """What one task gave: examples by template, by kind and by number of exemplars."""

    examples: int = 0
    dropped: int = 0
    templates: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    shots: Counter[int] = field(default_factory=Counter)


@dataclass
class Outcome:
    """What came of it. `dropped` counts examples that asked for exemplars and could keep none."""

    rows: int = 0
    examples: int = 0
    rejected: int = 0
    dropped: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    tasks: dict[str, TaskCount] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ledger: str = ""

    def count(self, example: Rendered) -> None:
        """One more example, written or dropped."""
        count = self.tasks[example.task]
        if example.is_dropped:
            self.dropped += 1
            count.dropped += 1
            return
        self.examples += 1
        count.examples += 1
        count.templates[example.template] += 1
        count.kinds[example.kind] += 1
        count.shots[example.shots] += 1

    def reject(self, fault: Fault) -> None:
        """One more row that cannot be rendered; the first faults are kept."""
        self.rejected += 1
        if len(self.faults) < _FAULTS_KEPT:
            self.faults.append(fault)

    def refusal(self) -> DataError:
        """Why nothing is written although some rows are fine."""
        shown = [str(fault) for fault in self.faults[:_FAULTS_SHOWN]]
        more = ["..."] if self.rejected > _FAULTS_SHOWN else []
        return DataError(
            f"{self.rejected} of {self.rows} rows cannot be rendered: "
            + " | ".join([*shown, *more]),
            hint="correct them, or leave them out with --keep-going",
        )

    def nothing_left(self) -> DataError:
        """Why there is nothing to write."""
        if not self.rows:
            return DataError("no example is left: there are no rows")
        if self.dropped:
            return DataError(
                f"no example is left: {self.dropped} asked for exemplars and could keep none",
                hint="use a larger --shot-budget, more rows, or 0 among --shots",
            )
        return self.refusal()

    def describe(self, renderers: Sequence[Renderer]) -> None:
        """Fill `tables`: what was asked for and what came out, per task, as JSON."""
        self.tables = [_table(each, self.tasks[each.task.name]) for each in renderers]


def _table(renderer: Renderer, count: TaskCount) -> dict[str, Any]:
    """One task's requested and achieved shares: of each template, kind and number of shots."""
    whole = max(count.examples, 1)
    kinds = {
        kind: sum(
            renderer.choice.shares.get(template.index, 0.0)
            for template in renderer.task.templates
            if template.kind == kind
        )
        for kind in ("normal", "inverse")
    }
    return {
        "task": renderer.task.name,
        "examples": count.examples,
        "dropped": count.dropped,
        "templates": [
            {
                "template": template.index,
                "kind": template.kind,
                "requested": renderer.choice.shares.get(template.index, 0.0),
                "achieved": count.templates[template.index] / whole,
            }
            for template in renderer.task.templates
        ],
        "kinds": {
            kind: {"requested": share, "achieved": count.kinds[kind] / whole}
            for kind, share in kinds.items()
        },
        "shots": {str(shots): count.shots[shots] for shots in sorted(count.shots)},
    }
