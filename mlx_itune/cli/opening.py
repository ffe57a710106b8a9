"""A model, its adapter and its tokenizer, opened together as commands need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_itune.kit.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
    from mlx_itune.model.adapters.adapter import Adapter
    from mlx_itune.model.loading.base import LoadedModel


def open_tokenizer(
    path: Path, adapter: Adapter | None, template: str | None, *, allow_other_base: bool = False
) -> ChatTokenizer:
    """The tokenizer with the template asked for, else the adapter's, else the model's own.

    Raises ModelError where the adapter's is no longer what it was trained with.
    """
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.model.loading.vetting import vet

    # Whatever is wrong with the model's files is told in its own words.
    vet(path)
    trained = adapter.origin.tokenizer.template if adapter else None
    tokenizer = load_tokenizer(path, template=template or trained or "auto")
    if adapter and not allow_other_base:
        adapter.require_template(tokenizer.name, tokenizer.template_sha256)
    return tokenizer


def open_model(
    model: str,
    adapter_dir: Path | None,
    *,
    template: str | None = None,
    compute: str = "auto",
    offline: bool = False,
    allow_other_base: bool = False,
) -> tuple[LoadedModel, ChatTokenizer]:
    """The model, with the adapter on it where one is given, ready for inference."""
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading import base

    adapter = adapters.load(adapter_dir) if adapter_dir else None
    path = base.resolve(model, offline=offline)
    tokenizer = open_tokenizer(path, adapter, template, allow_other_base=allow_other_base)
    loaded = base.load(model, compute=compute, offline=offline)
    if adapter:
        adapters.apply(loaded, adapter, allow_other_base=allow_other_base)
    loaded.model.eval()
    return loaded, tokenizer


def rows_of(data: Path, split: str = "auto") -> tuple[str, Sequence[Conversation]]:
    """(name, rows) of a file, or of a folder's split: all of them, none set aside.

    "auto" is the test file of a folder, else its valid file, else all that it has to train on.
    Raises DataError for broken rows and an empty file, UsageError for a split that is not there.
    """
    from mlx_itune.dataset.faults import Fault
    from mlx_itune.dataset.sources import read_rows, split_paths

    if data.is_file() and split != "auto":
        raise UsageError(f"a single file has no {split} split", where=str(data))
    parts = split_paths(data)
    if split == "auto":
        split = next(name for name in ("test", "valid", "train") if name in parts)
    paths = [path for part, path in parts.items() if part.partition("/")[0] == split]
    if not paths:
        raise UsageError(f"there is no {split} split", where=str(data))
    rows: list[Conversation] = []
    faults: list[Fault] = []
    for path in paths:
        for row in read_rows(path):
            if not isinstance(row, Fault):
                rows.append(row)
            elif row.severity == "error":
                faults.append(row)
    if faults:
        raise DataError(
            f"{len(faults)} broken rows, the first: {faults[0]}",
            where=str(data),
            hint=f"mlx-itune data check {data}",
        )
    if not rows:
        raise DataError("holds no rows", where=str(data))
    return split if data.is_dir() else data.name, rows
