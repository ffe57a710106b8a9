"""Read a transformers checkpoint back, with readers that did not write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_itune.export.transformers.hf_layout import HfTensor
from mlx_itune.export.transformers.hf_source import FloatSource
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.tensorfile import TensorInfo, read_header
from mlx_itune.model.loading import mlx_lm_models as stock
from mlx_itune.model.loading.fingerprint import weight_files

_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class HfVerification:
    """Every number in the files against the source's, dequantized in float32.

    largest_difference: what rounding to the checkpoint's type changed at most; it is 0 in float32.
    opened_by: mlx-lm read the names and shapes by its own rules for transformers' checkpoints.
    """

    tensors: int
    numbers: int
    largest_difference: float
    opened_by: str


def verify_hf(out: Path, source: FloatSource, tensors: Sequence[HfTensor]) -> HfVerification:
    """Compare the files of `out` with `source`, number by number. Raises ModelError.

    The files are read with NumPy alone; each number must be the source's, rounded to the nearest
    that the file's type has.
    """
    where = str(out)
    files = {n: (file, i) for file in weight_files(out) for n, i in read_header(file).items()}
    odd = sorted(files.keys() ^ {t.name for t in tensors})
    if odd:
        raise ModelError(f"tensor {odd[0]} is missing or should not be there", where=where)
    _require_same_model(out, source)
    largest, numbers = 0.0, 0
    for at, tensor in enumerate(tensors):
        file, info = files[tensor.name]
        if info.shape != tensor.shape:
            raise ModelError(f"tensor {tensor.name} has the shape {info.shape}", where=where)
        start = info.start
        for piece in source.pieces(tensor.source, tensor.expert):
            stored, start = _read(file, info, start, piece.shape)
            gap = float(np.abs(_widened(stored, info.dtype) - piece).max(initial=0))
            if not np.array_equal(stored, _rounded(piece, info.dtype)):
                raise ModelError(
                    f"tensor {tensor.name} differs by {gap:.3g} from its source", where=where
                )
            largest, numbers = max(largest, gap), numbers + piece.size
        if at + 1 == len(tensors) or tensors[at + 1].source != tensor.source:
            source.release(tensor.source)
    return HfVerification(len(tensors), numbers, largest, f"mlx-lm {stock.mlx_lm_version()}")


def _require_same_model(out: Path, source: FloatSource) -> None:
    """mlx-lm, which knows transformers' layout, makes the same parameters of the files."""
    shapes = FloatSource(out).shapes
    if shapes != source.shapes:
        differ = [n for n in {*shapes, *source.shapes} if shapes.get(n) != source.shapes.get(n)]
        raise ModelError(f"mlx-lm reads another {min(differ)} from it", where=str(out))


def _read(file: Path, info: TensorInfo, start: int, shape: tuple[int, ...]) -> tuple[Any, int]:
    """Stored numbers of `shape` from byte `start` of a file, and the byte after them."""
    count = int(np.prod(shape, dtype=np.int64))
    with storage_errors(file), file.open("rb") as stream:
        stream.seek(start)
        raw = np.fromfile(stream, dtype=_STORED[info.dtype], count=count)
    if raw.size != count:
        raise ModelError("ends too early", where=str(file))
    return raw.reshape(shape), start + raw.nbytes


def _widened(stored: Any, dtype: str) -> Any:
    """Stored numbers in float32; NumPy has no bfloat16, whose bits are float32's upper half."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _rounded(wide: Any, dtype: str) -> Any:
    """float32 numbers as the file's type stores them, ties to even."""
    if dtype == "BF16":
        bits = wide.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return wide.astype(_STORED[dtype])
