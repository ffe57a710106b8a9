"""Ways to break a `model` and an `adapter` in one folder, each with the words that say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from tests.conftest import write_tiny_model

CONFIG, TENSORS = "adapter_config.json", "adapters.safetensors"
A_FACTOR = "model.layers.0.self_attn.q_proj.lora_a"
A_SCALE = "model.layers.1.mlp.up_proj.scales"
A_NORM = "model.norm.weight"


def arrays(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = dict(mx.load(str(file)))
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})


def settings(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def spoil(file: Path, name: str, value: float) -> None:
    def change(tensors: dict[str, Any]) -> None:
        flat = tensors[name].reshape(-1)
        spoiled = mx.concatenate([mx.array([value], dtype=flat.dtype), flat[1:]])
        tensors[name] = spoiled.reshape(tensors[name].shape)

    arrays(file, change)


def another_base(root: Path) -> None:
    shutil.rmtree(root / "model")
    write_tiny_model(root / "model", bits=4, seed=5)


def wrong_rank(tensors: dict[str, Any]) -> None:
    tensors[A_FACTOR] = tensors[A_FACTOR][:, :2]


def other_layers(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name.replace("layers.1.", "layers.7.")] = tensors.pop(name)


def grid_without_factors(root: Path) -> None:
    shutil.rmtree(root / "adapter")
    shutil.copytree(root / "grid", root / "adapter")
    (root / "adapter/grid.safetensors").unlink()


def larger_tokenizer(root: Path) -> None:
    value = json.loads((root / "model/tokenizer.json").read_text())
    token = {"id": 5000, "content": "<|new|>", "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    value["added_tokens"].append(token)
    value["model"]["vocab"]["<|new|>"] = 5000
    (root / "model/tokenizer.json").write_text(json.dumps(value))
    settings(root / "adapter/provenance.json", tokenizer={"template": "auto"})


def other_tokenizer(root: Path) -> None:
    file = root / "model/tokenizer.json"
    file.write_text(file.read_text().replace("metformin", "zolpidemx") + "\n")


def looped(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(path)


# Exit code 4 each. What else can be wrong with a model's folder: tests/model, where it is vetted.
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another base": (another_base, "was trained on"),
    "truncated adapter": (lambda p: cut(p / "adapter" / TENSORS), "not a valid safetensors file"),
    "NaN in adapter": (lambda p: spoil(p / "adapter" / TENSORS, A_FACTOR, float("nan")), "NaN"),
    "wrong rank": (lambda p: arrays(p / "adapter" / TENSORS, wrong_rank), "does not fit the model"),
    "other layers": (
        lambda p: arrays(p / "adapter" / TENSORS, other_layers),
        "does not fit the model",
    ),
    "unknown fine_tune_type": (
        lambda p: settings(p / "adapter" / CONFIG, fine_tune_type="ia3"),
        "not supported",
    ),
    "adapter config no JSON": (lambda p: (p / "adapter" / CONFIG).write_text("{"), "JSON"),
    "a provenance of wrong types": (
        lambda p: settings(p / "adapter/provenance.json", base=[1]),
        "base: an object is needed",
    ),
    "grid without factors": (grid_without_factors, "is missing"),
    "no adapter": (lambda p: shutil.rmtree(p / "adapter"), "no adapter directory"),
    "adapter in a loop": (lambda p: looped(p / "adapter" / TENSORS), "no adapter directory"),
    "other tokenizer": (other_tokenizer, "another tokenizer"),
    "tokenizer larger than the model": (larger_tokenizer, "rows"),
    "truncated model": (lambda p: cut(p / "model/model.safetensors"), "not a valid safetensors"),
    "custom code": (
        lambda p: settings(p / "model/config.json", auto_map={"AutoModel": "modeling.M"}),
        "custom code",
    ),
    "model in a loop": (lambda p: looped(p / "model"), ""),
}
