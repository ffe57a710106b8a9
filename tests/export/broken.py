"""Ways to break what is shipped, each with the words that say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from tests.conftest import write_tiny_model


@dataclass(frozen=True)
class Place:
    """Where a case works: copies that it may break, and the destination."""

    root: Path
    model: Path
    adapter: Path
    data: Path
    out: Path

    def listing(self) -> list[str]:
        """Everything there is, by path and size."""
        return sorted(
            f"{p.relative_to(self.root)} {p.lstat().st_size if not p.is_dir() else ''}"
            for p in self.root.rglob("*")
        )


def arrays(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = dict(mx.load(str(file)))
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})


def settings(file: Path, **changes: Any) -> None:
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def spoil(file: Path, name: str, value: float) -> None:
    def change(tensors: dict[str, Any]) -> None:
        flat = tensors[name].reshape(-1)
        spoiled = mx.concatenate([mx.array([value], dtype=flat.dtype), flat[1:]])
        tensors[name] = spoiled.reshape(tensors[name].shape)

    arrays(file, change)


CONFIG, TENSORS = "adapter_config.json", "adapters.safetensors"
A_FACTOR = "model.layers.0.self_attn.q_proj.lora_a"
A_SCALE = "model.layers.1.mlp.up_proj.scales"
A_NORM = "model.norm.weight"


def another_base(place: Place) -> None:
    shutil.rmtree(place.model)
    write_tiny_model(place.model, bits=4, seed=5)


def wrong_rank(place: Place) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[A_FACTOR] = tensors[A_FACTOR][:, :2]

    arrays(place.adapter / TENSORS, change)


def other_layers(place: Place) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("layers.1.", "layers.7.")] = tensors.pop(name)

    arrays(place.adapter / TENSORS, change)


def grid_without_factors(place: Place) -> None:
    shutil.rmtree(place.adapter)
    shutil.copytree(place.root / "grid", place.adapter)
    (place.adapter / "grid.safetensors").unlink()


def larger_tokenizer(place: Place) -> None:
    _add_token(place)
    papers = place.adapter / "provenance.json"
    settings(papers, tokenizer={"template": "auto"})


def other_tokenizer(place: Place) -> None:
    file = place.model / "tokenizer.json"
    file.write_text(file.read_text().replace("metformin", "zolpidemx") + "\n")


def _add_token(place: Place) -> None:
    file = place.model / "tokenizer.json"
    value = json.loads(file.read_text())
    token = {"id": 5000, "content": "<|new|>", "special": True, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    value["added_tokens"].append(token)
    value["model"]["vocab"]["<|new|>"] = 5000
    file.write_text(json.dumps(value))


def looped(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(path)


# Exit code 4 each. What else can be wrong with a model's folder: tests/model, where it is vetted.
BROKEN: dict[str, tuple[Callable[[Place], Any], str]] = {
    "another base": (another_base, "was trained on"),
    "truncated adapter": (lambda p: cut(p.adapter / TENSORS), "not a valid safetensors file"),
    "NaN in adapter": (lambda p: spoil(p.adapter / TENSORS, A_FACTOR, float("nan")), "NaN"),
    "wrong rank": (wrong_rank, "does not fit the model"),
    "other layers": (other_layers, "does not fit the model"),
    "unknown fine_tune_type": (
        lambda p: settings(p.adapter / CONFIG, fine_tune_type="ia3"),
        "not supported",
    ),
    "adapter config no JSON": (lambda p: (p.adapter / CONFIG).write_text("{"), "JSON"),
    "a provenance of wrong types": (
        lambda p: settings(p.adapter / "provenance.json", base=[1]),
        "base: an object is needed",
    ),
    "grid without factors": (grid_without_factors, "is missing"),
    "no adapter": (lambda p: shutil.rmtree(p.adapter), "no adapter directory"),
    "adapter in a loop": (lambda p: looped(p.adapter / TENSORS), "no adapter directory"),
    "other tokenizer": (other_tokenizer, "another tokenizer"),
    "tokenizer larger than the model": (larger_tokenizer, "rows"),
    "truncated model": (lambda p: cut(p.model / "model.safetensors"), "not a valid safetensors"),
    "custom code": (
        lambda p: settings(p.model / "config.json", auto_map={"AutoModel": "modeling.M"}),
        "custom code",
    ),
    "model in a loop": (lambda p: looped(p.model), ""),
}
