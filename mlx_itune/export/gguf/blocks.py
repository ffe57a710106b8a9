"""The blocks that GGUF makes of weights as mlx-lm stores them.

MLX's affine weight is w = s q + b, one (s, b) for 32, 64 or 128 neighbours, and GGUF's Q4_1 and
Q5_1 are w = d q + m for 32: the same codes in another order, s and b for d and m. MXFP4 is the
same in both (OCP Microscaling Formats 1.0). Blocks: llama.cpp, ggml/src/ggml-common.h.
"""

from __future__ import annotations

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from mlx_itune.export.stored import Stored
from mlx_itune.kit.errors import ModelError

Bytes = NDArray[np.uint8]
BLOCK = 32
_HALF_INFINITY = 0x7C00


class Overflow(Exception):
    """A finite number of this tensor is beyond what a half can say."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def same_codes(stored: Stored) -> Type | None:
    """The type whose blocks hold just these codes; None where GGUF has none."""
    if stored.mode == "affine" and stored.bits <= 5 and stored.group_size % BLOCK == 0:
        return Type.Q5_1 if stored.bits == 5 else Type.Q4_1
    return Type.MXFP4 if stored.mode == "mxfp4" and stored.group_size == BLOCK else None


def float_twin(stored: Stored) -> Type:
    """The smallest float type that says these numbers exactly (affine: as float32 rounds them)."""
    if stored.scales is not None:
        # 4-bit floats times 8-bit ones fit a half; 8-bit floats times powers of two do not.
        return {"nvfp4": Type.F16, "mxfp4": Type.BF16, "mxfp8": Type.BF16}.get(
            stored.mode, Type.F32
        )
    return {mx.float16: Type.F16, mx.bfloat16: Type.BF16}.get(stored.weight.dtype, Type.F32)


def encode(stored: Stored, kind: Type, offset: int = 0) -> Bytes:
    """The bytes of some rows as blocks of ``kind``; ``offset`` is added to every number first.

    Raises Overflow where a half is too small, ModelError for NaN and infinity.
    """
    if kind in (Type.Q4_1, Type.Q5_1) and stored.scales is not None:
        return _repacked(stored, kind)
    if kind == Type.MXFP4 and stored.scales is not None:
        return _microscaled(stored)
    if kind == Type.F16:
        whole = stored.scales is None and not offset
        numbers = stored.weight if whole else stored.floats() + offset
        halves = np.array(numbers.astype(mx.float16))
        _require_finite(halves, numbers, stored.name)
        return halves.view(np.uint8)
    if kind == Type.BF16:
        brain = (stored.floats() + offset).astype(mx.bfloat16)
        _require_numbers(brain, stored.name)
        return np.array(brain.view(mx.uint16)).view(np.uint8)
    floats = stored.floats() + offset if offset else stored.floats()
    _require_numbers(floats, stored.name)
    dense = np.array(floats)
    if kind == Type.F32:
        return dense.view(np.uint8)
    blocks: Bytes = gguf.quants.quantize(dense, kind)
    return blocks


def _repacked(stored: Stored, kind: Type) -> Bytes:
    """Q4_1 and Q5_1: d, m, (the codes' fifth bits,) and 16 bytes with codes j and j + 16 in one."""
    assert stored.scales is not None and stored.biases is not None
    rows, columns = stored.shape
    blocks = columns // BLOCK
    parts = []
    for array in (stored.scales, stored.biases):
        halves = np.array(array.astype(mx.float16))
        _require_finite(halves, array, stored.name)
        spread = np.repeat(halves, stored.group_size // BLOCK, axis=1)
        parts.append(spread.view(np.uint8).reshape(rows, blocks, 2))
    if stored.bits == 4:
        parts.append(_nibbles(stored, rows, blocks))
    else:
        codes: Bytes = stored.codes().reshape(rows, blocks, BLOCK)
        if kind == Type.Q5_1:
            parts.append(np.packbits(codes >> 4, axis=-1, bitorder="little"))
            codes &= 15
        parts.append(codes[..., :16] | (codes[..., 16:] << np.uint8(4)))
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _microscaled(stored: Stored) -> Bytes:
    """MXFP4: one exponent, then the codes as Q4_1 has them."""
    assert stored.scales is not None
    rows, blocks = stored.scales.shape
    exponents = np.array(stored.scales).reshape(rows, blocks, 1)
    if (exponents == 255).any():
        raise ModelError(f"{stored.name} holds NaN")
    return np.concatenate([exponents, _nibbles(stored, rows, blocks)], axis=-1).reshape(rows, -1)


def _nibbles(stored: Stored, rows: int, blocks: int) -> Bytes:
    """MLX's codes 2j and 2j + 1 in byte j become GGUF's j and j + 16: (rows, blocks, 16)."""
    packed = np.array(stored.weight).view(np.uint8).reshape(rows, blocks, 2, 8)
    first, second = packed[:, :, 0], packed[:, :, 1]
    out = np.empty((rows, blocks, 16), dtype=np.uint8)
    out[..., 0::2] = (first & 15) | (second << 4)
    out[..., 1::2] = (first >> 4) | (second & 0xF0)
    return out


def _require_finite(halves: NDArray[np.float16], numbers: mx.array, name: str) -> None:
    if (halves.view(np.uint16) & 0x7FFF).max() >= _HALF_INFINITY:
        _require_numbers(numbers, name)
        raise Overflow(name)


def _require_numbers(numbers: mx.array, name: str) -> None:
    if not mx.isfinite(numbers).all().item():
        raise ModelError(f"{name} holds NaN or infinity")
