"""`data clean` from end to end: rows through the chosen steps into a new data folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_itune.dataset.checking.check import split_of
from mlx_itune.dataset.cleaning.outcome import Changed, Dropped
from mlx_itune.dataset.cleaning.pii import redact, redact_conversation
from mlx_itune.dataset.cleaning.rows import Row, RowReader, refusal_of
from mlx_itune.dataset.cleaning.steps import MENDING, Step, StepOptions, make_steps
from mlx_itune.dataset.cleaning.whole import WholeStep
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.folder import FolderWriter, new_folder
from mlx_itune.kit.errors import DataError

FAULTS_KEPT = 50
# Of two equal rows the held-out one stays: training rows are taken out of the evaluation's way.
_ORDER = {"test": 0, "valid": 1, "train": 2}


@dataclass
class Cleaned:
    """What came in and what came out: rows = kept + removed + rejected.

    Of each step the rows in, kept, changed and removed: in = kept + removed.
    """

    rows: int = 0
    kept: int = 0
    changed: int = 0
    removed: int = 0
    rejected: int = 0
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    duplicate_sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    ledger: str = ""


def clean(
    sources: Sequence[Path],
    out: Path,
    names: Sequence[str],
    options: StepOptions,
    *,
    reader: RowReader | None = None,
    keep_going: bool = False,
    settings: Mapping[str, Any] | None = None,
    operator: str | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Cleaned:
    """Run the steps over every row of `sources` and write the data folder `out`.

    Raises DataError for broken rows unless `keep_going`, and when no row is left; UsageError for
    an unknown step.
    """
    steps = make_steps(names, options)
    # Rows are legal from the last step on that mends them.
    last = max((at for at, name in enumerate(names, 1) if name in MENDING), default=0)
    reader = replace(reader or RowReader(), mend=last > 0)
    with new_folder(out, "clean", sources, settings=settings, operator=operator) as writer:
        hidden = options.kinds if "pii" in names else ()
        counts = {name: {"in": 0, "kept": 0, "changed": 0, "removed": 0} for name in names}
        run = _Run(writer, Cleaned(steps=counts), keep_going, hidden)
        rows = run.read(reader, on_bytes)
        for position, (name, step) in enumerate([("", None), *steps]):
            rows = run.through(name, step, rows) if step else rows
            rows = run.legal(rows) if position == last else rows
        for row in rows:
            run.write(row)
        run.refuse_broken()
    for _, step in steps:
        if isinstance(step, WholeStep):
            run.result.duplicate_sources += step.pairs
    run.result.splits = {split: count for split, count in writer.counts.items() if count}
    run.result.ledger = writer.record.seal
    return run.result


@dataclass
class _Run:
    writer: FolderWriter
    result: Cleaned
    keep_going: bool
    # Kinds of personal data that are nowhere to be shown: None for all.
    hidden: Sequence[str] | None

    def read(self, reader: RowReader, on_bytes: Callable[[int], None] | None) -> Iterator[Row]:
        """The rows of every file, held-out splits first."""
        files = [
            (file.split or split_of(file.path) or "train", file.path)
            for file in self.writer.inputs.files
        ]
        for split, path in sorted(files, key=lambda item: _ORDER[item[0]]):
            for item in reader.rows(path, on_bytes):
                self.result.rows += 1
                if isinstance(item, Fault):
                    self.reject(item)
                else:
                    yield Row(split, item, item)
        self.refuse_broken()

    def legal(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that could be trained on; the others are broken ones."""
        for row in rows:
            problem = refusal_of(row.now)
            if problem is None:
                yield row
            else:
                self.reject(problem)

    def through(self, name: str, step: Step, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that a step lets pass, as it leaves them."""
        count = self.result.steps[name]
        told = (
            step.run(rows)
            if isinstance(step, WholeStep)
            else ((row, step(row.now)) for row in rows)
        )
        for row, outcome in told:
            count["in"] += 1
            if isinstance(outcome, Dropped):
                count["removed"] += 1
                self.result.removed += 1
                shown = not self._is_personal(row.before)
                self.writer.remove(row.before, name, self._said(outcome.detail), show=shown)
                continue
            count["kept"] += 1
            if isinstance(outcome, Changed):
                count["changed"] += 1
                row = replace(row, now=outcome.row, notes=(*row.notes, (name, outcome.detail)))
            yield row

    def write(self, row: Row) -> None:
        """Add a row to its split."""
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
            show_before=not self._is_personal(row.before),
        )

    def reject(self, fault: Fault) -> None:
        """Note a row that cannot be read."""
        if fault.severity != "error":
            self.result.rows -= 1
            return
        self.result.rejected += 1
        fault = replace(fault, message=self._said(fault.message))
        if len(self.result.faults) < FAULTS_KEPT:
            self.result.faults.append(fault)
        self.writer.reject(fault)

    def refuse_broken(self) -> None:
        """Stop, if any row was broken and that was not to be passed over."""
        if self.result.rejected and not self.keep_going:
            first = " | ".join(map(str, self.result.faults[:3]))
            raise DataError(
                f"{self.result.rejected} rows are broken: {first}",
                hint="--keep-going leaves them out and lists them in rejected.jsonl",
            )

    def _said(self, text: str) -> str:
        """What is said of a row, which may quote it."""
        return text if self.hidden == () else redact(text, self.hidden)[0]

    def _is_personal(self, row: Conversation) -> bool:
        """Whether a row's old text may not be shown, because it is what was to be removed."""
        return self.hidden != () and bool(redact_conversation(row, self.hidden)[1])
