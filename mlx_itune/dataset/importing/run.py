"""`data import` from end to end: read, select, mix, split, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.folder import (
    GIVEN_ORIGIN,
    FolderWriter,
    new_folder,
    refuse_place,
)
from mlx_itune.dataset.importing.inputs import InputFile, Inputs, Tell, find_inputs
from mlx_itune.dataset.importing.plan import Imported, ImportPlan
from mlx_itune.dataset.importing.provenance import ORIGIN, content_hash
from mlx_itune.dataset.importing.select import (
    Groups,
    Sampler,
    Splitter,
    mix,
    parse_shares,
    parse_where,
    position,
    quotas,
)
from mlx_itune.dataset.sources import read_rows
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.settings import asked_for
from mlx_itune.kit.wording import count

_FAULTS_KEPT = 50
_VALUES_SHOWN = 8


def import_rows(
    sources: Sequence[str],
    out: Path,
    plan: ImportPlan,
    *,
    ask: Callable[[str], str] | None = None,
    tell: Tell = lambda stage, total: lambda more: None,
) -> Imported:
    """Write the data folder `out` as planned; rows are streamed, twice where a choice needs it.

    `sources` are files, folders and Hub data sets; `ask` is asked for the licence of a source
    that states none. Raises DataError when no row fits, UsageError for tags and sources that are
    not there.
    """
    inputs = find_inputs(sources, plan.name)
    licences = plan.licences(inputs.licences())
    for name, known in inputs.licences().items():
        if ask and not known and not licences[name]:
            licences[name] = ask(name).strip()
    refuse_place(out, inputs)
    job = _Import(plan, inputs, tell)
    job.survey()
    moved: dict[int, str] = {}
    # At most twice.
    while True:
        result = Imported(str(out))
        try:
            with new_folder(
                out,
                "import",
                inputs,
                settings=asked_for(replace(plan, licence=(), operator=None)),
                operator=plan.operator,
                licences=licences,
            ) as folder:
                job.write(folder, result, moved)
        except _Stop as stop:
            if not stop.moved:
                return result
            moved = stop.moved
            continue
        record = folder.record
        return replace(
            result,
            written=True,
            splits=record.counts,
            left_out=record.left_out,
            sources=record.sources,
            ledger=record.seal,
        )


class _Stop(Exception):
    """Nothing is to be written; with `moved`, not yet: a split is empty that small data can fill
    when it is read once more."""

    def __init__(self, moved: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self.moved = dict(moved or {})


class _Import:
    def __init__(self, plan: ImportPlan, inputs: Inputs, tell: Tell) -> None:
        self._plan, self._inputs, self._tell = plan, inputs, tell
        self._where = parse_where(plan.where)
        self._columns, self._rates = plan.columns, plan.rates
        self._shares = parse_shares(plan.split) if plan.split else None
        self._samplers: dict[str, Sampler] = {}
        self._sizes: Counter[str] = Counter()
        self._mix: dict[str, float] | None = None
        self._groups = Groups(plan.group_by) if plan.group_by else None
        self._mixes = plan.cap is not None or self._rates is not None

    def _rows(self, stage: str) -> Iterator[tuple[InputFile, Conversation | Fault]]:
        """Every row of every file, good ones with a `source` tag."""
        plan = self._plan
        total = sum(file.path.stat().st_size for file in self._inputs.files)
        on_bytes = self._tell(stage, total)
        for file in self._inputs.files:
            for row in read_rows(
                file.path,
                format=plan.format,
                columns=self._columns,
                kind=plan.kind,
                on_bytes=on_bytes,
            ):
                if isinstance(row, Conversation) and "source" not in row.tags:
                    tags = {**row.tags, "source": file.name}
                    row = Conversation(row.turns, row.origin, row.tools, tags, checked=True)
                yield file, row

    def _wanted(self, row: Conversation) -> bool:
        return all(condition.holds(row.tags) for condition in self._where)

    def survey(self) -> None:
        """A first reading, where it takes one to know how many rows of which source and group."""
        plan = self._plan
        if plan.sample is None and not self._mixes and not self._groups:
            return
        for _, row in self._rows("survey"):
            if isinstance(row, Fault) or not self._wanted(row):
                continue
            source, content = self._pot(row), content_hash(row)
            self._sizes[source] += 1
            if plan.sample is not None or self._mixes:
                self._samplers.setdefault(source, Sampler(plan.seed)).see(content)
            if self._groups:
                self._groups.see(row, content)
        total = self._sizes.total()
        if self._groups and total and not self._groups.is_tagged:
            raise UsageError(f"no row has a tag {plan.group_by!r} to group by")
        if self._samplers:
            wanted = self._quotas() if self._mixes else {"": plan.sample or 0}
            for source, sampler in self._samplers.items():
                sampler.draw(min(wanted[source], self._sizes[source]))

    def _pot(self, row: Conversation) -> str:
        """What a row is drawn from: its source if sources are mixed, else all rows."""
        return row.tags["source"] if self._mixes else ""

    def _quotas(self) -> dict[str, int]:
        """Rows to take of each source."""
        plan = self._plan
        sizes = {name: self._sizes[name] for name in sorted(self._sizes)}
        shares = self._mix = mix(sizes, cap=plan.cap, weights=self._rates)
        if plan.cap is not None and plan.sample is None:
            return {name: min(rows, plan.cap) for name, rows in sizes.items()}
        # As many rows as keep the shares without taking any row twice.
        most = round(min(sizes[name] / share for name, share in shares.items() if share))
        return quotas(shares, most if plan.sample is None else min(plan.sample, most))

    def write(self, folder: FolderWriter, result: Imported, moved: Mapping[int, str]) -> None:
        """Fill the folder. Raises _Stop where it is not to be written (yet)."""
        plan = self._plan
        splitter = Splitter(self._shares, moved) if self._shares else None
        for sampler in self._samplers.values():
            sampler.rewind()
        keeps_splits = any(file.split == "train" for file in self._inputs.files)
        values: dict[str, dict[str, None]] = {condition.key: {} for condition in self._where}
        written: Counter[str] = Counter()
        for file, row in self._rows("import"):
            if isinstance(row, Fault):
                self._fault(folder, result, row)
                continue
            result.rows += 1
            result.accepted += 1
            if not self._wanted(row):
                for key, seen in values.items():
                    if key in row.tags and len(seen) < _VALUES_SHOWN:
                        seen.setdefault(row.tags[key])
                folder.leave_out(row, "where")
                continue
            content = content_hash(row)
            if self._samplers and not self._samplers[self._pot(row)].take(content):
                folder.leave_out(row, "mix" if self._mixes else "sample")
                continue
            split = file.split if keeps_splits and file.split else "train"
            if splitter:
                name = self._groups.of(content) if self._groups else content
                stratum = row.tags.get(plan.stratify, "") if plan.stratify else ""
                place = position(name.to_bytes(8, "big"), plan.seed)
                split = splitter.choose(place, stratum)
            if ORIGIN in row.tags and file.parent is None:
                note = f"the rows' own field {ORIGIN!r} is kept as {GIVEN_ORIGIN!r}"
                result.notes = [note]
            folder.add(split, row)
            written[row.tags["source"]] += 1
        if (plan.strict and result.rejected) or not result.accepted:
            raise _Stop
        if not written:
            sources = ", ".join(sorted({file.name for file in self._inputs.files}))
            raise DataError(self._nothing(values), where=sources)
        if splitter and plan.stratify and splitter.counts.keys() == {""}:
            raise UsageError(f"no row has a tag {plan.stratify!r} to stratify by")
        if splitter and not moved and (missing := splitter.missing()):
            raise _Stop(missing)
        if self._mix:
            result.mix = {
                "requested": self._mix,
                "achieved": {name: written[name] / written.total() for name in self._mix},
                "available": dict(self._sizes),
            }
        self._describe(folder, result, splitter)

    def _fault(self, folder: FolderWriter, result: Imported, fault: Fault) -> None:
        if fault.severity == "error":
            result.rows += 1
            result.rejected += 1
            folder.reject(fault)
        if sum(kept.severity == fault.severity for kept in result.faults) < _FAULTS_KEPT:
            result.faults.append(fault)

    def _nothing(self, values: dict[str, dict[str, None]]) -> str:
        """Why no row is left."""
        if not self._where:
            return "no row is left to write"
        found = [
            f"{key} is {', '.join(map(repr, seen))}" if seen else f"no row has a tag {key!r}"
            for key, seen in values.items()
        ]
        return f"no row with {' and '.join(map(str, self._where))} ({'; '.join(found)})"

    def _describe(self, folder: FolderWriter, result: Imported, splitter: Splitter | None) -> None:
        plan, rows = self._plan, sum(folder.counts.values())
        if splitter:
            if moved := len(splitter.moved):
                what = count(moved, "row or group", "rows or groups")
                result.notes.append(f"{what} moved so that no split is empty")
            if any(file.split == "train" for file in self._inputs.files):
                result.notes.append(
                    "--split cut the sources anew; the splits they had are not kept"
                )
            result.split = splitter.described(strata=plan.stratify is not None)
        if result.mix:
            asked, came = result.mix["requested"], result.mix["achieved"]
            off = max(abs(asked[name] - came[name]) for name in asked)
            if off > 0.01:
                result.notes.append(
                    f"a source's share is {100 * off:.1f} points off what was asked"
                )
        if plan.sample is not None and rows < plan.sample:
            why = "more would change the mixture" if self._mix else "there are no more"
            result.notes.append(f"{rows:,} rows, not {plan.sample:,}: {why}")
        folder.shares = {"split": result.split, "mix": result.mix}
