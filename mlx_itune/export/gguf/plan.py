"""What goes into a GGUF file, each tensor with its name, type and source; and how it is written.

The header is made by the gguf package, the data is written a tensor at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from mlx_itune.export.gguf.architectures import Architecture, Facts, architecture_of, metadata
from mlx_itune.export.gguf.blocks import BLOCK, encode, float_twin, same_codes
from mlx_itune.export.stored import Stored, stored_tensors
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import require_free_bytes, storage_errors, write_durably
from mlx_itune.model.loading import base

# What llama.cpp's own quantizer makes, from halves.
K_QUANTS = ("q4_k_m", "q5_k_m", "q6_k")
_FLOATS = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16}
_BLOCKS = {"q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
# MLX's own codes; where GGUF has no blocks for them, floats or (native) 8-bit blocks.
_CODES = ("native", "lossless")
KINDS = (*_CODES, *_FLOATS, *_BLOCKS, *K_QUANTS)
# Numbers that are converted at once; two megabytes stay in the processor's cache.
_CHUNK_NUMBERS = 1 << 19
_ALIGNMENT_BYTES = gguf.GGUF_DEFAULT_ALIGNMENT
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: rows of ``stored`` in the order ``order`` (None: as they are)."""

    name: str
    type: Type
    stored: Stored
    order: NDArray[np.int32] | None = None
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, rows before columns; GGUF writes it reversed."""
        return self.stored.shape

    def chunks(self) -> Iterator[bytes]:
        """The data, a bounded number of rows at a time. Raises Overflow, ModelError."""
        flat = self.stored if len(self.shape) == 1 else self.stored.flat()
        rows = flat.shape[0]
        columns = 1 if len(flat.shape) == 1 else flat.shape[1]
        step = max(1, _CHUNK_NUMBERS // columns)
        for start in range(0, rows, step):
            which: slice | mx.array = slice(start, start + step)
            if self.order is not None:
                which = mx.array(self.order[which])
            yield encode(flat.rows(which), self.type, self.offset).tobytes()


@dataclass(frozen=True)
class Plan:
    """A whole file but for its tokenizer; ``tensors`` is emptied while it is written."""

    architecture: Architecture
    facts: Facts
    keys: Mapping[str, Any]
    tensors: list[Planned]
    notes: tuple[str, ...]


def plan(source: Path, kind: str, wide: frozenset[str] = frozenset()) -> Plan:
    """What ``kind`` makes of a model directory as mlx-lm reads it; ``wide``: tensors kept in F32.

    No weight is read yet. Raises ModelError for what llama.cpp does not know.
    """
    model, config = base.read(source)
    architecture, facts = architecture_of(model, config)
    keys = metadata(architecture, facts)
    rotary = architecture.rotary(facts)
    tensors = _tensors(model, architecture, facts, kind, wide)
    for name, factors in rotary.tensors.items():
        tensors.append(Planned(name, Type.F32, Stored(name, mx.array(factors))))
    notes = (*architecture.notes(facts), *rotary.notes, *_notes(tensors, kind, wide))
    return Plan(architecture, facts, keys, sorted(tensors, key=_place), notes)


def _tensors(
    model: nn.Module, architecture: Architecture, facts: Facts, kind: str, wide: frozenset[str]
) -> list[Planned]:
    permuted = architecture.permuted(facts)
    tensors = []
    for path, stored in stored_tensors(getattr(model, "language_model", model)).items():
        name = tensor_name(architecture, path)
        heads = rotated_heads(name, facts) if permuted else None
        tensors.append(
            Planned(
                name,
                _type_of(name, stored, kind, facts) if name not in wide else Type.F32,
                stored,
                None if heads is None else interleaved(stored.shape[0], heads),
                architecture.norm_offset if name.endswith("norm.weight") else 0,
            )
        )
    if facts.tied and architecture.needs_output:
        table = next(t for t in tensors if t.name == "token_embd.weight")
        kept = _type_of("output.weight", table.stored, kind, facts)
        tensors.append(Planned("output.weight", kept, table.stored))
    return tensors


def tensor_name(architecture: Architecture, path: str) -> str:
    """GGUF's name of a weight or bias of mlx-lm's. Raises ModelError where it has none."""
    layer, _, part = path.rpartition(".")
    name = architecture.tensor(layer)
    known = name is not None and (
        part == "weight" or (part == "bias" and name.rpartition(".")[2] in architecture.biases)
    )
    if not known:
        raise ModelError(f"llama.cpp's {architecture.name} has no {path}")
    return f"{name}.{part}"


def interleaved(rows: int, heads: int) -> NDArray[np.int32]:
    """The order of q or k rows in which the two halves that are rotated together alternate."""
    halves = np.arange(rows, dtype=np.int32).reshape(heads, 2, rows // heads // 2)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)


def rotated_heads(name: str, facts: Facts) -> int | None:
    """The heads of a tensor whose rows are rotated; None for any other."""
    layer = name.split(".")[-2]
    return {"attn_q": facts.heads, "attn_k": facts.kv_heads}.get(layer)


def _type_of(name: str, stored: Stored, kind: str, facts: Facts) -> Type:
    if len(stored.shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return Type.F32
    if kind in _CODES:
        return same_codes(stored) or _homeless(stored, kind)
    if kind not in _BLOCKS:
        return _FLOATS.get(kind, Type.F16)
    if stored.shape[-1] % BLOCK:
        return Type.F16
    head = "token_embd.weight" if facts.tied else "output.weight"
    # What decides between tokens gets 8 bits, as in llama.cpp's own mixes.
    return Type.Q8_0 if name == head else _BLOCKS[kind]


def _homeless(stored: Stored, kind: str) -> Type:
    """The type of floats, and of codes that GGUF has no blocks for."""
    fits = stored.scales is not None and stored.mode == "affine" and not stored.shape[-1] % BLOCK
    return Type.Q8_0 if kind == "native" and fits else float_twin(stored)


def _notes(tensors: Sequence[Planned], kind: str, wide: frozenset[str]) -> list[str]:
    notes = []
    odd = [t for t in tensors if kind in _BLOCKS and t.type == Type.F16]
    if odd:
        notes.append(f"{len(odd)} tensors as F16: their rows are no multiple of {BLOCK} wide")
    if wide:
        notes.append(f"{len(wide)} tensors as F32: they hold numbers beyond a half")
    homeless: dict[str, int] = {}
    for tensor in tensors:
        stored = tensor.stored
        if kind in _CODES and stored.scales is not None and same_codes(stored) is None:
            what = f"{stored.bits}-bit {stored.mode} tensors as {tensor.type.name}"
            homeless[what] = homeless.get(what, 0) + 1
    smaller = " (native, q8_0 or f16 are smaller, not exact)" if kind == "lossless" else ""
    notes += [
        f"{n} {what}: GGUF has no blocks for their codes{smaller}" for what, n in homeless.items()
    ]
    return notes


def _place(tensor: Planned) -> tuple[int, int, str]:
    """The token table first, then block by block."""
    parts = tensor.name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), tensor.name
    return (2 if tensor.name.startswith("output") else 0), 0, tensor.name


def add_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    """Add keys under the architecture's name, each in the type of its value.

    Raises ModelError for a number beyond a key of 32 bits.
    """
    for name, value in keys.items():
        key = f"{writer.arch}.{name}"
        fits = 0 <= value < 1 << 32 if isinstance(value, int) else True
        if not fits or (isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT):
            raise ModelError(f"{name} is {value!s:.20}, which no key of a GGUF file holds")
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))


def header(writer: gguf.GGUFWriter, tensors: Sequence[Planned]) -> bytes:
    """All that comes before the data."""
    for tensor in tensors:
        size_bytes = data_bytes(tensor)
        # With another type than bytes, the shape is taken as it is.
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), size_bytes, raw_dtype=tensor.type
        )
    # The package writes to a path only.
    with tempfile.TemporaryDirectory() as folder, storage_errors(folder):
        path = Path(folder) / "header"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        start = path.read_bytes()
    return start + bytes(-len(start) % _ALIGNMENT_BYTES)


def write(out: Path, start: bytes, tensors: list[Planned]) -> int:
    """Write a file durably and return its size in bytes; ``tensors`` is emptied on the way.

    Raises what `Planned.chunks` raises, and StorageError.
    """
    needed_bytes = len(start) + sum(data_bytes(t) + _ALIGNMENT_BYTES for t in tensors)
    require_free_bytes(out, needed_bytes, "the GGUF file")
    write_durably(out, _data(start, tensors))
    return out.stat().st_size


def data_bytes(tensor: Planned) -> int:
    """Size of a tensor's data."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
    return int(np.prod(tensor.shape, dtype=np.int64)) // block * block_bytes


def _data(start: bytes, tensors: list[Planned]) -> Iterator[bytes]:
    yield start
    tensors.reverse()
    while tensors:
        # Taken out of the list, so that its weights leave memory when they are written.
        tensor = tensors.pop()
        yield from tensor.chunks()
        yield bytes(-data_bytes(tensor) % _ALIGNMENT_BYTES)
        del tensor
        mx.clear_cache()
