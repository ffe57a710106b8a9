"""A model, its adapter and its tokenizer, opened together; the rows that it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.importing.first_look import by_looks
from mlx_itune.dataset.sources import split_paths
from mlx_itune.dataset.tokens.dialect import template_options
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import brief, count
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.adapter import Adapter, TrainedWith
from mlx_itune.model.loading import base
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.loading.vetting import vet


@dataclass(frozen=True)
class Opening:
    """Which model with which adapter, read by which template and computed how."""

    model: str
    adapter: Path | None = None
    template: str | None = None
    compute: str = "auto"
    allow_other_base: bool = False
    template_option: tuple[str, ...] = ()
    system: str | None = None


def open_adapter(opening: Opening) -> Adapter | None:
    """The adapter, where one is given. Raises ModelError."""
    if opening.adapter is None:
        return None
    return adapters.load(opening.adapter, any_base=opening.allow_other_base)


def open_tokenizer(opening: Opening, adapter: Adapter | None = None) -> ChatTokenizer:
    """The tokenizer with the template asked for, else the adapter's, else the model's own. Raises
    ModelError where the adapter's is no longer what it was trained with."""
    adapter = adapter or open_adapter(opening)
    path = base.resolve(opening.model)
    # Whatever is wrong with the model's files is told in its own words.
    vet(path)
    return as_trained(
        adapter, opening, lambda name, options: load_tokenizer(path, template=name, options=options)
    )


def as_trained(
    adapter: Adapter | None,
    asked: Opening,
    load: Callable[[str, Mapping[str, Any]], ChatTokenizer],
) -> ChatTokenizer:
    """The tokenizer that `load` gives for a template and its options: what is asked for, else what
    the adapter was trained with; with the system prompt asked for ("" is none), else the adapter's.
    Its `notes` tell what is not as it was in training. Raises ModelError."""
    trained = adapter.origin.tokenizer if adapter else TrainedWith()
    name, system = asked.template or trained.template or "auto", asked.system
    options = trained.options if name == trained.template else {}
    tokenizer = load(name, {**options, **template_options(asked.template_option)})
    notes = []
    if adapter:
        adapter.require_template(tokenizer.name, tokenizer.template_sha256)
        for option, value in tokenizer.options.items():
            then = trained.options.get(option, "not set")
            if trained.template and then != value:
                notes.append(f"template option {option}={value!r}; trained with {then!r}")
        if system is None and trained.system:
            said = repr(brief(trained.system, 80))
            notes.append(f'system prompt as in training: {said} (--system "" leaves it out)')
    tokenizer.system = (trained.system if system is None else system) or None
    tokenizer.notes = tuple(notes)
    return tokenizer


def open_model(opening: Opening) -> tuple[LoadedModel, ChatTokenizer]:
    """The model, with the adapter on it where one is given, ready for inference. Raises ModelError,
    StorageError."""
    adapter = open_adapter(opening)
    tokenizer = open_tokenizer(opening, adapter)
    loaded = base.load(opening.model, compute=opening.compute)
    if adapter:
        adapters.apply(loaded, adapter)
    loaded.model.eval()
    return loaded, tokenizer


def rows_of(data: Path, split: str = "auto") -> tuple[str, Sequence[Conversation]]:
    """(name, rows) of a file, or of a folder's split: all of them, none set aside. "auto" is the
    test file of a folder, else its valid file, else all that it has to train on. Of a table that
    nobody named the columns of, the name tells which were taken for question and answer. Raises
    DataError for broken rows and an empty file, UsageError for a split that is not there."""
    if data.is_file() and split != "auto":
        raise UsageError(f"a single file has no {split} split", where=str(data))
    parts = split_paths(data)
    if split == "auto":
        split = next(name for name in ("test", "valid", "train") if name in parts)
    paths = [path for part, path in parts.items() if part.partition("/")[0] == split]
    if not paths:
        raise UsageError(f"there is no {split} split", where=str(data))
    found, columns, _ = by_looks(paths, Reading())
    faults = [row for row in found if isinstance(row, Fault) and row.severity == "error"]
    if faults:
        what = f"{count(len(faults), 'broken row')}, the first: {faults[0]}"
        raise DataError(what, where=str(data), hint=f"mlx-itune data check {data}")
    rows = [row for row in found if isinstance(row, Conversation)]
    if not rows:
        raise DataError("holds no rows", where=str(data))
    name = split if data.is_dir() else data.name
    taken = [f"{field} = {column!r}" for field, column in columns.items()]
    return f"{name} ({', '.join(taken)}, by their looks)" if taken else name, rows
