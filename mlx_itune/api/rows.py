"""Rows: read, checked, counted, imported and cleaned; what a model would learn of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlx_itune.dataset import sources as row_files
from mlx_itune.dataset.cleaning.plan import CleanPlan
from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.files import refuse_taken, storage_errors, write_new
from mlx_itune.kit.settings import records

if TYPE_CHECKING:
    from mlx_itune.dataset.cleaning.run import Cleaned
    from mlx_itune.dataset.importing.run import Imported
    from mlx_itune.dataset.schema import Inferred
    from mlx_itune.dataset.statistics.stats import Stats
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

# What is told of progress: a stage, and how much of it is done (bytes, of files).
Observe = Callable[[str, int, int], None]
PathLike = str | Path

# Fields of an import's plan that say how files are read.
FORM = "format map roles encoding no_input"
_SPLITS = ("train", "valid", "test")


def read_rows(
    data: PathLike,
    *,
    split: str | None = None,
    on_fault: Callable[[Fault], None] | None = None,
    **how: Any,
) -> Iterator[Conversation]:
    """The conversations of a file of any format, or of a folder, in order, read as they are asked
    for. `split`: of a folder, that one alone. `on_fault`: is told of each row that is none; without
    it the first one raises DataError. `how`: format, map, roles, encoding, no_input, system,
    system_mode. Raises DataError, UsageError, StorageError."""
    (form,) = records(how, (ImportPlan, f"{FORM} system system_mode"))
    files = RowFiles((data,), form)
    if split is not None:
        files.paths = [p for name, p in row_files.split_paths(Path(data)).items() if name == split]
        if not files.paths:
            raise UsageError(f"there is no {split} split", where=str(data))

    def rows() -> Iterator[Conversation]:
        for row in (row for path in files.paths for row in files.read(path)):
            if isinstance(row, Conversation):
                yield row
            elif on_fault:
                on_fault(row)
            elif row.severity == "error":
                raise refusal(row)

    return rows()


@dataclass(frozen=True)
class Repeated:
    """So many rows of the later file are in the earlier one."""

    later: str
    earlier: str
    rows: int


def repeated(sources: Counter[tuple[str, str]]) -> tuple[Repeated, ...]:
    """Rows that were found twice, by (source of the repeat, source of the first)."""
    return tuple(Repeated(*names, rows) for names, rows in sources.most_common())


@dataclass(frozen=True)
class CheckSettings:
    """lints: a list of one's own; schema: a JSON Schema of the answers; strict: warnings, and what
    is not learned, count as errors."""

    lints: Path | None = None
    schema: Path | None = None
    near_duplicates: bool = True
    strict: bool = False


@dataclass(frozen=True)
class Checked:
    """Every fault of every row, warnings included. `ok`: all of it can be trained on. `counts`: of
    faults by code; `told`: what is not learned of the rows, or read otherwise than it stands."""

    ok: bool
    rows: int
    accepted: int
    rejected: int
    warnings: int
    counts: Mapping[str, int]
    duplicate_sources: tuple[Repeated, ...]
    notes: tuple[str, ...]
    told: Account
    faults: tuple[Fault, ...]


def check(
    files: PathLike | Sequence[PathLike], *, observe: Observe | None = None, **how: Any
) -> Checked:
    """Look for everything that is wrong with rows: broken ones, duplicates, near duplicates, leaks
    between splits, lints, answers that break `schema` or the shape of the others; with `model` also
    rows that are too long or have nothing to learn. `how`: lints, schema, near_duplicates, strict;
    model, template, template_option, max_length, learn; format, map, roles, encoding, no_input.
    Raises DataError, UsageError, StorageError."""
    from mlx_itune.dataset.checking.check import Check
    from mlx_itune.dataset.checking.lints import load_lints
    from mlx_itune.dataset.schema import read_schema

    form, about, asked = records(how, (ImportPlan, FORM), AboutTokens, CheckSettings)
    rows = RowFiles(_several(files), form)
    found = Check(
        rows.paths,
        how=rows.how,
        tokenizer=about.tokenizer(),
        learn=about.learn or "all",
        max_length=about.max_length or 2048,
        near_duplicates=asked.near_duplicates,
        lints=load_lints(asked.lints),
        schema=read_schema(asked.schema) if asked.schema else None,
        on_bytes=told_bytes(observe, "check", rows.bytes),
    )
    faults = tuple(found)
    worth_a_look = asked.strict and (found.warnings or found.unlearned)
    return Checked(
        ok=not (found.rejected or not found.accepted or worth_a_look),
        rows=found.rows,
        accepted=found.accepted,
        rejected=found.rejected,
        warnings=found.warnings,
        counts=found.counts,
        duplicate_sources=repeated(found.duplicate_sources),
        notes=tuple(found.notes),
        told=found.how.told,
        faults=faults,
    )


def infer_schema(
    data: PathLike | Sequence[PathLike],
    *,
    out: PathLike | None = None,
    observe: Observe | None = None,
    **how: Any,
) -> Inferred:
    """A JSON Schema of the answers of rows. `out`: a new file for it. `how`: format, map, roles,
    encoding, no_input. Raises DataError where no answer is JSON; UsageError, StorageError."""
    from mlx_itune.dataset.schema import infer

    (form,) = records(how, (ImportPlan, FORM))
    if out is not None:
        refuse_taken(Path(out))
    files = RowFiles(_several(data), form)
    on_bytes = told_bytes(observe, "read", files.bytes)
    found = infer(
        row
        for path in files.paths
        for row in files.read(path, on_bytes)
        if isinstance(row, Conversation)
    )
    if out is not None:
        text = json.dumps(found.schema, ensure_ascii=False, indent=2)
        write_new(Path(out), f"{text}\n".encode())
    return found


def stats(
    data: PathLike | Sequence[PathLike],
    *,
    html: PathLike | None = None,
    observe: Observe | None = None,
    **how: Any,
) -> Stats:
    """What a data set is made of: turns, roles, sources, lengths; with `model` tokens, too. `html`:
    a page with plots, written there. `how`: as `check` takes it, without lints. Raises DataError,
    UsageError, StorageError."""
    from mlx_itune.dataset.statistics.report import stats_page
    from mlx_itune.dataset.statistics.stats import count

    page = new_page(html)
    form, about = records(how, (ImportPlan, FORM), AboutTokens)
    files = RowFiles(_several(data), form)
    on_bytes = told_bytes(observe, "read", files.bytes)
    found = count(
        (
            (path.stem if path.stem in _SPLITS else path.name, files.read(path, on_bytes))
            for path in files.paths
        ),
        tokenizer=about.tokenizer(),
        learn=about.learn or "all",
        max_length_tokens=about.max_length,
    )
    if found is None:
        what = "holds no row that can be read"
        raise DataError(what, where=files.name, hint="see mlx-itune data check")
    if page:
        write_new(page, stats_page(found, data=files.name).encode())
    return found


def import_rows(
    sources: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    ask: Callable[[str], str] | None = None,
    observe: Observe | None = None,
    **settings: Any,
) -> Imported:
    """Files of any format, folders or Hub data sets as one data folder `out`, whole or not at all.
    `ask`: is asked for a licence that is not known. `settings`: those of `data import`, such as
    split="0.9/0.1", where, sample, map, system. Raises DataError, UsageError, StorageError."""
    from mlx_itune.dataset.importing import run

    (plan,) = records(settings, ImportPlan)
    named = [str(source) for source in _several(sources)]
    return run.import_rows(named, Path(out), plan, ask=ask, tell=partial(told_bytes, observe))


def clean(
    sources: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    lints: PathLike | None = None,
    observe: Observe | None = None,
    **settings: Any,
) -> Cleaned:
    """A new data folder `out` without what the steps remove, whole or not at all; every removed and
    changed row is listed in it. `settings`: those of `data clean`, such as preset, steps, pii.
    Raises DataError, UsageError, StorageError."""
    from mlx_itune.dataset.cleaning.run import clean

    form, plan = records(settings, (ImportPlan, FORM), CleanPlan)
    files = RowFiles(_several(sources), form)
    read = partial(
        row_files.read_rows, how=files.how, on_bytes=told_bytes(observe, "clean", files.bytes)
    )
    own = Path(lints) if lints is not None else None
    return replace(
        clean([*map(Path, _several(sources))], Path(out), plan, lints=own, read=read),
        told=files.how.told,
    )


@dataclass(frozen=True)
class AboutTokens:
    """A model, and what has no effect without it."""

    model: str | None = None
    template: str | None = None
    max_length: int | None = None
    learn: Literal["all", "last", "marked"] | None = None
    template_option: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        told = self.template or self.max_length or self.learn or self.template_option
        if told and not self.model:
            what = "--template, --template-option, --max-length and --learn are about tokens"
            raise UsageError(what, hint="give --model too")

    def tokenizer(self, adapter: Path | None = None) -> ChatTokenizer | None:
        """The model's, without its weights, if one was given; as an adapter of it was trained with
        it. Raises ModelError, UsageError."""
        from mlx_itune.inference.opening import Opening, open_tokenizer

        if not self.model:
            return None
        told = self.template_option
        return open_tokenizer(Opening(self.model, adapter, self.template, template_option=told))


class RowFiles:
    """The files of some paths, in order (train, valid, test, then by name), read lazily."""

    def __init__(self, named: Sequence[PathLike], forced: ImportPlan) -> None:
        paths = [*map(Path, named)]
        with storage_errors(paths[0]):
            for path in paths:
                if not path.exists():
                    raise row_files.no_such(path)
            ranks = {split: rank for rank, split in enumerate(_SPLITS)}
            self.paths = sorted(
                row_files.expand(paths), key=lambda path: ranks.get(path.stem, len(ranks))
            )
            self.bytes = sum(path.stat().st_size for path in self.paths)
        self.name = ", ".join(dict.fromkeys(path.resolve().name for path in paths))
        self.how = forced.reading

    def read(
        self, path: Path, on_bytes: Callable[[int], None] | None = None
    ) -> Iterator[Conversation | Fault]:
        """The rows of one file; `on_bytes` is told of each further stretch of bytes."""
        return row_files.read_rows(path, how=self.how, on_bytes=on_bytes)


def _several(paths: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    return (paths,) if isinstance(paths, str | Path) else paths


def told_bytes(observe: Observe | None, stage: str, total: int) -> Callable[[int], None]:
    """What a reader tells of each further stretch of `total` bytes."""
    done = 0

    def on_bytes(more: int) -> None:
        nonlocal done
        done += more
        if observe:
            observe(stage, min(done, total), max(total, 1))

    return on_bytes


def labelled(observe: Observe | None, label: str) -> Observe:
    """`observe`, with a label before the name of each stage."""
    return lambda stage, done, total: observe and observe(f"{label} {stage}", done, total)


def refusal(fault: Fault) -> DataError:
    return DataError(f"{fault.code}: {fault.message}", where=fault.where, hint=fault.hint or None)


def new_page(path: PathLike | None) -> Path | None:
    """`path` if it is new and ends in .html, so that no data is taken for a page."""
    if path is None:
        return None
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError("is no name for a page", where=str(path), hint="end it in .html")
    refuse_taken(Path(path))
    return Path(path)
