"""The tensors of a GGUF file: the blocks made of weights as mlx-lm stores them, and the file.

MLX's affine weight is w = s q + b, one (s, b) for 32, 64 or 128 neighbours, and GGUF's Q4_1 and
Q5_1 are w = d q + m for 32: the same codes in another order, s and b for d and m. MXFP4 is the
same in both (OCP Microscaling Formats 1.0). Blocks: llama.cpp, ggml/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from mlx_itune.export.stored import Stored
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import require_free_bytes, storage_errors, write_durably

Bytes = NDArray[np.uint8]
BLOCK = 32
# Numbers that are converted at once; two megabytes stay in the processor's cache.
_CHUNK_NUMBERS = 1 << 19
_ALIGNMENT_BYTES = gguf.GGUF_DEFAULT_ALIGNMENT


class Overflow(Exception):
    """A finite number of this tensor is beyond what a half can say."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: rows of ``stored`` in the order ``order`` (None: as they are), with
    ``offset`` added to every number."""

    name: str
    type: Type
    stored: Stored
    order: NDArray[np.int32] | None = None
    offset: int = 0

    @property
    def size_bytes(self) -> int:
        """Size of its data."""
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.stored.shape, dtype=np.int64)) // block * block_bytes

    def chunks(self) -> Iterator[bytes]:
        """The data, a bounded number of rows at a time. Raises Overflow, ModelError."""
        flat = self.stored if len(self.stored.shape) == 1 else self.stored.flat()
        rows, *columns = flat.shape
        step = max(1, _CHUNK_NUMBERS // (columns[0] if columns else 1))
        for start in range(0, rows, step):
            which: slice | mx.array = slice(start, start + step)
            if self.order is not None:
                which = mx.array(self.order[which])
            yield _encoded(flat.rows(which), self.type, self.offset).tobytes()


def same_codes(stored: Stored) -> Type | None:
    """The type whose blocks hold just these codes; None where GGUF has none."""
    if stored.mode == "affine" and stored.bits <= 5 and stored.group_size % BLOCK == 0:
        return Type.Q5_1 if stored.bits == 5 else Type.Q4_1
    return Type.MXFP4 if stored.mode == "mxfp4" and stored.group_size == BLOCK else None


def float_twin(stored: Stored) -> Type:
    """The smallest float type that says these numbers exactly (affine: as float32 rounds them)."""
    if stored.scales is not None:
        # 4-bit floats times 8-bit ones fit a half; 8-bit floats times powers of two do not.
        twins = {"nvfp4": Type.F16, "mxfp4": Type.BF16, "mxfp8": Type.BF16}
        return twins.get(stored.mode, Type.F32)
    return {mx.float16: Type.F16, mx.bfloat16: Type.BF16}.get(stored.weight.dtype, Type.F32)


def write(out: Path, writer: gguf.GGUFWriter, tensors: list[Planned]) -> None:
    """Write a file durably: the keys of ``writer``, then ``tensors``, emptied on the way. Raises
    Overflow where a half is too small, ModelError for NaN and infinity, StorageError."""
    for tensor in tensors:
        # With another type than bytes, the shape is taken as it is.
        writer.add_tensor_info(
            tensor.name,
            tensor.stored.shape,
            np.dtype(np.float32),
            tensor.size_bytes,
            raw_dtype=tensor.type,
        )
    with storage_errors(out):
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        start = out.read_bytes()
    needed_bytes = len(start) + sum(t.size_bytes + _ALIGNMENT_BYTES for t in tensors)
    require_free_bytes(out, needed_bytes, "the GGUF file")
    write_durably(out, _data(start, tensors))


def _data(start: bytes, tensors: list[Planned]) -> Iterator[bytes]:
    yield start + bytes(-len(start) % _ALIGNMENT_BYTES)
    tensors.reverse()
    while tensors:
        # Taken out of the list, so that its weights leave memory when they are written.
        tensor = tensors.pop()
        yield from tensor.chunks()
        yield bytes(-tensor.size_bytes % _ALIGNMENT_BYTES)
        del tensor
        mx.clear_cache()


def _encoded(stored: Stored, kind: Type, offset: int) -> NDArray[np.generic]:
    if kind in (Type.Q4_1, Type.Q5_1, Type.MXFP4):
        return _microscaled(stored) if kind == Type.MXFP4 else _repacked(stored, kind)
    numbers = stored.floats() + offset if offset else stored.floats()
    if kind == Type.F16:
        as_it_is = stored.scales is None and not offset
        return _halves(stored.weight if as_it_is else numbers, stored.name)
    dense = np.array(numbers)
    _require_numbers(dense, stored.name)
    if kind != Type.BF16:
        blocks: NDArray[np.generic] = gguf.quants.quantize(dense, kind)
        return blocks
    brain = numbers.astype(mx.bfloat16)
    _require_numbers(np.array(brain.astype(mx.float32)), stored.name)
    return np.array(brain.view(mx.uint16))


def _repacked(stored: Stored, kind: Type) -> Bytes:
    """Q4_1 and Q5_1: d, m, (the codes' fifth bits,) and 16 bytes with codes j and j + 16 in one."""
    assert stored.scales is not None and stored.biases is not None
    rows, columns = stored.shape
    blocks = columns // BLOCK
    parts = []
    for array in (stored.scales, stored.biases):
        spread = np.repeat(_halves(array, stored.name), stored.group_size // BLOCK, axis=1)
        parts.append(spread.view(np.uint8).reshape(rows, blocks, 2))
    if stored.bits == 4:
        parts.append(_nibbles(stored, rows, blocks))
    else:
        codes: Bytes = stored.codes().reshape(rows, blocks, BLOCK)
        if kind == Type.Q5_1:
            parts.append(np.packbits(codes >> 4, axis=-1, bitorder="little"))
            codes &= 15
        parts.append(codes[..., :16] | (codes[..., 16:] << np.uint8(4)))
    return np.concatenate(parts, axis=-1)


def _microscaled(stored: Stored) -> Bytes:
    """MXFP4: one exponent, then the codes as Q4_1 has them."""
    assert stored.scales is not None
    rows, blocks = stored.scales.shape
    exponents = np.array(stored.scales).reshape(rows, blocks, 1)
    if (exponents == 255).any():
        raise ModelError(f"{stored.name} holds NaN")
    return np.concatenate([exponents, _nibbles(stored, rows, blocks)], axis=-1)


def _nibbles(stored: Stored, rows: int, blocks: int) -> Bytes:
    """MLX's codes 2j and 2j + 1 in byte j become GGUF's j and j + 16: (rows, blocks, 16)."""
    packed = np.array(stored.weight).view(np.uint8).reshape(rows, blocks, 2, 8)
    first, second = packed[:, :, 0], packed[:, :, 1]
    out = np.empty((rows, blocks, 16), dtype=np.uint8)
    out[..., 0::2] = (first & 15) | (second << 4)
    out[..., 1::2] = (first >> 4) | (second & 0xF0)
    return out


def _halves(numbers: mx.array, name: str) -> NDArray[np.float16]:
    halves = np.array(numbers.astype(mx.float16))
    if not np.isfinite(halves).all():
        _require_numbers(np.array(numbers.astype(mx.float32)), name)
        raise Overflow(name)
    return halves


def _require_numbers(numbers: NDArray[np.float32], name: str) -> None:
    if not np.isfinite(numbers).all():
        raise ModelError(f"{name} holds NaN or infinity")
