"""Export to GGUF: one file with weights, tokenizer and chat template, for llama.cpp and others."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.gguf.blocks import Overflow
from mlx_itune.export.gguf.file import add_keys, header, write
from mlx_itune.export.gguf.kquants import quantize, require_quantizer
from mlx_itune.export.gguf.plan import K_QUANTS, KINDS, Plan, Planned, plan
from mlx_itune.export.gguf.tokenizer import add_tokenizer, tokenizer_limits
from mlx_itune.export.gguf.tokenizer_check import TokenizerCheck, check_tokenizer
from mlx_itune.export.gguf.verify import GgufVerification, verify_gguf
from mlx_itune.kit.errors import ModelError, UsageError, closest
from mlx_itune.kit.files import staged_file

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

Observe = Callable[[str], None]


@dataclass(frozen=True)
class GgufExport:
    """The file written, what could not be as asked, and what reading it back showed.

    ``write_s``: seconds until the file, of halves where a K-quant is made, was safe on disk.
    """

    path: str
    kind: str
    architecture: str
    bytes: int
    write_s: float
    notes: tuple[str, ...]
    verify: GgufVerification
    tokenizer: TokenizerCheck


def export_gguf(
    source_dir: Path,
    out_file: Path,
    *,
    kind: str,
    tokenizer: ChatTokenizer,
    name: str | None = None,
    overwrite: bool = False,
    observe: Observe | None = None,
) -> GgufExport:
    """Write a model directory, as mlx-lm reads it, to one GGUF file; compare every tensor.

    ``kind``: "f32", "f16", "bf16", "q8_0", "q4_0"; "lossless" for the very codes of MLX's 2- to
    5-bit and mxfp4 layers, floats elsewhere; "native" likewise, wider codes as "q8_0"; "q4_k_m",
    "q5_k_m", "q6_k" through llama.cpp's quantizer. ``name``: the model's name, by default the
    directory's. Raises UsageError for another kind, ModelError for
    what llama.cpp cannot run or a file that does not read back as its source, StorageError.
    """
    if kind not in KINDS:
        near = closest(kind, KINDS)
        hint = f"did you mean {near}?" if near else "one of " + ", ".join(KINDS)
        raise UsageError(f"unknown GGUF type {kind!r}", hint=hint)
    if kind in K_QUANTS:
        require_quantizer()
    say = observe or (lambda _: None)
    with staged_file(out_file, overwrite=overwrite) as stage:
        # The quantizer reads halves, and writes beside them.
        first = stage.with_suffix(".f16") if kind in K_QUANTS else stage
        started = time.monotonic()
        say(f"writing {kind if first == stage else 'f16'}")
        done = _write_whole(source_dir, first, kind, tokenizer, name or source_dir.resolve().name)
        write_s = time.monotonic() - started
        say("reading it back")
        checked = verify_gguf(first, source_dir)
        if first != stage:
            say(f"quantizing to {kind}")
            quantize(first, stage, kind)
            checked = verify_gguf(stage, source_dir, requantized=True)
        try:
            read = check_tokenizer(stage, tokenizer)
        except ModelError as error:
            raise ModelError(error.message, where=str(source_dir), hint=error.hint) from None
        size_bytes = stage.stat().st_size
    return GgufExport(
        path=str(out_file),
        kind=kind,
        architecture=done.architecture.name,
        bytes=size_bytes,
        write_s=write_s,
        notes=(*done.notes, *tokenizer_limits(tokenizer)),
        verify=checked,
        tokenizer=read,
    )


def require_exportable(source_dir: Path, kind: str | None, tokenizer: ChatTokenizer) -> None:
    """Raises ModelError, UsageError for what `export_gguf` refuses before it writes a weight."""
    if kind in K_QUANTS:
        require_quantizer()
    _described(plan(source_dir, "f32"), source_dir, tokenizer, source_dir.name)


def _write_whole(source: Path, out: Path, kind: str, tokenizer: ChatTokenizer, name: str) -> Plan:
    """Write; start again with a tensor in F32 where a half turns out to be too small for it."""
    wide: frozenset[str] = frozenset()
    while True:
        planned = plan(source, kind, wide)
        start = header(_described(planned, source, tokenizer, name), planned.tensors)
        names = {t.stored.name: t.name for t in planned.tensors}
        try:
            write(out, start, planned.tensors)
            return planned
        except Overflow as error:
            wide |= {names[error.name]}
        except ModelError as error:
            raise ModelError(error.message, where=str(source), hint=error.hint) from None


def _described(planned: Plan, source: Path, tokenizer: ChatTokenizer, name: str) -> gguf.GGUFWriter:
    """A writer that knows all keys."""
    writer = gguf.GGUFWriter(None, planned.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    # Named so, llama.cpp tokenizes as Phi 3 does; add_tokenizer adds it where that is right.
    writer.add_name(re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE))
    writer.add_file_type(_file_type(planned.tensors))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_keys(writer, planned.keys)
    rows = planned.facts.rows
    add_tokenizer(writer, source, tokenizer, {**planned.facts.config, "vocab_size": rows})
    tokens = writer.kv_data[0].get(gguf.Keys.Tokenizer.LIST)
    if tokens is None or len(tokens.value) != rows:
        count = 0 if tokens is None else len(tokens.value)
        raise ModelError(f"has {rows} rows of embeddings for {count} tokens", where=str(source))
    return writer


def _file_type(tensors: Sequence[Planned]) -> int:
    """llama.cpp's number for what most weights are."""
    matrices: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            matrices[tensor.type.name] += 1
    return int(_FILE_TYPES[matrices.most_common(1)[0][0]])
