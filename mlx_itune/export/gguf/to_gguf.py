"""Export to GGUF: one file with weights, tokenizer and chat template, for llama.cpp and others."""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType as Type

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import Exported, describe
from mlx_itune.export.gguf.architectures import Architecture, Facts, architecture_of
from mlx_itune.export.gguf.tensors import BLOCK, Overflow, Planned, float_twin, same_codes, write
from mlx_itune.export.gguf.tokenizer import add_tokenizer, check_tokenizer, tokenizer_limits
from mlx_itune.export.gguf.verify import Reader, verify_gguf
from mlx_itune.export.request import CODES, Observe, Request
from mlx_itune.export.stored import Stored, stored_tensors
from mlx_itune.kit.errors import ModelError, UsageError, located
from mlx_itune.kit.files import staged_file
from mlx_itune.kit.json_files import read_object
from mlx_itune.model.loading import base

# What llama.cpp's own quantizer makes, from halves (llama.h, enum llama_ftype).
_K_QUANTS = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
_FLOATS = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16}
_BLOCKS = {"q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_FILE_TYPES = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}

# Writes base + adapter as a model directory.
Merge = Callable[[Path], None]


def export_gguf(
    request: Request, source_dir: Path, observe: Observe, merged: Merge | None = None
) -> Exported:
    """Write a model directory, as mlx-lm reads it, to one GGUF file; compare every tensor.
    ``merged`` makes the model that is written instead. Raises UsageError where llama.cpp's
    quantizer is needed and not there, ModelError for what llama.cpp cannot run or a file that does
    not read back as its source, StorageError."""
    kind, tokenizer = request.type, request.tokenizer
    if kind in _K_QUANTS:
        _quantizer()
    with staged_file(request.out) as stage:
        source = source_dir
        if merged is not None:
            source = stage.with_name("merged")
            merged(source)
        kind = kind or own_kind(source)
        # The quantizer reads halves, and writes beside them.
        first = stage.with_suffix(".f16") if kind in _K_QUANTS else stage
        observe(f"writing {kind if first == stage else 'f16'}")
        with located(source_dir):
            name = request.name_of(source_dir)
            planned = _write_whole(source, first, kind, tokenizer, name)
            observe("reading it back")
            reader = Reader(first)
            checked = verify_gguf(reader, source)
            if first != stage:
                observe(f"quantizing to {kind}")
                _quantize(first, stage, kind)
                reader = Reader(stage)
                checked = verify_gguf(reader, source, requantized=True)
            read = check_tokenizer(reader.keys(), tokenizer)
    notes = (*planned.notes, *tokenizer_limits(tokenizer))
    return Exported((describe(request.out, "gguf"),), checked, tokenizer=read, notes=notes)


def own_kind(source_dir: Path) -> str:
    """The type that keeps a model's own codes; halves where it has none."""
    config = read_object(source_dir / "config.json", error=ModelError)
    return "native" if config.get("quantization") else "f16"


def require_exportable(source_dir: Path, kind: str | None, tokenizer: ChatTokenizer) -> None:
    """Raises ModelError, UsageError for what `export_gguf` refuses before it writes a weight."""
    if kind in _K_QUANTS:
        _quantizer()
    with located(source_dir):
        _described(_plan(source_dir, "f32"), tokenizer, source_dir.name)


def _write_whole(source: Path, out: Path, kind: str, tokenizer: ChatTokenizer, name: str) -> _Plan:
    """Write; start again with a tensor in F32 where a half turns out to be too small for it."""
    wide: frozenset[str] = frozenset()
    while True:
        planned = _plan(source, kind, wide)
        writer = _described(planned, tokenizer, name)
        names = {t.stored.name: t.name for t in planned.tensors}
        try:
            write(out, writer, planned.tensors)
            return planned
        except Overflow as error:
            wide |= {names[error.name]}


@dataclass(frozen=True)
class _Plan:
    """A whole file but for its tokenizer; ``tensors`` is emptied while it is written."""

    architecture: str
    rows: int
    keys: Mapping[str, Any]
    tensors: list[Planned]
    notes: tuple[str, ...]


def _plan(source: Path, kind: str, wide: frozenset[str] = frozenset()) -> _Plan:
    """What ``kind`` makes of a model directory as mlx-lm reads it; ``wide``: tensors kept in F32.
    No weight is read yet. Raises ModelError for what llama.cpp does not know."""
    model, config = base.read(source)
    architecture, facts = architecture_of(model, config)
    told = architecture.told(facts)
    tensors = _tensors(model, architecture, facts, kind, wide)
    for name, factors in told.tensors.items():
        tensors.append(Planned(name, Type.F32, Stored(name, mx.array(factors))))
    notes = (*told.notes, *_notes(tensors, kind, wide))
    return _Plan(architecture.name, facts.rows, told.keys, sorted(tensors, key=_place), notes)


def _tensors(
    model: nn.Module, architecture: Architecture, facts: Facts, kind: str, wide: frozenset[str]
) -> list[Planned]:
    tensors = []
    for path, stored in stored_tensors(getattr(model, "language_model", model)).items():
        name = architecture.tensor_name(path, facts)
        type_ = _type_of(name, stored, kind, facts) if name not in wide else Type.F32
        order = architecture.row_order(name, stored.shape[0], facts)
        offset = architecture.norm_offset if name.endswith("norm.weight") else 0
        tensors.append(Planned(name, type_, stored, order, offset))
    if facts.tied and architecture.needs_output:
        table = next(t for t in tensors if t.name == "token_embd.weight")
        kept = _type_of("output.weight", table.stored, kind, facts)
        tensors.append(Planned("output.weight", kept, table.stored))
    return tensors


def _type_of(name: str, stored: Stored, kind: str, facts: Facts) -> Type:
    if len(stored.shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return Type.F32
    if kind in CODES and (twin := same_codes(stored)):
        return twin
    if kind in CODES:
        # Floats, and codes that GGUF has no blocks for.
        fits = stored.mode == "affine" and not stored.shape[-1] % BLOCK
        return Type.Q8_0 if kind == "native" and fits else float_twin(stored)
    if kind not in _BLOCKS:
        return _FLOATS.get(kind, Type.F16)
    if stored.shape[-1] % BLOCK:
        return Type.F16
    head = "token_embd.weight" if facts.tied else "output.weight"
    # What decides between tokens gets 8 bits, as in llama.cpp's own mixes.
    return Type.Q8_0 if name == head else _BLOCKS[kind]


def _notes(tensors: Sequence[Planned], kind: str, wide: frozenset[str]) -> list[str]:
    notes = []
    odd = [t for t in tensors if kind in _BLOCKS and t.type == Type.F16]
    if odd:
        notes.append(f"{len(odd)} tensors as F16: their rows are no multiple of {BLOCK} wide")
    if wide:
        notes.append(f"{len(wide)} tensors as F32: they hold numbers beyond a half")
    homeless = Counter(
        f"{t.stored.bits}-bit {t.stored.mode} tensors as {t.type.name}"
        for t in tensors
        if kind in CODES and t.stored.scales is not None and same_codes(t.stored) is None
    )
    smaller = " (native, q8_0 or f16 are smaller, not exact)" if kind == "lossless" else ""
    why = f"GGUF has no blocks for their codes{smaller}"
    return notes + [f"{n} {what}: {why}" for what, n in homeless.items()]


def _place(tensor: Planned) -> tuple[int, int, str]:
    parts = tensor.name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), tensor.name
    return (2 if tensor.name.startswith("output") else 0), 0, tensor.name


def _described(planned: _Plan, tokenizer: ChatTokenizer, name: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(None, planned.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    # Named so, llama.cpp tokenizes as Phi 3 does; add_tokenizer adds it where that is right.
    writer.add_name(re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE))
    # llama.cpp's number for what most weights are.
    matrices = Counter(t.type.name for t in planned.tensors if len(t.stored.shape) > 1)
    most = matrices.most_common(1)[0][0]
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES.get(most, f"MOSTLY_{most}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_keys(writer, planned.keys)
    add_tokenizer(writer, tokenizer, planned.rows)
    return writer


def _add_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    """Add keys under the architecture's name, each in the type of its value. Raises ModelError for
    a number beyond a key of 32 bits."""
    for name, value in keys.items():
        key = f"{writer.arch}.{name}"
        fits = 0 <= value < 1 << 32 if isinstance(value, int) else True
        if not fits or (isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT):
            raise ModelError(f"{name} is {value!s:.20}, which no key of a GGUF file holds")
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))


def _quantizer() -> Any:
    """The llama_cpp package. Raises UsageError where it is not installed."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        hint = "pip install llama-cpp-python, or choose q8_0, q4_0 or lossless"
        raise UsageError("K-quants need llama.cpp's own quantizer", hint=hint) from error
    return llama_cpp


def _quantize(source: Path, out: Path, kind: str) -> None:
    """Make a K-quant file of a GGUF file of floats. Raises ModelError where llama.cpp fails."""
    llama_cpp = _quantizer()
    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level in (2, 3):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            said.append(text.decode("utf-8", "replace").strip())

    llama_cpp.llama_log_set(listen, ctypes.c_void_p())
    try:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = _K_QUANTS[kind]
        parameters.nthread = os.cpu_count() or 1
        failed = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(parameters)
        )
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p())
    if failed or not out.is_file():
        reason = said[-1] if said else f"error {failed}"
        raise ModelError(f"llama.cpp could not quantize it: {reason}", where=out.name)
    with out.open("rb") as file:
        os.fsync(file.fileno())
