"""What a model directory must be before anything in it is loaded."""

from __future__ import annotations

import glob
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import open_regular, storage_errors
from mlx_itune.kit.json_files import read_object, read_record, to_record
from mlx_itune.kit.tensorfile import read_header
from mlx_itune.kit.wording import did_you_mean
from mlx_itune.model.loading.fingerprint import weight_files

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".joblib"}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_INDEX = "model.safetensors.index.json"
_MODULE_NAME = re.compile(r"\w+")


@dataclass(frozen=True)
class _Relied:
    """What every config.json that is loaded must have right, whatever its family."""

    model_type: str
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    rope_theta: float | None = None
    rms_norm_eps: float | None = None
    tie_word_embeddings: bool | None = None
    quantization: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


def vet(path: Path) -> dict[str, Any]:
    """The config of a model directory that is safe and complete enough to load.

    Refuses with ModelError: code in any form (auto_map, model_file, *.py), pickles, broken
    safetensors, an index that points elsewhere, an unknown model_type, a missing tokenizer.
    """
    path = Path(path)
    if not path.is_dir():
        reason = "is not a directory" if path.exists() else "does not exist"
        raise ModelError(reason, where=str(path), hint="give the model's directory")
    if glob.escape(str(path)) != str(path):
        # mlx-lm takes the path for a pattern, and may find another model's weights by it.
        raise ModelError("mlx-lm opens no path with *, ? or [", where=str(path), hint="rename it")
    if not (path / "config.json").exists():
        raise ModelError("no config.json: is this a model directory?", where=str(path))
    config = _object(path / "config.json")
    to_record(config, _Relied, where=f"{path}/config.json", error=ModelError)
    _refuse_code(path, config)
    _refuse_pickles(path)
    _check_weights(path)
    _check_type(path, config)
    if not any((path / name).exists() for name in _TOKENIZERS) and not [*path.glob("*.tiktoken")]:
        raise ModelError("no tokenizer (tokenizer.json or tokenizer.model)", where=str(path))
    return config


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    hint = "mlx-itune never runs code that comes with a model"
    for key in ("auto_map", "model_file"):
        if config.get(key) is not None:
            raise ModelError(
                f"asks for custom code ({key})", where=f"{path}/config.json", hint=hint
            )
    tokenizer_config = path / "tokenizer_config.json"
    if tokenizer_config.exists() and "auto_map" in _object(tokenizer_config):
        raise ModelError("asks for custom code (auto_map)", where=str(tokenizer_config), hint=hint)
    for script in sorted(path.rglob("*.py")):
        raise ModelError("a Python file in a model directory", where=str(script), hint=hint)


def _refuse_pickles(path: Path) -> None:
    hint = "convert the weights to safetensors and remove the file"
    for file in sorted(path.rglob("*")):
        if file.is_dir() or not file.exists():
            continue
        with open_regular(file, ModelError) as stream, storage_errors(file):
            start = stream.read(9)
        # A pickle of protocol 2 to 5, or the zip archive that torch.save and numpy write.
        magic = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
        # A safetensors file starts with the length of its header, which may look the same.
        if file.suffix == ".safetensors" and start[4:] == b"\0\0\0\0{":
            magic = False
        if file.suffix.lower() in _PICKLES or magic or start[:4] == b"PK\x03\x04":
            raise ModelError("pickled weights may run code when read", where=str(file), hint=hint)


def _check_weights(path: Path) -> None:
    files = weight_files(path)
    if not files:
        raise ModelError(
            "no model*.safetensors", where=str(path), hint="convert it with mlx_lm.convert first"
        )
    for file in files:
        read_header(file)
    index = path / _INDEX
    if not index.exists():
        return
    listed = read_record(index, _Index, error=ModelError)
    present = {file.name for file in files}
    for name in sorted({*listed.weight_map.values()} - present):
        reason = "is outside the model" if Path(name).name != name else "is missing"
        raise ModelError(f"names the file {name!r}, which {reason}", where=str(index))


def _check_type(path: Path, config: dict[str, Any]) -> None:
    from mlx_lm.utils import MODEL_REMAPPING

    where = f"{path}/config.json"
    name = config["model_type"]
    if not _MODULE_NAME.fullmatch(MODEL_REMAPPING.get(name, name)):
        raise ModelError("no usable model_type", where=where)
    if importlib.util.find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}") is None:
        folder = importlib.util.find_spec("mlx_lm.models")
        places = list(folder.submodule_search_locations or ()) if folder else []
        known = [file.stem for place in places for file in Path(place).glob("[a-z]*.py")]
        hint = did_you_mean(name, known) or "see mlx_lm.models for what is supported"
        raise ModelError(f"model_type {name!r} is not supported", where=where, hint=hint)


def _object(file: Path) -> dict[str, Any]:
    # Some families write Infinity, as Python does.
    return read_object(file, error=ModelError, non_finite=True)
