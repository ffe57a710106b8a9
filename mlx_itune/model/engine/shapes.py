"""A model's sizes from the headers of its files and its config.json; no weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.tensorfile import TensorInfo, read_header
from mlx_itune.model.adapters.targets import key_names
from mlx_itune.model.loading.fingerprint import weight_files

_BLOCK = re.compile(r"(?:^|.*?\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
# Separate experts of a Hugging Face checkpoint, which mlx-lm stacks.
_EXPERT = re.compile(r"experts\.\d+\.")
_EXPERTS = re.compile(r"experts|switch")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|tok_embeddings|embeddings?|word_embeddings)$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output|embed_out)$")
_HALF = ("F16", "BF16")


@dataclass(frozen=True)
class Matrix:
    """A linear layer or table. `name` is its name in its block, or its path outside of blocks.

    rows (out) and columns (in), unpacked, of each of `experts`; stored_bytes: what `.weight`,
    scales and biases take in the file, grid_bytes: scales and biases alone, 0 if not quantized.
    """

    path: str
    name: str
    block: int | None
    rows: int
    columns: int
    experts: int
    bits: int | None
    group_size: int
    stored_bytes: int
    grid_bytes: int
    half: bool

    @property
    def numbers(self) -> int:
        """Weights, unpacked."""
        return self.rows * self.columns * self.experts


@dataclass(frozen=True)
class Shapes:
    """norms: the vectors of a block by name; other_bytes: whatever is no matrix, on disk."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts_per_token: int
    window: int | None
    context: int | None
    matrices: tuple[Matrix, ...]
    norms: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    other_bytes: int = 0
    other_half_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors that are loaded, as stored."""
        return self.other_bytes + sum(m.stored_bytes for m in self.matrices)

    @property
    def quantized(self) -> bool:
        """Whether any matrix is."""
        return any(m.bits for m in self.matrices)

    @property
    def half(self) -> bool:
        """Whether activations are 16-bit where the weights' own type is used."""
        return any(m.half for m in self.matrices)

    def blocks(self) -> list[list[Matrix]]:
        """The matrices of each block."""
        found: list[list[Matrix]] = [[] for _ in range(self.layers)]
        for matrix in self.matrices:
            if matrix.block is not None:
                found[matrix.block].append(matrix)
        return found

    def tables(self) -> list[Matrix]:
        """Token table and output head."""
        return [m for m in self.matrices if m.block is None]


def read_shapes(path: Path, config: Mapping[str, Any]) -> Shapes:
    """The sizes of a model directory. Raises ModelError for files that are not understood."""
    config = config.get("text_config") or config
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        tensors |= read_header(file)
    # mlx-lm drops a head that is the table, and stored rotary frequencies.
    tied = bool(config.get("tie_word_embeddings", False))
    tensors = {
        name: info
        for name, info in tensors.items()
        if not (tied and name.startswith("lm_head.")) and "rotary_emb.inv_freq" not in name
    }
    matrices, taken = _matrices(tensors, config)
    norms: dict[int, dict[str, int]] = {}
    other = other_half = 0
    for name, info in tensors.items():
        if name in taken:
            continue
        size = info.end - info.start
        other += size
        other_half += size if info.dtype in _HALF else 0
        match = _BLOCK.fullmatch(name)
        if match and len(info.shape) == 1 and name.endswith("norm.weight"):
            norms.setdefault(int(match[1]), {})[match[2]] = info.shape[0]
    indices = [m.block for m in matrices if m.block is not None]
    if not indices:
        raise ModelError("no blocks of layers were found in its weights", where=str(path))
    return _shapes(config, matrices, max(indices) + 1, norms, other, other_half)


def chosen(
    shapes: Shapes, keys: Sequence[str], num_layers: int, *, experts: bool = True
) -> list[Matrix]:
    """The matrices that an adapter goes on, by the rules of `targets.choose`."""
    first = 0 if num_layers == -1 else max(0, shapes.layers - num_layers)
    within = [m for m in shapes.matrices if m.block is None or m.block >= first]
    if not keys:
        return [m for m in within if m.block is not None and (experts or m.experts == 1)]
    found: dict[str, Matrix] = {}
    for key in keys:
        exact = [m for m in within if key in (m.name, m.path)]
        found |= {m.path: m for m in exact or within if exact or key_names(key, m.name, m.path)}
    return list(found.values())


def _matrices(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[list[Matrix], set[str]]:
    found: dict[str, Matrix] = {}
    taken: set[str] = set()
    for name, info in tensors.items():
        path = name.removesuffix(".weight")
        quantized = f"{path}.scales" in tensors
        deep = len(info.shape)
        stacked = deep == 3 and bool(_EXPERTS.search(path))
        if path == name or not (deep == 2 or stacked):
            continue
        parts = [name, *(f"{path}.{part}" for part in ("scales", "biases") if quantized)]
        parts = [part for part in parts if part in tensors]
        taken.update(parts)
        stored = sum(tensors[part].end - tensors[part].start for part in parts)
        columns, bits, group = info.shape[-1], None, 0
        kind = info.dtype
        if quantized:
            scales = tensors[f"{path}.scales"]
            kind, group = scales.dtype, _group_size(config, path)
            bits = 32 * columns // (scales.shape[-1] * group)
            columns = scales.shape[-1] * group
        block = _BLOCK.fullmatch(path)
        merged = _EXPERT.sub("experts.", path)
        before = found.get(merged) if merged != path else None
        count = math.prod(info.shape[:-2]) + (before.experts if before else 0)
        grid = stored - (info.end - info.start)
        found[merged] = Matrix(
            path=merged,
            name=_EXPERT.sub("experts.", block[2]) if block else merged,
            block=int(block[1]) if block else None,
            rows=info.shape[-2],
            columns=columns,
            experts=count,
            bits=bits,
            group_size=group,
            stored_bytes=stored + (before.stored_bytes if before else 0),
            grid_bytes=grid + (before.grid_bytes if before else 0),
            half=kind in _HALF,
        )
    return list(found.values()), taken


def _group_size(config: Mapping[str, Any], path: str) -> int:
    settings = config.get("quantization") or config.get("quantization_config") or {}
    own = settings.get(path) if isinstance(settings, dict) else None
    for place in (own, settings):
        if isinstance(place, dict) and isinstance(place.get("group_size"), int):
            return max(1, int(place["group_size"]))
    return 64


def _shapes(
    config: Mapping[str, Any],
    matrices: list[Matrix],
    layers: int,
    norms: Mapping[int, Mapping[str, int]],
    other_bytes: int,
    other_half_bytes: int,
) -> Shapes:
    def number(*names: str) -> int | None:
        values = (config.get(name) for name in names)
        return next((v for v in values if type(v) is int and v > 0), None)

    outside = [m for m in matrices if m.block is None]
    table = next((m for m in outside if _EMBEDDING.search(m.path)), None)
    head = next((m for m in outside if _HEAD.search(m.path)), table)
    hidden = number("hidden_size", "n_embd", "d_model") or (table.columns if table else 1)
    heads = number("num_attention_heads", "n_head", "n_heads") or 1
    window = number("sliding_window")
    return Shapes(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", "num_kv_heads") or heads,
        head_dim=number("head_dim") or max(1, hidden // heads),
        vocabulary=head.rows if head else number("vocab_size") or 1,
        experts_per_token=number("num_experts_per_tok", "top_k_experts", "moe_topk") or 1,
        window=window if config.get("use_sliding_window", True) else None,
        context=number("max_position_embeddings"),
        matrices=tuple(matrices),
        norms=norms,
        other_bytes=other_bytes,
        other_half_bytes=other_half_bytes,
    )
