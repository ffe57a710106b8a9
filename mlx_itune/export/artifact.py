"""A model directory as it ships: an allow-list of files, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.files import beside, require_free_bytes, sha256_file, storage_errors, sweep

# Data only; a model's Python files are never copied.
_CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
)
_SHARD_BYTES = 4 << 30
_EXPONENTS = {mx.float16: 0x7C00, mx.bfloat16: 0x7F80, mx.float32: 0x7F800000}


@dataclass(frozen=True)
class Artifact:
    """One thing that ships. ``sha256`` of a directory covers every file's name and bytes."""

    path: str
    format: str
    bytes: int
    sha256: str


def describe(path: Path, kind: str) -> Artifact:
    """Size and digest of a finished artefact, file or directory. Raises StorageError."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    with storage_errors(path):
        size_bytes = sum(file.stat().st_size for file in files)
    if path.is_file():
        return Artifact(str(path), kind, size_bytes, sha256_file(path))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{sha256_file(file)}  {file.relative_to(path).as_posix()}\n".encode())
    return Artifact(str(path), kind, size_bytes, digest.hexdigest())


def refuse_same(source: Path, out: Path) -> None:
    """Raise UsageError where ``out`` is, holds or lies in the model it is made from."""
    a, b = source.resolve(), out.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UsageError("is the model itself", where=str(out), hint="choose another --out")


@contextlib.contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """A folder on the disk of ``out`` that goes when the block ends."""
    parent = out.absolute().parent
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent, out.name)
        folder = beside(parent / out.name)
        folder.mkdir(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def write_model(
    stage: Path,
    source: Path,
    tensors: Mapping[str, Any],
    quantization: Mapping[str, Any] | None,
    tokenizer: ChatTokenizer,
) -> None:
    """Config, weights and tokenizer files into ``stage``. Raises StorageError, ModelError."""
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    require_free_bytes(stage, size_bytes + (16 << 20), "the model")
    config = read_json(source / "config.json")
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
        if quantization is not None:
            config[key] = dict(quantization)
    write_papers(stage, source, config, tokenizer)
    with storage_errors(stage):
        _write_tensors(stage, tensors)


def write_papers(
    stage: Path, source: Path, config: dict[str, Any], tokenizer: ChatTokenizer
) -> None:
    """Everything but the weights: ``config``, and tokenizer and template as they were trained.

    Raises StorageError, ModelError.
    """
    carry_tokenizer(stage, source, config, tokenizer)
    with storage_errors(stage):
        write_json(stage / "config.json", config)


def carry_tokenizer(
    stage: Path, source: Path, config: dict[str, Any], tokenizer: ChatTokenizer
) -> None:
    """The files of the tokenizer, with the template trained; ``config`` gets its end of turn.

    Raises StorageError; ModelError for a tokenizer that has more tokens than the model.
    """
    _require_room(source, config, tokenizer)
    with storage_errors(stage):
        for name in _CARRIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, stage / name)
        _carry_template(stage, config, tokenizer)


def _require_room(source: Path, config: Mapping[str, Any], tokenizer: ChatTokenizer) -> None:
    """Every token of the file has a row, but for one that only fills rows up."""
    rows, backend = config.get("vocab_size"), tokenizer.hf.backend_tokenizer
    if not isinstance(rows, int):
        return
    saved = json.loads(backend.to_str())["added_tokens"]
    file = source / "tokenizer.json"
    if file.is_file():
        # Where a token is not in the file, transformers may add one of its own.
        saved = read_json(file).get("added_tokens") or []
    ids = [token["id"] for token in saved if token["content"] != tokenizer.hf.pad_token]
    last = max([*backend.get_vocab(with_added_tokens=False).values(), *ids, *tokenizer.eos_ids])
    if last >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {last}, the model {rows} rows for them",
            where=str(source),
            hint="the tokenizer is another model's",
        )


def quantization_config(
    base: Mapping[str, Any] | None, layers: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any] | None:
    """mlx-lm's ``quantization`` entry: the commonest grid, and each layer that differs from it."""
    if not layers:
        return None
    counts = Counter(tuple(sorted(grid.items())) for grid in layers.values())
    default = dict(counts.most_common(1)[0][0])
    if base and any(_same(base, grid) for grid in layers.values()):
        default = {k: base.get(k, "affine") for k in ("group_size", "bits", "mode")}
    return default | {path: dict(grid) for path, grid in layers.items() if dict(grid) != default}


def _same(base: Mapping[str, Any], grid: Mapping[str, Any]) -> bool:
    return all(base.get(key, "affine") == grid[key] for key in grid)


def _carry_template(stage: Path, config: dict[str, Any], tokenizer: ChatTokenizer) -> None:
    """A built-in template becomes the model's own, with the tokens that end its turns."""
    settings_file = stage / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    settings.pop("auto_map", None)
    if tokenizer.name != "auto":
        settings.pop("chat_template", None)
        (stage / "chat_template.json").unlink(missing_ok=True)
        (stage / "chat_template.jinja").write_text(tokenizer.template_text, encoding="utf-8")
        ends = sorted(tokenizer.eos_ids)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        generation_file = stage / "generation_config.json"
        if generation_file.exists():
            generation = read_json(generation_file)
            generation["eos_token_id"] = config["eos_token_id"]
            write_json(generation_file, generation)
    if settings_file.exists():
        write_json(settings_file, settings)


def require_finite(name: str, tensor: Any) -> None:
    """Raise ModelError for NaN and infinity, whose exponents are all ones.

    As integers in NumPy: MLX's own isfinite takes thirty times as long on a CPU.
    """
    if tensor.dtype not in _EXPONENTS or not tensor.size:
        return
    exponent = _EXPONENTS[tensor.dtype]
    kind = mx.uint32 if exponent > 0xFFFF else mx.uint16
    bits = np.asarray(tensor.reshape(-1).view(kind))
    for start in range(0, bits.size, 1 << 22):
        if ((bits[start : start + (1 << 22)] & exponent) == exponent).any():
            raise ModelError(
                f"{name} holds NaN or infinity",
                hint="the base is broken, or a merged weight is too large for its type",
            )


def _write_tensors(stage: Path, tensors: Mapping[str, Any]) -> None:
    shards: list[dict[str, Any]] = [{}]
    filled_bytes = 0
    for name in sorted(tensors):
        if shards[-1] and filled_bytes + tensors[name].nbytes > _SHARD_BYTES:
            shards.append({})
            filled_bytes = 0
        shards[-1][name] = tensors[name]
        filled_bytes += tensors[name].nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [
            f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, 1 + len(shards))
        ]
    for name, shard in zip(names, shards, strict=True):
        for tensor_name, tensor in shard.items():
            require_finite(tensor_name, tensor)
        try:
            mx.save_safetensors(str(stage / name), shard, metadata={"format": "mlx"})
        except RuntimeError as error:
            raise OSError(0, (str(error).splitlines() or ["write failed"])[0], name) from error
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {n: f for f, shard in zip(names, shards, strict=True) for n in shard},
        }
        write_json(stage / "model.safetensors.index.json", index)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError, StorageError."""
    try:
        with storage_errors(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"is not JSON ({error})", where=str(path)) from error
    if not isinstance(value, dict):
        raise ModelError("is not a JSON object", where=str(path))
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object into a file of a directory that is being staged."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
