"""A file or folder of raw rows -> a data folder of rendered examples, streamed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Fault, RowFault, fault_at
from mlx_itune.dataset.importing.folder import FolderWriter, new_folder, refuse_place
from mlx_itune.dataset.importing.inputs import InputFile, Inputs, Tell, find_inputs
from mlx_itune.dataset.importing.provenance import ORIGIN, SPLITS
from mlx_itune.dataset.importing.select import Splitter, parse_shares, position
from mlx_itune.dataset.reading import kind_by_name, read_records
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.dataset.templating.render import Example, Measure, Renderer, cell, fit, values_of
from mlx_itune.dataset.templating.tasks import Task, TemplateWarning, lint, load_tasks
from mlx_itune.kit.errors import DataError, UsageError, located
from mlx_itune.kit.files import sha256_file
from mlx_itune.kit.settings import asked_for
from mlx_itune.kit.wording import known

# Prompts measured together, so that the tokenizer works on many at once.
_BATCH = 256
_FAULTS_SHOWN = 3

Row = dict[str, Any]


@dataclass
class Rendering:
    """What came of it. `dropped` counts examples that asked for exemplars and could keep none.
    `tasks` has the shares of templates and kinds; `ledger` is the new folder's seal."""

    out: str
    rows: int = 0
    examples: int = 0
    rejected: int = 0
    dropped: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[TemplateWarning] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ledger: str = ""


def render_rows(
    source: Path,
    templates: Path,
    out: Path,
    plan: RenderPlan,
    *,
    measure: Measure | None = None,
    tell: Tell = lambda stage, total: lambda more: None,
) -> Rendering:
    """Render the rows of `source` through a task file into the data folder `out`. `measure` counts
    tokens, for exemplars. Raises DataError, and writes nothing, for rows that cannot be rendered
    (unless `keep_going`) and where no example is left."""
    tasks = load_tasks(templates)
    if plan.task:
        by_name = {task.name: task for task in tasks}
        with located(templates):
            chosen = dict.fromkeys(known("task", name, by_name) for name in plan.task)
            tasks = tuple(map(by_name.__getitem__, chosen))
    result = Rendering(str(out), warnings=lint(tasks))
    inputs = find_inputs([source])
    files = [replace(file, split=None) for file in inputs.files]
    if source.is_dir() and inputs.has_splits:
        if plan.split:
            raise UsageError(f"{source} has splits of its own", hint="leave out --split")
        files = [file for split in SPLITS for file in inputs.files if file.split == split]
        for file in inputs.files:
            if file.split is None:
                result.notes.append(f"{file.path.name} is no split of {source} and is left out")
    inputs = replace(inputs, files=tuple(files))
    refuse_place(out, inputs)
    job = _Rendering(tasks, plan, inputs, measure, tell)
    job.survey()
    settings = {
        **asked_for(plan),
        "templates": templates.name,
        "templates_sha256": sha256_file(templates),
        "task": [task.name for task in tasks],
    }
    with new_folder(out, "render", inputs, settings=settings) as folder:
        job.write(folder, result)
        counted = ("rows", "examples", "rejected", "dropped", "tasks")
        folder.shares = {"render": {key: getattr(result, key) for key in counted}}
    result.splits, result.ledger = folder.record.counts, folder.record.seal
    return result


# An example with its row's origin, its split and its tags.
_Pending = tuple[Example, str, str, dict[str, str]]


class _Rendering:
    def __init__(
        self,
        tasks: Sequence[Task],
        plan: RenderPlan,
        inputs: Inputs,
        measure: Measure | None,
        tell: Tell,
    ) -> None:
        self._plan, self._files, self._tell = plan, inputs.files, tell
        self._measure = measure or (lambda texts: [0] * len(texts))
        self._renderers = [Renderer(task, plan) for task in tasks]
        self._columns = sorted({column for task in tasks for column in task.columns.values()})
        self._splitter = Splitter(parse_shares(plan.split)) if plan.split else None
        self._used: Counter[tuple[str, int]] = Counter()
        self._shots: dict[str, Counter[int]] = {task.name: Counter() for task in tasks}
        self._dropped: Counter[str] = Counter()

    def survey(self) -> None:
        """Read ahead: so that no split that was asked for stays empty; exemplars."""
        if self._splitter:
            for file, _, row in self._rows("split", self._files):
                if not isinstance(row, Fault):
                    self._split(file, row)
                if self._splitter.is_full:
                    break
            self._splitter.fill()
        if not self._plan.wants_exemplars:
            return
        train = [file for file in self._files if file.split in (None, "train")]
        others = [file for file in self._files if file not in train]
        for stage, files in (("exemplars", train), ("held out", others)):
            for file, _, row in self._rows(stage, files):
                if isinstance(row, Fault) or (files is train and self._split(file, row) != "train"):
                    continue
                for renderer in self._renderers:
                    # However a row of another split is spelled, no prompt shows it.
                    take = renderer.pool.add if files is train else renderer.pool.remove
                    with suppress(RowFault):
                        take(values_of(renderer.task, row))

    def write(self, folder: FolderWriter, result: Rendering) -> None:
        """Fill the folder. Raises DataError where it is not to be."""
        pending: list[_Pending] = []
        for file, origin, row in self._rows("render", self._files):
            if isinstance(row, Fault) and row.severity != "error":
                folder.reject(row)
                continue
            result.rows += 1
            try:
                if isinstance(row, Fault):
                    raise RowFault(row.code, row.message, row.hint)
                examples = [
                    example
                    for renderer in self._renderers
                    for example in renderer.examples(values_of(renderer.task, row))
                ]
            except RowFault as reason:
                folder.reject(fault_at(origin, reason.code, reason.message, reason.hint))
                continue
            source = row.get("source")
            named = isinstance(source, str) and source.strip()
            tags = {"source": str(source) if named else file.source.path}
            if file.parent and ORIGIN in row:
                tags[ORIGIN] = str(row[ORIGIN])
            split = self._split(file, row)
            pending += [(example, origin, split, tags) for example in examples]
            if len(pending) >= _BATCH:
                self._flush(folder, pending)
        self._flush(folder, pending)
        result.faults, result.rejected = folder.faults, folder.rejected
        result.dropped, result.examples = self._dropped.total(), self._used.total()
        if (result.rejected and not self._plan.keep_going) or not result.examples:
            raise _refusal(result)
        result.tasks = [self._table(renderer) for renderer in self._renderers]

    def _rows(
        self, stage: str, files: Sequence[InputFile]
    ) -> Iterator[tuple[InputFile, str, Row | Fault]]:
        """The rows of files with their addresses. Raises DataError where --columns misfits."""
        on_bytes = self._tell(stage, sum(file.path.stat().st_size for file in files))
        names = self._plan.column_names
        for file in files:
            if names and kind_by_name(file.path) not in ("csv", "tsv", "xlsx"):
                message, hint = "is no table without a header", "--columns is for CSV, TSV and XLSX"
                raise DataError(message, where=str(file.path), hint=hint)
            header = False if names else None
            for record in read_records(file.path, header=header, on_bytes=on_bytes):
                if isinstance(record, Fault):
                    yield file, record.where, record
                    continue
                row, origin = record.value, record.origin(str(file.path))
                if names:
                    cells = list(row.values())
                    if len(cells) != len(names):
                        message = f"has {len(cells)} columns, and --columns names {len(names)}"
                        raise DataError(message, where=origin)
                    if cells == list(names):
                        continue
                    row = dict(zip(names, cells, strict=True))
                yield file, origin, row

    def _split(self, file: InputFile, row: Row) -> str:
        """The split of a row: its file's, or by a hash of its fields in any case and spacing."""
        if file.split is not None:
            return file.split
        if self._splitter is None:
            return "train"
        texts = [" ".join(str(cell(row, c)).casefold().split()) for c in self._columns]
        name = json.dumps(texts).encode()
        return self._splitter.choose(position(name, self._plan.seed))

    def _flush(self, folder: FolderWriter, pending: list[_Pending]) -> None:
        fit([example for example, *_ in pending], self._plan.shot_budget, self._measure)
        for example, origin, split, tags in pending:
            name, row = example.task.name, example.conversation(origin, tags)
            if example.is_dropped:
                self._dropped[name] += 1
                detail = f"{example.asked} exemplars asked for, none fits the budget"
                folder.remove(row, "no-exemplar", detail, show=False)
            else:
                self._used[name, example.template] += 1
                self._shots[name][len(example.exemplars)] += 1
                folder.add(split, row)
        pending.clear()

    def _table(self, renderer: Renderer) -> dict[str, Any]:
        """One task's shares: of each template, kind and number of shots."""
        task, shots = renderer.task, self._shots[renderer.task.name]
        templates: list[dict[str, Any]] = [
            {
                "template": index,
                "kind": template.kind,
                "requested": renderer.shares[index],
                "achieved": self._used[task.name, index] / max(shots.total(), 1),
            }
            for index, template in enumerate(task.template)
        ]
        kinds: dict[str, dict[str, float]] = {
            kind: {"requested": 0.0, "achieved": 0.0} for kind in ("normal", "inverse")
        }
        for each in templates:
            for key, share in kinds[each["kind"]].items():
                kinds[each["kind"]][key] = share + each[key]
        return {
            "task": task.name,
            "examples": shots.total(),
            "dropped": self._dropped[task.name],
            "templates": templates,
            "kinds": kinds,
            "shots": {str(count): shots[count] for count in sorted(shots)},
        }


def _refusal(result: Rendering) -> DataError:
    if result.rejected:
        shown = [str(fault) for fault in result.faults[:_FAULTS_SHOWN]]
        shown += ["..."] if result.rejected > _FAULTS_SHOWN else []
        what = f"{result.rejected} of {result.rows} rows cannot be rendered: {' | '.join(shown)}"
        return DataError(what, hint="correct them, or leave them out with --keep-going")
    if not result.rows:
        return DataError("no example is left: there are no rows")
    what = f"no example is left: {result.dropped} asked for exemplars and could keep none"
    return DataError(what, hint="use a larger --shot-budget, more rows, or 0 among --shots")
