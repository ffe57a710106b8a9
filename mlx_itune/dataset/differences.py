"""Two data sets beside each other: rows that came, went, or have another answer now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.importing.first_look import by_looks
from mlx_itune.dataset.importing.provenance import ORIGIN, content_hash, read_dataset
from mlx_itune.dataset.sources import split_paths
from mlx_itune.kit.errors import DataError


@dataclass(frozen=True)
class Change:
    """One row: where it was and where it is, None where it is not there."""

    kind: Literal["added", "removed", "edited", "moved"]
    before: str | None
    after: str | None
    asked: str
    was: str | None = None
    now: str | None = None


@dataclass(frozen=True)
class Diff:
    """Rows of `a` and `b`; `same` are in both. moved: to another split, among the same. edited: of
    the same origin, or the same question, with another text. faults: rows that could not be
    read."""

    a: str
    b: str
    rows_a: int
    rows_b: int
    same: int
    moved: int
    added: int
    removed: int
    edited: int
    faults: int
    changes: tuple[Change, ...]


def diff(a: Path | str, b: Path | str, *, listed: int = 20) -> Diff:
    """What changed from data set a to b, by what rows say; at most so many changes are listed.
    Raises DataError, StorageError."""
    a, b = Path(a), Path(b)
    before, faults_a = _rows(a)
    after, faults_b = _rows(b)
    changes: list[Change] = []
    left_a, left_b = dict(before), dict(after)
    same = moved = 0
    for key in before.keys() & after.keys():
        was, now = before[key], after[key]
        both = min(len(was), len(now))
        same += both
        splits = Counter(_split(row) for row in was) - Counter(_split(row) for row in now)
        moved += min(both, splits.total())
        if splits and len(changes) < listed:
            changes.append(Change("moved", _place(was[0]), _place(now[0]), _asked(was[0])))
        left_a[key], left_b[key] = was[both:], now[both:]
    gone = [row for rows in left_a.values() for row in rows]
    came = [row for rows in left_b.values() for row in rows]
    pairs, gone, came = _paired(gone, came)
    for kind, rows in (
        ("edited", pairs),
        ("removed", [(row, None) for row in gone]),
        ("added", [(None, row) for row in came]),
    ):
        for old, new in rows[:listed]:
            changes.append(_change(kind, old, new))  # type: ignore[arg-type]
    return Diff(
        *(str(a), str(b), sum(map(len, before.values())), sum(map(len, after.values()))),
        *(same, moved, len(came), len(gone), len(pairs), faults_a + faults_b),
        changes=tuple(changes),
    )


@dataclass(frozen=True)
class Version:
    """A step of a data set's history, as its folder records it. folder: where it is, if it is one
    of those that were asked about; of: the seals of the steps that it read."""

    seal: str
    command: str
    created: str
    operator: str
    rows: Mapping[str, int]
    removed: int
    changed: int
    rejected: int
    inputs: tuple[str, ...]
    of: tuple[str, ...]
    folder: str | None = None


def versions(folders: list[Path]) -> list[Version]:
    """The steps that made these data folders, each once, the oldest first. Raises DataError for a
    folder without a record."""
    found: dict[str, Version] = {}
    for folder in folders:
        record = read_dataset(folder)
        if record is None:
            hint = "`mlx-itune data import` makes folders with one"
            raise DataError("has no record of its history", where=str(folder), hint=hint)
        made_by = {digest: step.seal for step in record.steps for digest in step.outputs.values()}
        for step in record.steps:
            version = Version(
                seal=step.seal,
                command=step.command,
                created=step.created,
                operator=step.operator,
                rows=step.counts,
                removed=sum(step.removed.values()),
                changed=sum(step.changed.values()),
                rejected=step.rejected,
                inputs=tuple(step.inputs),
                of=tuple(dict.fromkeys(made_by[d] for d in step.inputs.values() if d in made_by)),
            )
            known = found.setdefault(step.seal, version)
            if step.seal == record.seal and known.folder is None:
                found[step.seal] = replace(known, folder=str(folder))
    return sorted(found.values(), key=lambda version: version.created)


def _rows(data: Path) -> tuple[dict[int, list[Conversation]], int]:
    """Rows by what they say, each tagged with its split; and how many could not be read."""
    found: dict[int, list[Conversation]] = {}
    faults = 0
    for split, path in split_paths(data).items():
        for row in by_looks([path], Reading())[0]:
            if isinstance(row, Fault):
                faults += row.severity == "error"
                continue
            tagged = replace(row, tags={**row.tags, "": split.partition("/")[0]}, checked=True)
            found.setdefault(content_hash(row), []).append(tagged)
    return found, faults


def _paired(
    gone: list[Conversation], came: list[Conversation]
) -> tuple[list[tuple[Conversation, Conversation]], list[Conversation], list[Conversation]]:
    """Pairs of the same origin, then of the same question; and what is left of both."""
    pairs: list[tuple[Conversation, Conversation]] = []
    for sign in (lambda row: row.tags.get(ORIGIN), _asked):
        waiting: dict[str, list[Conversation]] = {}
        for row in gone:
            if key := sign(row):
                waiting.setdefault(key, []).append(row)
        left: list[Conversation] = []
        for row in came:
            found = waiting.get(sign(row) or "")
            if found:
                pairs.append((found.pop(0), row))
            else:
                left.append(row)
        taken = {id(old) for old, _ in pairs}
        gone, came = [row for row in gone if id(row) not in taken], left
    return pairs, gone, came


def _change(
    kind: Literal["added", "removed", "edited"], old: Conversation | None, new: Conversation | None
) -> Change:
    some = new or old
    assert some is not None
    return Change(
        kind,
        _place(old) if old else None,
        _place(new) if new else None,
        _asked(some),
        old.turns[-1].content if old else None,
        new.turns[-1].content if new else None,
    )


def _split(row: Conversation) -> str:
    return row.tags[""]


def _place(row: Conversation) -> str:
    return Path(row.origin).name


def _asked(row: Conversation) -> str:
    """All turns but the last answer."""
    return "\n\n".join(turn.content for turn in row.turns[:-1])
