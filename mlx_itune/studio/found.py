"""What lies in a folder, by what the files themselves say: rows, passages, drafts, models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.dataset.drafts.records import DRAFTS
from mlx_itune.dataset.ingest.run import PASSAGES
from mlx_itune.dataset.reading import SUFFIXES

_DEEPEST, _MOST = 3, 2000
# A folder is what the first of these files in it says.
_FOLDERS = (
    ("events.jsonl", "run"),
    (DRAFTS, "drafts"),
    (PASSAGES, "passages"),
    ("train.jsonl", "rows"),
    ("dataset.json", "rows"),
    ("adapter_config.json", "adapter"),
    ("manifest.json", "bundle"),
    ("config.json", "model"),
    ("sweep.json", "sweep"),
)
_DOCUMENTS = frozenset({".pdf", ".docx", ".pptx", ".epub", ".eml", ".html", ".htm", ".md"})


@dataclass(frozen=True)
class Found:
    """A file or folder, its path from the studio's folder on. kind: rows, passages, drafts,
    documents, adapter, bundle, model, gguf, schema or run."""

    path: str
    kind: str
    bytes: int


def found(folder: Path) -> list[Found]:
    """What is in the folder, by name; at most 2,000 of it, three folders deep."""
    made = []
    for each in _walk(folder, 0):
        kind = _kind(each)
        if kind is not None:
            made.append(Found(str(each.relative_to(folder)), kind, _size(each)))
            if len(made) >= _MOST:
                break
    return made


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for each in entries:
        if each.name.startswith(".") or each.is_symlink():
            continue
        yield each
        if each.is_dir() and _kind(each) is None and depth < _DEEPEST:
            yield from _walk(each, depth + 1)


def _kind(path: Path) -> str | None:
    if path.is_dir():
        return next((kind for name, kind in _FOLDERS if (path / name).is_file()), None)
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return "gguf"
    if suffix in _DOCUMENTS:
        return "documents"
    if path.name.endswith("schema.json"):
        return "schema"
    return "rows" if suffix in SUFFIXES and suffix else None


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    inside = (Path(at) / name for at, _, names in os.walk(path) for name in names)
    return sum(each.lstat().st_size for each in inside)
