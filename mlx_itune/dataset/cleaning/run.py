"""`data clean` from end to end: rows through the chosen steps into a new data folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_itune.dataset.checking.check import split_of
from mlx_itune.dataset.checking.lints import load_lints
from mlx_itune.dataset.cleaning.pii.redact import redact, redact_conversation
from mlx_itune.dataset.cleaning.plan import CleanPlan
from mlx_itune.dataset.cleaning.rows import Row, as_it_is, refusal_of
from mlx_itune.dataset.cleaning.steps import MENDING, Sources, Steps, Told
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.folder import FolderWriter, new_folder
from mlx_itune.dataset.sources import read_rows
from mlx_itune.kit.errors import DataError

# Of two equal rows the held-out one stays: training rows are taken out of the evaluation's way.
_ORDER = {"test": 0, "valid": 1, "train": 2}
# Reads a file's rows: its path, what mends a row, who is told of bytes read.
Reader = Callable[..., Iterator[Conversation | Fault]]


@dataclass
class Cleaned:
    """What came in and what came out: rows = kept + removed + rejected. Of each step the rows in,
    kept, changed and removed: in = kept + removed."""

    rows: int = 0
    kept: int = 0
    changed: int = 0
    removed: int = 0
    rejected: int = 0
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    duplicate_sources: Sources = field(default_factory=Counter)
    ledger: str = ""


def clean(
    sources: Sequence[Path],
    out: Path,
    plan: CleanPlan,
    *,
    lints: Path | None = None,
    read: Reader = read_rows,
) -> Cleaned:
    """Run the steps over every row of `sources` and write the data folder `out`. Raises DataError
    for broken rows unless they are passed over, and when no row is left; UsageError for steps that
    cannot be."""
    result = Cleaned()
    chosen = Steps(plan, load_lints(lints))
    steps = chosen.make(result.duplicate_sources)
    settings = chosen.settings() | ({"lints": lints.name} if lints else {})
    # Rows are legal from the last step on that mends them.
    last = max((at for at, name in enumerate(steps, 1) if name in MENDING), default=0)
    with new_folder(out, "clean", sources, settings=settings, operator=plan.operator) as writer:
        run = _Run(writer, result, plan.keep_going, chosen.kinds if "pii" in steps else ())
        rows = run.read(read, as_it_is if last else None)
        for at, (name, step) in enumerate(steps.items(), 1):
            result.steps[name] = {"in": 0, "kept": 0, "changed": 0, "removed": 0}
            rows = run.through(name, step(rows))
            rows = run.legal(rows) if at == last else rows
        for row in rows:
            run.write(row)
        run.refuse_broken()
    result.splits = {split: count for split, count in writer.counts.items() if count}
    result.rejected, result.faults = writer.rejected, writer.faults
    result.ledger = writer.record.seal
    return result


@dataclass
class _Run:
    writer: FolderWriter
    result: Cleaned
    keep_going: bool
    # Kinds of personal data that are nowhere to be shown: None for all.
    hidden: Sequence[str] | None

    def read(self, read: Reader, mend: Callable[..., Conversation | None] | None) -> Iterator[Row]:
        files = [
            (file.split or split_of(file.path) or "train", file.path)
            for file in self.writer.inputs.files
        ]
        for split, path in sorted(files, key=lambda item: _ORDER[item[0]]):
            for item in read(path, mend=mend):
                self.result.rows += 1
                if isinstance(item, Fault):
                    self.reject(item)
                else:
                    yield Row(split, item, item)
        self.refuse_broken()

    def legal(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that could be trained on; the others are broken ones."""
        for row in rows:
            if problem := refusal_of(row.now):
                self.reject(problem)
            else:
                yield row

    def through(self, name: str, told: Told) -> Iterator[Row]:
        count = self.result.steps[name]
        for row, outcome in told:
            count["in"] += 1
            if outcome and outcome.row is None:
                count["removed"] += 1
                self.result.removed += 1
                detail = self._said(outcome.detail)
                self.writer.remove(row.before, name, detail, show=self._may_show(row))
                continue
            count["kept"] += 1
            if outcome and outcome.row is not None:
                count["changed"] += 1
                row = replace(row, now=outcome.row, notes=(*row.notes, (name, outcome.detail)))
            yield row

    def write(self, row: Row) -> None:
        self.result.kept += 1
        if not row.notes:
            self.writer.add(row.split, row.now)
            return
        self.result.changed += 1
        self.writer.add(
            row.split,
            row.now,
            before=row.before,
            reason="+".join(dict.fromkeys(name for name, _ in row.notes)),
            detail="; ".join(f"{name}: {detail}" for name, detail in row.notes),
            show_before=self._may_show(row),
        )

    def reject(self, fault: Fault) -> None:
        if fault.severity != "error":
            self.result.rows -= 1
            return
        self.writer.reject(replace(fault, message=self._said(fault.message)))

    def refuse_broken(self) -> None:
        """Stop, if any row was broken and that was not to be passed over."""
        if self.writer.rejected and not self.keep_going:
            first = " | ".join(map(str, self.writer.faults[:3]))
            raise DataError(
                f"{self.writer.rejected} rows are broken: {first}",
                hint="--keep-going leaves them out and lists them in rejected.jsonl",
            )

    def _said(self, text: str) -> str:
        return text if self.hidden == () else redact(text, self.hidden)[0]

    def _may_show(self, row: Row) -> bool:
        """Whether a row's old text may be kept: not, if it is what was to be removed."""
        return self.hidden == () or not redact_conversation(row.before, self.hidden)[1]
