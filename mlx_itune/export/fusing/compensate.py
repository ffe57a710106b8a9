"""Rounding a weight to its grid so that the layer's output changes least, not the weight.

GPTQ (Frantar et al., 2210.17323, section 3.3) rounds one input column after the other and lets the
columns still to come make up for each error, as the inputs' second moments H say they can. The
grid is MLX's own, w = s q + b, with each group's s and b chosen when its columns' turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]

# Added to H's diagonal, as a share of its mean: directions that hardly an input has stay free. The
# fewer the inputs for a matrix of that width, the less is concluded from them.
_DAMPING, _DAMPING_PER_WIDTH = 0.01, 0.1
_PACKED_ROWS = 512


def compensated(
    weight: Any, factor: Numbers, *, group_size: int, bits: int, dtype: Any
) -> dict[str, Any]:
    """Round ``weight`` (out, in) float32 for inputs whose moments have this :func:`factor`.

    As MLX stores it: weight (out, words) uint32, scales and biases (out, groups) of ``dtype``;
    errors are those with scales and biases so rounded.
    """
    columns: Numbers = np.array(weight, dtype=np.float32).T.copy()
    codes, scales, biases = _gptq(columns, factor, _Grid(group_size, bits, dtype))
    return {
        "weight": pack(codes.T, bits),
        "scales": mx.array(scales.T).astype(dtype),
        "biases": mx.array(biases.T).astype(dtype),
    }


def factor(moments: Numbers, count: int) -> Numbers:
    """U, upper triangular, of H^-1 = U^T U: row j says how column j's error is made up for.

    H is ``moments`` (in, in), the sum of x x^T over ``count`` inputs x, with something on its
    diagonal so that it has an inverse. Where a column never had an input it gets the mean, and is
    rounded by itself.
    """
    diagonal = np.diag(moments)
    mean = float(diagonal.mean()) or 1.0
    share = max(_DAMPING, _DAMPING_PER_WIDTH * len(moments) / max(count, 1))
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += mean * np.where(diagonal > 0, share, 1)
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    return np.asarray(lower.T, dtype=np.float32)


def pack(codes: NDArray[Any], bits: int) -> Any:
    """Codes (out, in) packed as MLX does: little-endian strings of bits, (out, words) uint32."""
    parts = []
    for start in range(0, len(codes), _PACKED_ROWS):
        rows = np.ascontiguousarray(codes[start : start + _PACKED_ROWS], dtype=np.uint8)
        strings = np.unpackbits(rows[..., None], axis=-1, bitorder="little")[..., :bits]
        packed = np.packbits(strings.reshape(len(rows), -1), axis=-1, bitorder="little")
        parts.append(packed.view(np.uint32))
    return mx.array(np.concatenate(parts))


@dataclass(frozen=True)
class _Grid:
    """The numbers a layer can hold."""

    group_size: int
    bits: int
    dtype: Any

    def fit(self, columns: Numbers) -> tuple[Numbers, Numbers]:
        """MLX's scale and bias (out,) for a group of columns (group size, out)."""
        rows = mx.array(np.ascontiguousarray(columns.T))
        _, scales, biases = mx.quantize(rows, self.group_size, self.bits)
        return self.say(np.array(scales)[:, 0]), self.say(np.array(biases)[:, 0])

    def say(self, numbers: Numbers) -> Numbers:
        """The nearest numbers that scales and biases can be."""
        return np.array(mx.array(numbers).astype(self.dtype).astype(mx.float32))

    def code(self, column: Numbers, scales: Numbers, biases: Numbers) -> Numbers:
        """The nearest codes (out,) to a column."""
        divisor = np.where(scales == 0, np.float32(1), scales)
        return np.clip(np.rint((column - biases) / divisor), 0, 2**self.bits - 1)


def _gptq(left: Numbers, upper: Numbers, grid: _Grid) -> tuple[Numbers, Numbers, Numbers]:
    """Codes (in, out), scales and biases (groups, out) for columns ``left`` (in, out), which are
    used up; all float32."""
    inputs, outputs = left.shape
    size = grid.group_size
    codes = np.empty_like(left)
    scales, biases = (np.empty((inputs // size, outputs), np.float32) for _ in range(2))
    for g in range(inputs // size):
        start, stop = g * size, (g + 1) * size
        group = left[start:stop]
        s, b = grid.fit(group)
        scales[g], biases[g] = s, b
        errors = np.empty_like(group)
        for k in range(size):
            j = start + k
            codes[j] = grid.code(group[k], s, b)
            errors[k] = (group[k] - (s * codes[j] + b)) / upper[j, j]
            group[k + 1 :] -= upper[j, j + 1 : stop, None] * errors[k]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return codes, scales, biases
