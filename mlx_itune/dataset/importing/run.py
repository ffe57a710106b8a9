"""`data import` from end to end: read, select, mix, split, write."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.importing.folder import GIVEN_ORIGIN, FolderWriter, new_folder, refuse_place
from mlx_itune.dataset.importing.inputs import InputFile, Inputs, Tell, find_inputs
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.dataset.importing.provenance import ORIGIN, SourceRecord, content_hash
from mlx_itune.dataset.importing.select import (
    Groups,
    Splitter,
    drawn,
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

_VALUES_SHOWN = 8


@dataclass
class Imported:
    """What came of it. `written` is False when faults (strict) or no good row forbade it.

    `faults` are the first of each kind, warnings included; `told`: what is not learned; `ledger` is
    the new folder's seal.
    """

    out: str
    written: bool = False
    rows: int = 0
    accepted: int = 0
    rejected: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, Mapping[str, Any]] | None = None
    mix: Mapping[str, Mapping[str, float]] | None = None
    sources: Sequence[SourceRecord] = ()
    faults: list[Fault] = field(default_factory=list)
    told: Account = field(default_factory=Account)
    notes: list[str] = field(default_factory=list)
    ledger: str | None = None


class _NothingWritten(Exception):
    pass


def import_rows(
    sources: Sequence[str],
    out: Path,
    plan: ImportPlan,
    *,
    ask: Callable[[str], str] | None = None,
    tell: Tell = lambda stage, total: lambda more: None,
) -> Imported:
    """Write the data folder `out` as planned; rows are streamed, again where a choice needs it.
    `ask` is asked for unknown licences. Raises DataError, UsageError for tags that are not
    there."""
    inputs = find_inputs(sources, plan.name)
    licences = plan.licences(inputs.licences())
    for name, known in inputs.licences().items():
        if ask and not known and not licences[name]:
            licences[name] = ask(name).strip()
    refuse_place(out, inputs)
    job = _Import(plan, inputs, tell)
    job.survey()
    job.survey_splits()
    result = Imported(str(out))
    settings = asked_for(replace(plan, licence=(), operator=None))
    try:
        with new_folder(
            out, "import", inputs, settings=settings, operator=plan.operator, licences=licences
        ) as folder:
            job.write(folder, result)
    except _NothingWritten:
        return result
    record = folder.record
    result.written, result.ledger = True, record.seal
    result.splits, result.left_out, result.sources = record.counts, record.left_out, record.sources
    return result


class _Import:
    def __init__(self, plan: ImportPlan, inputs: Inputs, tell: Tell) -> None:
        self._plan, self._inputs, self._tell = plan, inputs, tell
        self._where = [parse_where(text) for text in plan.where]
        self._how, self._rates = plan.reading, plan.rates
        self._splitter = Splitter(parse_shares(plan.split)) if plan.split else None
        self._groups = Groups(plan.group_by) if plan.group_by else None
        self._mixes = plan.cap is not None or self._rates is not None
        self._mix: dict[str, float] | None = None
        # Of each pot the contents that are drawn, and how many rows of them are left to take.
        self._drawn: dict[str, Counter[int]] = {}
        self._left: dict[str, Counter[int]] = {}
        self._sizes: Counter[str] = Counter()

    def survey(self) -> None:
        """A first reading, where it takes one to know how many rows of which source and group."""
        plan = self._plan
        samples = plan.sample is not None or self._mixes
        if not samples and not self._groups:
            return
        seen: dict[str, array[int]] = {}
        for _, row in self._rows("survey"):
            if isinstance(row, Fault) or not self._is_wanted(row):
                continue
            source, content = self._pot(row), content_hash(row)
            self._sizes[source] += 1
            if samples:
                seen.setdefault(source, array("Q")).append(content)
            if self._groups:
                self._groups.see(row, content)
        if self._groups and self._sizes and not self._groups.is_tagged:
            raise UsageError(f"no row has a tag {plan.group_by!r} to group by")
        wanted = self._quotas() if samples and self._sizes else {}
        for source, contents in seen.items():
            self._drawn[source] = drawn(contents, wanted[source], plan.seed)

    def _quotas(self) -> dict[str, int]:
        plan = self._plan
        sizes = {name: self._sizes[name] for name in sorted(self._sizes)}
        if not self._mixes:
            return {name: min(rows, plan.sample or 0) for name, rows in sizes.items()}
        shares = self._mix = mix(sizes, cap=plan.cap, weights=self._rates)
        if plan.cap is not None and plan.sample is None:
            return {name: min(rows, plan.cap) for name, rows in sizes.items()}
        # As many rows as keep the shares without taking any row twice.
        most = round(min(sizes[name] / share for name, share in shares.items() if share))
        wanted = quotas(shares, most if plan.sample is None else min(plan.sample, most))
        return {name: min(rows, sizes[name]) for name, rows in wanted.items()}

    def survey_splits(self) -> None:
        splitter = self._splitter
        if not splitter:
            return
        for _, row in self._rows("split"):
            if isinstance(row, Fault) or not self._is_wanted(row):
                continue
            content = content_hash(row)
            if self._takes(row, content):
                self._split(splitter, row, content)
            if splitter.is_full and not self._plan.stratify:
                break
        splitter.fill()

    def write(self, folder: FolderWriter, result: Imported) -> None:
        """Fill the folder. Raises _NothingWritten where it is not to be."""
        plan = self._plan
        values: dict[str, dict[str, None]] = {key: {} for key, *_ in self._where}
        written: Counter[str] = Counter()
        splitter, keeps_splits = self._splitter, self._inputs.has_splits
        for file, row in self._rows("import"):
            if isinstance(row, Fault):
                folder.reject(row)
                continue
            result.accepted += 1
            if not self._is_wanted(row):
                for key, seen in values.items():
                    if key in row.tags and len(seen) < _VALUES_SHOWN:
                        seen.setdefault(row.tags[key])
                folder.leave_out(row, "where")
                continue
            content = content_hash(row)
            if not self._takes(row, content):
                folder.leave_out(row, "mix" if self._mixes else "sample")
                continue
            split = file.split if keeps_splits and file.split else "train"
            if splitter:
                split = self._split(splitter, row, content)
            if ORIGIN in row.tags and file.parent is None:
                result.notes = [f"the rows' own field {ORIGIN!r} is kept as {GIVEN_ORIGIN!r}"]
            folder.add(split, row)
            written[row.tags["source"]] += 1
        result.faults, result.rejected = folder.faults, folder.rejected
        result.rows, result.told = result.accepted + result.rejected, self._how.told
        is_refused = plan.strict and (result.rejected or result.told.unlearned)
        if is_refused or not result.accepted:
            raise _NothingWritten
        if not written:
            sources = ", ".join(sorted({file.source.name for file in self._inputs.files}))
            raise DataError(self._nothing_fits(values), where=sources)
        if self._mix:
            result.mix = {
                "requested": self._mix,
                "achieved": {name: written[name] / written.total() for name in self._mix},
                "available": dict(self._sizes),
            }
        if splitter:
            if plan.stratify and splitter.counts.keys() == {""}:
                raise UsageError(f"no row has a tag {plan.stratify!r} to stratify by")
            result.split = splitter.described(strata=plan.stratify is not None)
        result.notes += self._notes(result, written.total())
        folder.shares = {"split": result.split, "mix": result.mix}

    def _rows(self, stage: str) -> Iterator[tuple[InputFile, Conversation | Fault]]:
        """Every row of every file from the first on, good ones with a `source` tag."""
        self._left = {source: rows.copy() for source, rows in self._drawn.items()}
        on_bytes = self._tell(stage, sum(file.path.stat().st_size for file in self._inputs.files))
        self._how.told.again()
        for file in self._inputs.files:
            for row in read_rows(file.path, how=self._how, on_bytes=on_bytes):
                if isinstance(row, Conversation) and "source" not in row.tags:
                    tags = {**row.tags, "source": file.source.name}
                    row = Conversation(row.turns, row.origin, row.tools, tags, checked=True)
                yield file, row

    def _is_wanted(self, row: Conversation) -> bool:
        # A missing tag equals nothing.
        return all((row.tags.get(key) == value) is equal for key, value, equal in self._where)

    def _pot(self, row: Conversation) -> str:
        """What a row is drawn from: its source if sources are mixed, else all rows."""
        return row.tags["source"] if self._mixes else ""

    def _takes(self, row: Conversation, content: int) -> bool:
        if not self._drawn:
            return True
        left = self._left[self._pot(row)]
        if not left[content]:
            return False
        left[content] -= 1
        return True

    def _split(self, splitter: Splitter, row: Conversation, content: int) -> str:
        plan = self._plan
        name = self._groups.of(content) if self._groups else content
        stratum = row.tags.get(plan.stratify, "") if plan.stratify else ""
        return splitter.choose(position(name.to_bytes(8, "big"), plan.seed), stratum)

    def _nothing_fits(self, values: dict[str, dict[str, None]]) -> str:
        if not self._where:
            return "no row is left to write"
        found = [
            f"{key} is {', '.join(map(repr, seen))}" if seen else f"no row has a tag {key!r}"
            for key, seen in values.items()
        ]
        return f"no row with {' and '.join(self._plan.where)} ({'; '.join(found)})"

    def _notes(self, result: Imported, rows: int) -> Iterator[str]:
        sample = self._plan.sample
        if self._splitter and (moved := len(self._splitter.moved)):
            what = count(moved, "row or group", "rows or groups")
            yield f"{what} moved so that no split is empty"
        if self._splitter and self._inputs.has_splits:
            yield "--split cut the sources anew; the splits they had are not kept"
        if result.mix:
            asked, came = result.mix["requested"], result.mix["achieved"]
            off = max(abs(asked[name] - came[name]) for name in asked)
            if off > 0.01:
                yield f"a source's share is {100 * off:.1f} points off what was asked"
        if sample is not None and rows < sample:
            why = "more would change the mixture" if self._mix else "there are no more"
            yield f"{rows:,} rows, not {sample:,}: {why}"
