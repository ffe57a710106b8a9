"""A model directory as it ships: an allow-list of files, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.files import require_free_bytes, sha256_file, staged_directory, storage_errors
from mlx_itune.kit.json_files import read_object, write_object
from mlx_itune.kit.wording import brief

if TYPE_CHECKING:
    from mlx_itune.export.fusing.fuse import FuseResult
    from mlx_itune.export.gguf.tokenizer import TokenizerCheck

# Data only; a model's Python files are never copied.
_CARRIED = (
    "tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json "
    "added_tokens.json vocab.json merges.txt chat_template.jinja chat_template.json "
    "generation_config.json LICENSE"
).split()
SHARD_BYTES = 4 << 30
_EXPONENTS = {mx.float16: 0x7C00, mx.bfloat16: 0x7F80, mx.float32: 0x7F800000}


@dataclass(frozen=True)
class Artifact:
    """One thing that ships. ``sha256`` of a directory covers every file's name and bytes."""

    path: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Exported:
    """What was written, what reading it back showed, the merge, and what users should know.
    tokenizer: of a GGUF file, what reading texts with its tokenizer showed."""

    artifacts: tuple[Artifact, ...]
    verify: Any
    fuse: FuseResult | None = None
    tokenizer: TokenizerCheck | None = None
    notes: tuple[str, ...] = ()


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
def sealed(out: Path, size_bytes: int, what: str) -> Iterator[Path]:
    """A staged directory, ``out`` once the block is done. Raises StorageError, without room too."""
    with staged_directory(out) as stage:
        require_free_bytes(stage, size_bytes + (16 << 20), what)
        yield stage


def write_model(
    stage: Path,
    source: Path,
    tensors: Mapping[str, Any],
    quantization: Mapping[str, Any] | None,
    tokenizer: ChatTokenizer,
) -> None:
    """Config, weights and tokenizer files into ``stage``. Raises StorageError, ModelError."""
    config = read_object(source / "config.json", error=ModelError)
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
        if quantization is not None:
            config[key] = dict(quantization)
    carry_tokenizer(stage, source, config, tokenizer)
    write_object(stage / "config.json", config)
    sizes = {name: tensors[name].nbytes for name in sorted(tensors)}
    shards = in_shards(sizes)
    for file, names in shards.items():
        for name in names:
            require_finite(name, tensors[name])
        shard = {name: tensors[name] for name in names}
        try:
            mx.save_safetensors(str(stage / file), shard, metadata={"format": "mlx"})
        except RuntimeError as error:
            raise OSError(0, brief(error), file) from error
    write_index(stage, shards, sum(sizes.values()))


def carry_tokenizer(
    stage: Path, source: Path, config: dict[str, Any], tokenizer: ChatTokenizer
) -> None:
    """The files of the tokenizer, with the template trained; ``config`` gets its end of turn.
    Raises ModelError for a tokenizer that has more tokens than the model."""
    _require_room(source, config, tokenizer)
    for name in _CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, stage / name)
    settings_file, generation_file = (
        stage / name for name in ("tokenizer_config.json", "generation_config.json")
    )
    settings = read_object(settings_file, error=ModelError) if settings_file.exists() else {}
    settings.pop("auto_map", None)
    several = isinstance(tokenizer.hf.chat_template, Mapping)
    if tokenizer.name != "auto" or (tokenizer.options and not several):
        # A built-in template becomes the model's own, with the tokens that end its turns; so do
        # options, which no app would say.
        settings.pop("chat_template", None)
        (stage / "chat_template.json").unlink(missing_ok=True)
        text = tokenizer.shipped(tokenizer.template_text)
        (stage / "chat_template.jinja").write_text(text, encoding="utf-8")
        ends = sorted(tokenizer.eos_ids)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        if generation_file.exists():
            generation = read_object(generation_file, error=ModelError)
            write_object(generation_file, generation | {"eos_token_id": config["eos_token_id"]})
    if settings_file.exists():
        write_object(settings_file, settings)


def _require_room(source: Path, config: Mapping[str, Any], tokenizer: ChatTokenizer) -> None:
    """Every token of the file has a row, but for one that only fills rows up."""
    rows, backend = config.get("vocab_size"), tokenizer.hf.backend_tokenizer
    if not isinstance(rows, int):
        return
    saved = json.loads(backend.to_str())["added_tokens"]
    file = source / "tokenizer.json"
    if file.is_file():
        # Where a token is not in the file, transformers may add one of its own.
        saved = read_object(file, error=ModelError).get("added_tokens") or []
    ids = [token["id"] for token in saved if token["content"] != tokenizer.hf.pad_token]
    last = max([*backend.get_vocab(with_added_tokens=False).values(), *ids, *tokenizer.eos_ids])
    if last >= rows:
        what = f"the tokenizer has ids up to {last}, the model {rows} rows for them"
        raise ModelError(what, where=str(source), hint="the tokenizer is another model's")


def quantization_config(
    base: Mapping[str, Any] | None, layers: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Any] | None:
    """mlx-lm's ``quantization`` entry: the commonest grid, and each layer that differs from it."""
    if not layers:
        return None
    counts = Counter(tuple(sorted(grid.items())) for grid in layers.values())
    default = dict(counts.most_common(1)[0][0])
    if base:
        own = {key: base.get(key, "affine") for key in ("group_size", "bits", "mode")}
        default = own if own in layers.values() else default
    return default | {path: dict(grid) for path, grid in layers.items() if dict(grid) != default}


def require_finite(name: str, tensor: Any) -> None:
    """Raise ModelError for NaN and infinity, whose exponents are all ones. As integers in NumPy:
    MLX's own isfinite takes thirty times as long on a CPU."""
    if tensor.dtype not in _EXPONENTS or not tensor.size:
        return
    exponent = _EXPONENTS[tensor.dtype]
    kind = mx.uint32 if exponent > 0xFFFF else mx.uint16
    bits = np.asarray(tensor.reshape(-1).view(kind))
    for start in range(0, bits.size, 1 << 22):
        if ((bits[start : start + (1 << 22)] & exponent) == exponent).any():
            hint = "the base is broken, or a merged weight is too large for its type"
            raise ModelError(f"{name} holds NaN or infinity", hint=hint)


def in_shards(sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The files of a checkpoint, and the tensors (with sizes in bytes) of each, in order."""
    shards: list[list[str]] = [[]]
    filled_bytes = 0
    for name, size_bytes in sizes.items():
        if shards[-1] and filled_bytes + size_bytes > SHARD_BYTES:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(name)
        filled_bytes += size_bytes
    count = len(shards)
    files = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    files = files if count > 1 else ["model.safetensors"]
    return dict(zip(files, map(tuple, shards), strict=True))


def write_index(stage: Path, shards: Mapping[str, Sequence[str]], size_bytes: int) -> None:
    """model.safetensors.index.json, where there is more than one file."""
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": size_bytes}, "weight_map": places}
        write_object(stage / "model.safetensors.index.json", index)
