"""A model's sizes from the headers of its files and its config.json; no weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.tensorfile import TensorInfo, read_header
from mlx_itune.model.adapters.targets import NARROWEST, key_names
from mlx_itune.model.loading.fingerprint import weight_files

_BLOCK = re.compile(r"(?:^|.*?\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
# Separate experts of a Hugging Face checkpoint, which mlx-lm stacks.
_EXPERT = re.compile(r"experts\.\d+\.")
_EXPERTS = re.compile(r"experts|switch")
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

    @property
    def is_table(self) -> bool:
        """Whether it is the token table."""
        return self.block is None and "embed" in self.path


@dataclass(frozen=True)
class Shapes:
    """query, key: widths of all heads together; norms: numbers of each block's norms;
    other_bytes: whatever is no matrix, on disk, and what of it has 16 bits; kind: the model's
    type."""

    layers: int
    hidden: int
    heads: int
    query: int
    key: int
    vocabulary: int
    experts_per_token: int
    matrices: tuple[Matrix, ...]
    norms: Mapping[int, int]
    other_bytes: int = 0
    other_half_bytes: int = 0
    kind: str | None = None

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

    def times(self, matrix: Matrix) -> int:
        """How often a position passes a layer: of experts, several."""
        return min(self.experts_per_token, matrix.experts)


def read_shapes(path: Path, config: Mapping[str, Any]) -> Shapes:
    """The sizes of a model directory. Raises ModelError for files that are not understood."""
    config = config.get("text_config") or config
    # mlx-lm drops a head that is the table, and stored rotary frequencies.
    dropped = ("lm_head.",) if config.get("tie_word_embeddings") else ()
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        header = read_header(file).items()
        tensors |= {n: i for n, i in header if not n.startswith(dropped) and "inv_freq" not in n}
    matrices = _matrices(tensors, config)
    blocks = [m.block for m in matrices if m.block is not None]
    if not blocks:
        raise ModelError("no blocks of layers were found in its weights", where=str(path))
    taken = {f"{m.path}.{part}" for m in matrices for part in ("weight", "scales", "biases")}
    norms: dict[int, int] = {}
    other = other_half = 0
    for name, info in tensors.items():
        if _EXPERT.sub("experts.", name) in taken:
            continue
        other += info.end - info.start
        other_half += info.end - info.start if info.dtype in _HALF else 0
        block = _BLOCK.fullmatch(name)
        if block and len(info.shape) == 1 and name.endswith("norm.weight"):
            norms[int(block[1])] = norms.get(int(block[1]), 0) + info.shape[0]

    def number(*names: str) -> int | None:
        values = (config.get(name) for name in names)
        return next((v for v in values if type(v) is int and v > 0), None)

    table = next((m for m in matrices if m.is_table or m.name.endswith("wte")), None)
    head = next((m for m in matrices if m.block is None and _HEAD.search(m.path)), table)
    hidden = number("hidden_size", "n_embd", "d_model") or (table.columns if table else 1)
    heads = number("num_attention_heads", "n_head", "n_heads") or 1
    head_dim = number("head_dim") or max(1, hidden // heads)
    return Shapes(
        layers=max(blocks) + 1,
        hidden=hidden,
        heads=heads,
        query=heads * head_dim,
        key=(number("num_key_value_heads", "num_kv_heads") or heads) * head_dim,
        vocabulary=head.rows if head else number("vocab_size") or 1,
        experts_per_token=number("num_experts_per_tok", "top_k_experts", "moe_topk") or 1,
        matrices=tuple(matrices),
        norms=norms,
        other_bytes=other,
        other_half_bytes=other_half,
        kind=config.get("model_type"),
    )


def chosen(
    shapes: Shapes, keys: Sequence[str], num_layers: int, *, experts: bool = True
) -> list[Matrix]:
    """The matrices that an adapter goes on, by the rules of `targets.choose`."""
    first = 0 if num_layers == -1 else max(0, shapes.layers - num_layers)
    within = [m for m in shapes.matrices if m.block is None or m.block >= first]
    if not keys:
        wide = [m for m in within if m.experts > 1 or min(m.rows, m.columns) >= NARROWEST]
        return [m for m in wide if m.block is not None and (experts or m.experts == 1)]
    found: dict[str, Matrix] = {}
    for key in keys:
        exact = [m for m in within if key in (m.name, m.path)]
        found |= {m.path: m for m in exact or within if exact or key_names(key, m.name, m.path)}
    return list(found.values())


def _matrices(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> list[Matrix]:
    found: dict[str, Matrix] = {}
    for name, info in tensors.items():
        path = name.removesuffix(".weight")
        stacked = len(info.shape) == 3 and bool(_EXPERTS.search(path))
        if path == name or not (len(info.shape) == 2 or stacked):
            continue
        scales = tensors.get(f"{path}.scales")
        biases = tensors.get(f"{path}.biases") if scales else None
        grid = sum(part.end - part.start for part in (scales, biases) if part)
        columns, bits, group = info.shape[-1], None, 0
        if scales:
            group = _group_size(config, path)
            columns = scales.shape[-1] * group
            bits = 32 * info.shape[-1] // columns
        block = _BLOCK.fullmatch(path)
        merged = _EXPERT.sub("experts.", path)
        before = found.get(merged) if merged != path else None
        found[merged] = Matrix(
            path=merged,
            name=_EXPERT.sub("experts.", block[2]) if block else merged,
            block=int(block[1]) if block else None,
            rows=info.shape[-2],
            columns=columns,
            experts=math.prod(info.shape[:-2]) + (before.experts if before else 0),
            bits=bits,
            group_size=group,
            stored_bytes=info.end - info.start + grid + (before.stored_bytes if before else 0),
            grid_bytes=grid + (before.grid_bytes if before else 0),
            half=(scales or info).dtype in _HALF,
        )
    return list(found.values())


def _group_size(config: Mapping[str, Any], path: str) -> int:
    settings = config.get("quantization") or config.get("quantization_config") or {}
    own = settings.get(path) if isinstance(settings, dict) else None
    for place in (own, settings):
        if isinstance(place, dict) and isinstance(place.get("group_size"), int):
            return max(1, int(place["group_size"]))
    return 64
