"""Tokenized examples in a folder: written as they come, memory-mapped when they are read.

| file | content |
|---|---|
| `ids.bin`, `weights.bin` | input_ids int32 and weights float32, example after example |
| `ends.bin` | int64: where each example ends in them |
| `spans.bin`, `span_ends.bin` | int32 pairs [start, end) of the learned turns; their int64 ends |
| `notes.bin`, `note_ends.bin` | JSON [origin, tags] per example; their int64 ends |

Little-endian, as every machine that runs MLX is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from mlx_itune.dataset.rendering.render import TokenizedExample

_FILES = ("ids", "weights", "ends", "spans", "span_ends", "notes", "note_ends")


def write(folder: Path, examples: Iterable[TokenizedExample]) -> None:
    """Write `examples` into an existing `folder`, holding one at a time."""
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("xb")) for name in _FILES}
        tokens = spans = notes = 0
        for example in examples:
            note = orjson.dumps([example.origin, dict(example.tags)])
            tokens += len(example.input_ids)
            spans += len(example.spans)
            notes += len(note)
            files["ids"].write(np.ascontiguousarray(example.input_ids, dtype="<i4").data)
            files["weights"].write(np.ascontiguousarray(example.weights, dtype="<f4").data)
            files["spans"].write(np.array(example.spans, dtype="<i4").tobytes())
            files["notes"].write(note)
            for name, end in (("ends", tokens), ("span_ends", spans), ("note_ends", notes)):
                files[name].write(end.to_bytes(8, "little"))


class StoredExamples(Sequence[TokenizedExample]):
    """The examples of a folder; an example's arrays are read-only views of the files."""

    def __init__(self, folder: Path) -> None:
        self._ids = _mapped(folder / "ids.bin", "<i4")
        self._weights = _mapped(folder / "weights.bin", "<f4")
        self._spans = _mapped(folder / "spans.bin", "<i4").reshape(-1, 2)
        self._notes = _mapped(folder / "notes.bin", "u1")
        self._ends, self._span_ends, self._note_ends = (
            np.concatenate([[0], _mapped(folder / f"{name}.bin", "<i8")])
            for name in ("ends", "span_ends", "note_ends")
        )

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        n = range(len(self))[index]
        tokens = slice(self._ends[n], self._ends[n + 1])
        origin, tags = orjson.loads(self._notes[self._note_ends[n] : self._note_ends[n + 1]].data)
        spans = self._spans[self._span_ends[n] : self._span_ends[n + 1]].tolist()
        return TokenizedExample(
            self._ids[tokens],
            self._weights[tokens],
            origin,
            tags,
            tuple((first, end) for first, end in spans),
        )


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    # mmap refuses an empty file.
    if not path.stat().st_size:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
