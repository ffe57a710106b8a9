"""A GGUF file read back by llama.cpp's Python reader, each tensor against the model it came from.
Names are the gguf package's own, numbers come from its dequantization, and rows of q and k are put
back in order from the file's side."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_itune.export.gguf.architectures import Float32, gguf_name
from mlx_itune.export.gguf.tensors import float_twin
from mlx_itune.export.stored import Stored, stored_tensors
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.model.loading import base

# Numbers that are compared at once; a megabyte stays in the processor's cache.
_CHUNK_NUMBERS = 1 << 18
# llama.cpp rotates neighbouring values in these, and the two halves of a head in all others.
_NEIGHBOURS = ("llama", "granite", "smollm3")
_RE_PACKED = ("Q4_1", "Q5_1", "MXFP4")
# A K-quant's error, relative to the weights: a few percent at 4 bits; of other weights, over 1.
_MAX_ERROR = 0.25


@dataclass(frozen=True)
class GgufVerification:
    """What reading the file back showed. ``types``: tensors by type. ``exact_tensors``: those with
    just the source's numbers; ``rounded_weights``: how many numbers of the others differ, by
    ``largest_difference`` at most."""

    reader: str
    tensors: int
    types: Mapping[str, int]
    exact_tensors: int
    rounded_weights: int
    largest_difference: float


@dataclass(frozen=True)
class _Weight:
    """What a tensor has to hold: a source tensor, with something added to every number. ``slack``:
    how far apart two ways to compute the numbers may be, relative to them."""

    stored: Stored
    add: int = 0
    slack: float = 0.0

    @property
    def matrix(self) -> Stored:
        """Rows and columns; a vector stands upright."""
        if len(self.stored.shape) > 1:
            return self.stored.flat()
        return replace(self.stored, weight=self.stored.weight[:, None])

    def halved(self, rows: slice) -> Float32:
        """Some rows with scales and biases rounded to halves, all that a block can hold."""
        some = self.matrix.rows(rows)
        if some.biases is not None and some.scales is not None:
            scales, biases = (a.astype(mx.float16) for a in (some.scales, some.biases))
            some = replace(some, scales=scales, biases=biases)
        return np.array(some.floats())


class Reader(gguf.GGUFReader):
    """The gguf package's reader of a file. Raises ModelError for one that is no GGUF."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with storage_errors(file):
                super().__init__(file)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelError(f"is no readable GGUF file ({error})", where=str(file)) from error

    def keys(self) -> dict[str, Any]:
        """Every key and its value."""
        return {name: field.contents() for name, field in self.fields.items()}

    def _get(self, *given: Any, **named: Any) -> Any:
        # Over a plain array: a memmap costs seconds for a vocabulary.
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)  # type: ignore[assignment]
        return super()._get(*given, **named)


def verify_gguf(reader: Reader, source_dir: Path, *, requantized: bool = False) -> GgufVerification:
    """Compare every tensor of a file with the model directory that it was made from.
    ``requantized``: llama.cpp's quantizer made it, whose blocks are only held to be near. Raises
    ModelError for a tensor that is missing, extra, or not the source's as its type can hold it."""
    file = reader.file
    field = reader.get_field("general.architecture")
    architecture = str(field.contents()) if field is not None else ""
    model, _ = base.read(source_dir)
    inner: Any = getattr(model, "language_model", model)
    expected, args = dict(_expected(inner, architecture)), inner.args
    types: Counter[str] = Counter()
    exact = rounded = 0
    furthest = 0.0
    with storage_errors(file), file.open("rb") as data:
        for tensor in reader.tensors:
            weight = expected.pop(tensor.name, None)
            if weight is None:
                what = f"{tensor.name} is twice there, or not the model's"
                raise ModelError(what, where=str(file))
            heads = rotated(tensor.name, args, architecture)
            found = _compare(tensor, data, weight, heads, requantized)
            if found is None:
                raise ModelError(f"{tensor.name} is not what the model holds", where=str(file))
            types[tensor.tensor_type.name] += 1
            exact += found[0] == 0
            rounded += found[0]
            furthest = max(furthest, found[1])
            # Weights leave memory when they have been compared.
            del weight
            mx.clear_cache()
    if expected:
        raise ModelError(f"{min(expected)} is missing", where=str(file))
    return GgufVerification(
        f"gguf {version('gguf')}", sum(types.values()), dict(types), exact, rounded, furthest
    )


def rotated(name: str, args: Any, architecture: str) -> int | None:
    """Heads of a tensor (or LoRA) whose rows lie in pairs in the file, or None."""
    found = re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.(weight|bias)", name)
    swapped = architecture in _NEIGHBOURS and not getattr(args, "rope_traditional", False)
    if found is None or not swapped:
        return None
    heads = args.num_attention_heads
    return int(heads if found[2] == "q" else args.num_key_value_heads or heads)


def in_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows (n, ...) of some heads, in pairs as llama.cpp rotates them, as mlx-lm has them."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _compare(
    tensor: Any, file: BinaryIO, weight: _Weight, heads: int | None, requantized: bool
) -> tuple[int, float] | None:
    """(numbers that differ, by how much at most); None where the type does not account for it."""
    if tuple(reversed([int(n) for n in tensor.shape])) != weight.stored.shape:
        return None
    kind, matrix = tensor.tensor_type, weight.matrix
    near = requantized and kind.name != "F32"
    changed = weight.add or weight.slack or matrix.scales is not None
    as_it_is = not changed and float_twin(matrix) == kind
    total, columns = matrix.shape
    head = total // heads if heads else 1
    step = max(1, _CHUNK_NUMBERS // columns // head) * head
    differ, furthest, error, power = 0, 0.0, 0.0, 0.0
    # Read, not mapped: mapped pages would count as memory of this process.
    file.seek(int(tensor.data_offset))
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        part = _read(file, tensor, rows.stop - start, total)
        if heads:
            part = in_halves(part, len(part) // head)
        some = matrix.rows(rows)
        if as_it_is:
            if not np.array_equal(np.array(some.weight.view(mx.uint8)).reshape(-1), _bytes(part)):
                return None
            continue
        want = np.array(some.floats())
        if weight.add:
            want += np.float32(weight.add)
        got = gguf.quants.dequantize(part, kind).reshape(want.shape)
        gap = np.abs(got - want)
        if near:
            error += float(np.square(gap, dtype=np.float64).sum())
            power += float(np.square(want, dtype=np.float64).sum())
        elif weight.slack:
            if not (gap <= weight.slack * np.abs(want)).all():
                return None
        elif kind.name in _RE_PACKED:
            if not np.array_equal(got, weight.halved(rows)):
                return None
        elif not np.array_equal(_bytes(gguf.quants.quantize(want, kind)), _bytes(part)):
            return None
        differ += int(np.count_nonzero(gap))
        furthest = max(furthest, float(gap.max()))
    # A NaN fails here, too.
    return (differ, furthest) if error <= _MAX_ERROR**2 * power else None


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _read(file: BinaryIO, tensor: Any, rows: int, total: int) -> NDArray[Any]:
    """The next rows of a tensor's data, (rows, items or bytes)."""
    size_bytes = int(tensor.n_bytes) // total * rows
    read = np.frombuffer(file.read(size_bytes), dtype=np.uint8)
    if len(read) != size_bytes:
        raise ModelError(f"ends within {tensor.name}", where=file.name)
    return np.asarray(read.view(tensor.data.dtype).reshape(rows, -1))


def _expected(inner: nn.Module, architecture: str) -> Iterator[tuple[str, _Weight]]:
    table = None
    for path, stored in stored_tensors(inner).items():
        name = gguf_name(architecture, path, len(inner.layers))
        if name is None:
            raise ModelError(f"{path} has no name in GGUF")
        above_one = architecture.startswith("gemma") and name.endswith("norm.weight")
        weight = _Weight(stored, add=1 if above_one else 0)
        if path == "model.embed_tokens.weight":
            table = weight
        yield name, weight
    if architecture == "olmo2" and "lm_head" not in inner and table is not None:
        yield "output.weight", table
    yield from _rotary(inner)


def _rotary(inner: nn.Module) -> Iterator[tuple[str, _Weight]]:
    """Factors of the frequencies, from the very numbers that mlx-lm's module rotates by."""
    rope: Any = inner.layers[0].self_attn.rope
    if type(rope).__name__ not in ("Llama3RoPE", "SuScaledRoPE"):
        return
    periods = np.array(rope._freqs, dtype=np.float64)
    base = float(inner.args.rope_theta)
    factors = periods / base ** (np.arange(len(periods)) / len(periods))
    # mlx-lm's numbers are made in float32.
    weight = _Weight(Stored("rope", mx.array(factors.astype(np.float32))), slack=1e-5)
    if type(rope).__name__ == "Llama3RoPE":
        yield "rope_freqs.weight", weight
    else:
        yield "rope_factors_long.weight", weight
        yield "rope_factors_short.weight", weight
