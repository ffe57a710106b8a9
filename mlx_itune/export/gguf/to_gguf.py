"""Export to GGUF: one file with weights, tokenizer and chat template, for llama.cpp and others."""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import Exported, describe
from mlx_itune.export.gguf.blocks import Overflow
from mlx_itune.export.gguf.plan import K_QUANTS, KINDS, Plan, Planned, add_keys, header, plan, write
from mlx_itune.export.gguf.tokenizer import add_tokenizer, tokenizer_limits
from mlx_itune.export.gguf.tokenizer_check import check_tokenizer
from mlx_itune.export.gguf.verify import Reader, verify_gguf
from mlx_itune.kit.errors import ModelError, UsageError, located
from mlx_itune.kit.files import staged_file
from mlx_itune.kit.json_files import read_object
from mlx_itune.kit.wording import did_you_mean

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "Q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "MXFP4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
}

# llama.h, enum llama_ftype.
_K_TYPES = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}

# Writes base + adapter as a model directory.
Merge = Callable[[Path], None]


def export_gguf(
    source_dir: Path,
    out_file: Path,
    *,
    kind: str | None,
    tokenizer: ChatTokenizer,
    name: str | None = None,
    merged: Merge | None = None,
    observe: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model directory, as mlx-lm reads it, to one GGUF file; compare every tensor.

    ``kind``: "f32", "f16", "bf16", "q8_0", "q4_0"; "lossless" for the very codes of MLX's 2- to
    5-bit and mxfp4 layers, floats elsewhere; "native" likewise, wider codes as "q8_0"; "q4_k_m",
    "q5_k_m", "q6_k" through llama.cpp's quantizer; None for `own_kind`. ``name``: the model's name,
    by default the directory's. ``merged`` makes the model that is written instead, from the one at
    ``source_dir`` and an adapter. Raises UsageError for another kind, ModelError for what llama.cpp
    cannot run or a file that does not read back as its source, StorageError.
    """
    if kind not in (None, *KINDS):
        hint = did_you_mean(str(kind), KINDS) or "one of " + ", ".join(KINDS)
        raise UsageError(f"unknown GGUF type {kind!r}", hint=hint)
    if kind in K_QUANTS:
        _quantizer()
    with staged_file(out_file) as stage:
        source = source_dir
        if merged is not None:
            source = stage.with_name("merged")
            merged(source)
        kind = kind or own_kind(source)
        # The quantizer reads halves, and writes beside them.
        first = stage.with_suffix(".f16") if kind in K_QUANTS else stage
        observe(f"writing {kind if first == stage else 'f16'}")
        name = name or source_dir.resolve().name
        with located(source_dir):
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
    artifact = describe(out_file, "gguf")
    notes = (*planned.notes, *tokenizer_limits(tokenizer))
    return Exported((artifact,), checked, tokenizer=read, notes=notes)


def own_kind(source_dir: Path) -> str:
    """The type that keeps a model's own codes; halves where it has none."""
    config = read_object(source_dir / "config.json", error=ModelError)
    return "native" if config.get("quantization") else "f16"


def require_exportable(source_dir: Path, kind: str | None, tokenizer: ChatTokenizer) -> None:
    """Raises ModelError, UsageError for what `export_gguf` refuses before it writes a weight."""
    if kind in K_QUANTS:
        _quantizer()
    with located(source_dir):
        _described(plan(source_dir, "f32"), tokenizer, source_dir.name)


def _write_whole(source: Path, out: Path, kind: str, tokenizer: ChatTokenizer, name: str) -> Plan:
    """Write; start again with a tensor in F32 where a half turns out to be too small for it."""
    wide: frozenset[str] = frozenset()
    while True:
        planned = plan(source, kind, wide)
        start = header(_described(planned, tokenizer, name), planned.tensors)
        names = {t.stored.name: t.name for t in planned.tensors}
        try:
            write(out, start, planned.tensors)
            return planned
        except Overflow as error:
            wide |= {names[error.name]}


def _described(planned: Plan, tokenizer: ChatTokenizer, name: str) -> gguf.GGUFWriter:
    """A writer that knows all keys."""
    writer = gguf.GGUFWriter(None, planned.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    # Named so, llama.cpp tokenizes as Phi 3 does; add_tokenizer adds it where that is right.
    writer.add_name(re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE))
    writer.add_file_type(_file_type(planned.tensors))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_keys(writer, planned.keys)
    add_tokenizer(writer, tokenizer, planned.facts.rows)
    return writer


def _file_type(tensors: Sequence[Planned]) -> int:
    """llama.cpp's number for what most weights are."""
    matrices: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            matrices[tensor.type.name] += 1
    return int(_FILE_TYPES[matrices.most_common(1)[0][0]])


def _quantizer() -> Any:
    """The llama_cpp package. Raises UsageError where it is not installed."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            "K-quants need llama.cpp's own quantizer",
            hint="pip install llama-cpp-python, or choose q8_0, q4_0 or lossless",
        ) from error
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
        parameters.ftype = _K_TYPES[kind]
        parameters.nthread = os.cpu_count() or 1
        failed = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(parameters)
        )
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p())
    if failed or not out.is_file():
        reason = said[-1] if said else f"error {failed}"
        raise ModelError(f"llama.cpp could not quantize it: {reason}", where=out.name)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
