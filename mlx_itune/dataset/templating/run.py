"""A file or folder of raw rows -> a data folder of rendered examples, streamed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.importing.folder import FolderWriter
from mlx_itune.dataset.importing.inputs import find_inputs
from mlx_itune.dataset.importing.splitting import Shares, Splitter, position
from mlx_itune.dataset.templating.outcome import Outcome, TaskCount
from mlx_itune.dataset.templating.raw import RawFile, read_raw
from mlx_itune.dataset.templating.render import (
    Draft,
    Rendered,
    Renderer,
    Settings,
    conversation_of,
    finish,
)
from mlx_itune.dataset.templating.shots import Measure
from mlx_itune.dataset.templating.tasks import Task
from mlx_itune.kit.errors import UsageError

# Prompts measured together, so that the tokenizer works on many at once.
_BATCH = 256
_BATCH_CHARS = 1 << 21

# (stage, bytes done, bytes in all)
OnBytes = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to render and how. `shares` cuts files that have no split of their own.

    `columns` names the columns of tables without a header. With `keep_going`, rows that cannot be
    rendered are recorded and left out; without it they are an error.
    """

    files: tuple[RawFile, ...]
    tasks: tuple[Task, ...]
    settings: Settings
    shares: Shares | None = None
    columns: tuple[str, ...] = ()
    keep_going: bool = False


class _Pending(NamedTuple):
    draft: Draft
    origin: str
    split: str
    source: str


def run(
    plan: Plan,
    out: Path,
    *,
    measure: Measure | None = None,
    recorded: Mapping[str, Any] | None = None,
    on_bytes: OnBytes | None = None,
) -> Outcome:
    """Render `plan` into the data folder `out`. Rows are read again for splits and exemplars.

    `measure` counts tokens, and is needed where exemplars are asked for. `recorded` goes into the
    folder's description and ledger.
    Raises DataError, and writes nothing, for rows that cannot be rendered (unless `keep_going`)
    and where no example is left.
    """
    if plan.settings.wants_exemplars and measure is None:
        raise UsageError("few-shot prompts need a tokenizer that measures their budget")
    return _Run(plan, out, measure, recorded or {}, on_bytes).run()


class _Run:
    def __init__(
        self,
        plan: Plan,
        out: Path,
        measure: Measure | None,
        recorded: Mapping[str, Any],
        on_bytes: OnBytes | None,
    ) -> None:
        self._plan = plan
        self._out = out
        self._measure = measure
        self._recorded = recorded
        self._tell = on_bytes or (lambda stage, done, total: None)
        self._renderers = [Renderer(task, plan.settings) for task in plan.tasks]
        columns = {column for task in plan.tasks for column in task.fields.values()}
        self._columns = sorted(columns)
        self._splitter: Splitter | None = None
        self._outcome = Outcome(tasks={task.name: TaskCount() for task in plan.tasks})
        self._faulty: Counter[Path] = Counter()
        self._pending: list[_Pending] = []
        self._pending_chars = 0

    def run(self) -> Outcome:
        plan, outcome = self._plan, self._outcome
        inputs = find_inputs([item.path for item in plan.files])
        self._about: dict[str, dict[str, Any]] = {file.label: {} for file in inputs.files}
        self._writer = FolderWriter(
            self._out,
            "render",
            inputs,
            settings={**asdict(plan.settings), **self._recorded},
            about=self._about,
        )
        self._plan_splits()
        if plan.settings.wants_exemplars:
            self._fill_pools()
        with self._writer as writer:
            self._write()
            self._flush()
            if outcome.rejected and not plan.keep_going:
                raise outcome.refusal()
            if not outcome.examples:
                raise outcome.nothing_left()
            outcome.describe(self._renderers)
            writer.description["render"] = {
                "rows": outcome.rows,
                "examples": outcome.examples,
                "rejected": outcome.rejected,
                "dropped": outcome.dropped,
                "tasks": outcome.tables,
            }
        outcome.splits = {split: count for split, count in writer.counts.items() if count}
        outcome.ledger = writer.entry["hash"]
        return outcome

    def _rows(
        self, stage: str, files: Sequence[RawFile]
    ) -> Iterator[tuple[RawFile, int, dict[str, Any] | Fault]]:
        total = sum(item.path.stat().st_size for item in files)
        done = 0

        def on_bytes(more: int) -> None:
            nonlocal done
            done += more
            self._tell(stage, min(done, total - 1), total)

        for item in files:
            for record in read_raw(item, self._plan.columns, on_bytes):
                if isinstance(record, Fault):
                    yield item, record.line, record
                else:
                    yield item, record.line, record.value
        self._tell(stage, total, total)

    def _plan_splits(self) -> None:
        """A first reading, so that a split that was asked for is not empty on small data."""
        if self._plan.shares is None:
            return
        self._splitter = survey = Splitter(self._plan.shares)
        for item, _, row in self._rows("split", self._plan.files):
            if not isinstance(row, Fault):
                self._split(item, row)
        self._splitter = Splitter(self._plan.shares, survey.missing())

    def _split(self, item: RawFile, row: Mapping[str, Any]) -> str:
        """The split of a row: its file's, or by a hash of its fields in any case and spacing."""
        if item.split is not None:
            return item.split
        if self._splitter is None:
            return "train"
        texts = [" ".join(str(row.get(c, "")).casefold().split()) for c in self._columns]
        name = json.dumps(texts).encode()
        return self._splitter.choose(position(name, self._plan.settings.seed))

    def _fill_pools(self) -> None:
        """Training rows into the pools; then rows of the other splits out of them."""
        train = [item for item in self._plan.files if item.split in (None, "train")]
        for item, _, row in self._rows("exemplars", train):
            if not isinstance(row, Fault) and self._split(item, row) == "train":
                for renderer in self._renderers:
                    with suppress(RowFault):
                        renderer.pool.add(renderer.values(row))
        others = [item for item in self._plan.files if item not in train]
        for _, _, row in self._rows("held out", others) if others else ():
            if not isinstance(row, Fault):
                for renderer in self._renderers:
                    with suppress(RowFault):
                        renderer.pool.remove(renderer.values(row))

    def _write(self) -> None:
        outcome = self._outcome
        per_file: Counter[Path] = Counter()
        for item, line, row in self._rows("render", self._plan.files):
            outcome.rows += 1
            per_file[item.path] += 1
            if isinstance(row, Fault):
                self._reject(row)
                continue
            try:
                drafts = [
                    draft
                    for renderer in self._renderers
                    for draft in renderer.drafts(renderer.values(row))
                ]
            except RowFault as fault:
                self._reject(fault.at(str(item.path), line))
                continue
            if outcome.rejected and not self._plan.keep_going:
                continue
            split = self._split(item, row)
            source = row.get("source")
            if not isinstance(source, str) or not source.strip():
                source = self._writer.label(str(item.path))
            origin = f"{item.path}:{line}"
            for draft in drafts:
                self._pending.append(_Pending(draft, origin, split, source))
                self._pending_chars += len(draft.prompt)
                if draft.few is not None:
                    self._pending_chars += sum(map(len, draft.few.exemplars))
            if len(self._pending) >= _BATCH or self._pending_chars >= _BATCH_CHARS:
                self._flush()
        for path, rows in per_file.items():
            faulty = self._faulty[path]
            # One row gives several examples, and the folder counts rows.
            about = self._about[self._writer.label(str(path))]
            about |= {"rows": rows, "accepted": rows - faulty, "rejected": faulty}

    def _flush(self) -> None:
        pending, self._pending, self._pending_chars = self._pending, [], 0
        drafts = [one.draft for one in pending]
        budget = self._plan.settings.shot_budget_tokens
        examples = finish(drafts, budget, self._measure or (lambda texts: [0] * len(texts)))
        for one, example in zip(pending, examples, strict=True):
            self._put(one, example)

    def _put(self, one: _Pending, example: Rendered) -> None:
        conversation = conversation_of(example, one.origin, one.source)
        self._outcome.count(example)
        if example.is_dropped:
            self._writer.remove(
                conversation,
                "no-exemplar",
                f"{example.shots_asked} exemplars asked for, none fits the budget",
                show=False,
            )
            return
        self._writer.add(one.split, conversation)

    def _reject(self, fault: Fault) -> None:
        self._outcome.reject(fault)
        self._faulty[Path(fault.file)] += 1
        if self._plan.keep_going:
            self._writer.reject(fault)
