"""Adapters on disk: mlx-lm's two files, plus where they came from.

adapter_config.json   fine_tune_type, num_layers, lora_parameters {rank, scale, keys, ...}
adapters.safetensors  model.layers.N.self_attn.q_proj.lora_a, ...
grid.safetensors      of a grid or qalora adapter: the factors themselves, float32
provenance.json       base id and fingerprint, data, template, configuration, versions, metrics

mlx-lm knows no adapter of the grid. For it, adapters.safetensors holds the tuned scales and
biases (fine_tune_type "full") or, of qalora, the LoRA that it is; grid.safetensors is what we read,
and the other file is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from annotated_types import Ge, Le, Lt
from mlx.utils import tree_unflatten

from mlx_itune.kit.errors import ModelError, located
from mlx_itune.kit.files import sha256_file, staged_directory, storage_errors
from mlx_itune.kit.json_files import read_object, read_record, to_record, write_object
from mlx_itune.kit.tensorfile import read_header, write_tensors
from mlx_itune.kit.wording import listing
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.grid import is_norm
from mlx_itune.model.adapters.lowrank import adaptable
from mlx_itune.model.engine.compute import packed, release
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.loading.fingerprint import changed_values

CONFIG, TENSORS, PROVENANCE = "adapter_config.json", "adapters.safetensors", "provenance.json"
GRID = "grid.safetensors"
# How mlx-lm reads each kind; and what a file that says only this is taken for.
_FINE_TUNE_TYPES = {**dict.fromkeys(lora.KINDS, "lora"), "dora": "dora", "grid": "full"}
_LETTERS = {"float": "F", "int": "I", "uint": "U"}


@dataclass(frozen=True)
class AdapterConfig:
    """What rebuilds the adapter's layers; `scale` multiplies the update directly."""

    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...]
    num_layers: int
    kind: str = "lora"

    @property
    def alpha(self) -> float:
        """What PEFT and Ollama divide by the rank to get `scale`."""
        return self.scale * self.rank

    def to_json(self) -> dict[str, Any]:
        """The content of adapter_config.json."""
        return {
            "fine_tune_type": _FINE_TUNE_TYPES[self.kind],
            "num_layers": self.num_layers,
            "lora_parameters": {
                **{name: getattr(self, name) for name in ("rank", "scale", "dropout")},
                "keys": list(self.keys),
                "alpha": self.alpha,
            },
            "mlx_itune": {"v": 1, "adapter": self.kind},
        }


@dataclass(frozen=True)
class TrainedOn:
    """The base of an adapter. config: what `base.function_of` said of it."""

    id: str | None = None
    fingerprint: str | None = None
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainedWith:
    """The tokenizer and chat template of an adapter; hashes are SHA-256 in hex. options: of the
    template. system: the prompt that every row had."""

    sha256: str | None = None
    template: str | None = None
    template_sha256: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    system: str | None = None


@dataclass(frozen=True)
class Origin:
    """What of a provenance.json is relied on."""

    base: TrainedOn = TrainedOn()
    tokenizer: TrainedWith = TrainedWith()
    data: tuple[dict[str, Any], ...] = ()
    run: str | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory; `provenance` is empty for one that another tool wrote.

    tensors: the factors. shipped: of an adapter of the grid, what mlx-lm gets in their place.
    any_base: whether it may go on a base, tokenizer or template that it was not trained on.
    """

    config: AdapterConfig
    tensors: Mapping[str, mx.array]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    shipped: Mapping[str, mx.array] = field(default_factory=dict)
    any_base: bool = False

    @cached_property
    def origin(self) -> Origin:
        """What of the provenance is relied on. Raises ModelError for wrong types."""
        where = str(self.path / PROVENANCE) if self.path else None
        return to_record(self.provenance, Origin, where=where, error=ModelError)

    def require_template(self, name: str, sha256: str | None) -> None:
        """Raise ModelError where a template of the trained one's name is not the trained one."""
        trained = self.origin.tokenizer
        same = trained.template != name or trained.template_sha256 in (None, sha256)
        if not (self.any_base or same):
            on = f", on {self.origin.base.id}" if self.origin.base.id else ""
            raise ModelError(
                f"the chat template ({name}) is not the one the adapter was trained with{on}",
                where=str(self.path) if self.path else None,
                hint="use that model as it was then, or name another --template; or "
                "--allow-other-base",
            )


def config_of(
    model: nn.Module, *, kind: str, rank: int, scale: float, dropout: float = 0.0
) -> AdapterConfig:
    """The configuration of the adapter that is on a model."""
    keys, layers = lora.placed(model)
    return AdapterConfig(rank, scale, dropout, keys, layers, kind)


def tensors_of(model: nn.Module) -> dict[str, mx.array]:
    """The factors of an adapted model by name; float32."""
    return {
        f"{path}.{name}": layer[name].astype(mx.float32)
        for path, layer in lora.adapted(model)
        for name in layer.factors
    }


def shipped_by(model: nn.Module) -> dict[str, mx.array]:
    """What adapters.safetensors holds where that is not the factors; empty where it is."""
    return {
        f"{path}.{name}": array
        for path, layer in lora.adapted(model)
        for name, array in layer.shipped().items()
    }


def save(
    out: Path,
    model: nn.Module,
    config: AdapterConfig,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model's adapter as a directory, whole or not at all. Raises StorageError."""
    with staged_directory(Path(out), overwrite=overwrite) as stage:
        write_files(stage, model, config, provenance)


def write_files(
    folder: Path, model: nn.Module, config: AdapterConfig, provenance: Mapping[str, Any]
) -> None:
    """The files of an adapter, into a directory that exists."""
    shipped, factors = shipped_by(model), tensors_of(model)
    if shipped:
        write_arrays(folder / GRID, factors)
    write_arrays(folder / TENSORS, shipped or factors)
    write_object(folder / CONFIG, config.to_json())
    write_object(folder / PROVENANCE, provenance)


def write_arrays(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """A safetensors file of float, int or uint arrays; the same arrays give the same bytes."""
    tensors = {}
    for name, value in arrays.items():
        # NumPy has no bfloat16; its bytes are those of a 16-bit integer.
        brain = value.dtype == mx.bfloat16
        array = np.array(value.view(mx.uint16) if brain else value)
        kind = array.dtype.name.rstrip("0123456789")
        dtype = "BF16" if brain else f"{_LETTERS[kind]}{8 * array.itemsize}"
        tensors[name] = (dtype, tuple(array.shape), array.tobytes())
    write_tensors(path, tensors, {"format": "mlx"})


def load(path: Path, *, any_base: bool = False) -> Adapter:
    """Read an adapter directory; every file is checked before it is used. Raises ModelError."""
    path = Path(path)
    if not (path / CONFIG).is_file() or not (path / TENSORS).is_file():
        raise ModelError(
            f"is no adapter directory ({CONFIG} and {TENSORS} make one)", where=str(path)
        )
    config = _config(path / CONFIG)
    papers = path / PROVENANCE
    provenance = read_object(papers, error=ModelError) if papers.exists() else {}
    tensors, shipped = read_arrays(path / TENSORS), {}
    if config.kind in lora.ON_THE_GRID:
        if not (path / GRID).is_file():
            said = f"a {config.kind} adapter has a {GRID}; it is missing"
            raise ModelError(said, where=str(path))
        tensors, shipped = read_arrays(path / GRID), tensors
    return Adapter(config, tensors, provenance, path, shipped, any_base)


def origin_of(path: Path) -> Origin:
    """Where an adapter comes from, as far as it tells; its tensors are not read. Raises ModelError
    for wrong types."""
    papers = path / PROVENANCE
    return read_record(papers, Origin, error=ModelError) if papers.exists() else Origin()


def apply(loaded: LoadedModel, adapter: Adapter) -> None:
    """Put an adapter on its base model, in place.

    Raises ModelError when it was trained on another base (weights, configuration, tokenizer) and
    may not go on `any_base`; when a name or shape does not fit; when a grid adapter's files
    disagree.
    """
    config, model = adapter.config, loaded.model
    with located(adapter.path):
        if not adapter.any_base and (changed := _other_base(loaded, adapter.origin)):
            raise ModelError(
                "; ".join(changed),
                hint="use the base it was trained on, as it was then, or --allow-other-base",
            )
        # To mlx-lm, no number of layers, or one beyond the model's, is all of them.
        some = 0 < config.num_layers <= len(model.layers)
        lora.attach(
            model,
            rank=config.rank,
            scale=config.scale,
            dropout=config.dropout,
            keys=config.keys or None,
            num_layers=config.num_layers if some else -1,
            kind=config.kind,
        )
        _require_fit(adapter.tensors, tensors_of(model))
        factors = [(name, tensor.astype(mx.float32)) for name, tensor in adapter.tensors.items()]
        model.load_weights(factors, strict=False)
        mx.eval(model.trainable_parameters())
        if adapter.shipped:
            _require_same(adapter.shipped, shipped_by(model))
    for _, layer in lora.adapted(model):
        layer.settle()


class AdapterSet:
    """The base and its adapters by name; one of them is on at a time, None is the bare base.

    The base is this object's to change from then on. Raises ModelError.
    """

    def __init__(self, loaded: LoadedModel, named: Mapping[str, Adapter]) -> None:
        model = loaded.model
        model.eval()
        self.loaded = loaded
        self.current: str | None = None
        self._bare = {path: m for path, m in model.named_modules() if adaptable(m) or is_norm(m)}
        self._layers: dict[str | None, dict[str, nn.Module]] = {None: {}}
        stored = [(m, kept) for m in self._bare.values() if (kept := packed(m)) is not None]
        for name, adapter in named.items():
            apply(loaded, adapter)
            self._layers[name] = dict(lora.adapted(model))
            self.current = name
            self.use(None)
            # Attaching an adapter lets go of stored tensors; the next one may need them.
            for module, kept in stored:
                module.packed = kept
        release(model)

    def use(self, name: str | None) -> None:
        """Put an adapter on and take the one before it off. Raises KeyError for an unknown name."""
        if name == self.current:
            return
        layers = {path: self._bare[path] for path in self._layers[self.current]}
        layers |= self._layers[name]
        self.loaded.model.update_modules(tree_unflatten(list(layers.items())))
        self.current = name


def _other_base(loaded: LoadedModel, origin: Origin) -> list[str]:
    """What of the base is not what the adapter was trained on, as far as it tells."""
    base, file = origin.base, loaded.path / "tokenizer.json"
    if base.fingerprint not in (None, loaded.fingerprint):
        return [
            f"was trained on {base.id or 'another model'} ({str(base.fingerprint)[:12]}), "
            f"not on {loaded.id} ({loaded.fingerprint[:12]})"
        ]
    changed = []
    if values := changed_values(base.config or {}, loaded.function):
        changed.append(f"the config.json of {loaded.id} has changed: {listing(values)}")
    digest = origin.tokenizer.sha256
    if digest and file.is_file() and sha256_file(file) != digest:
        changed.append(f"was trained with another tokenizer than {loaded.id} has now")
    return changed


def _require_fit(given: Mapping[str, mx.array], expected: Mapping[str, mx.array]) -> None:
    faults = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    faults += [f"{name} has no layer" for name in sorted(given.keys() - expected.keys())]
    faults += [
        f"{name} is {tensor.shape}, the model needs {expected[name].shape}"
        for name, tensor in sorted(given.items())
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        raise ModelError(f"does not fit the model: {listing(faults)}")


def _require_same(shipped: Mapping[str, mx.array], expected: Mapping[str, mx.array]) -> None:
    """Equal but for the last two bits, as another device may have rounded otherwise."""
    _require_fit(shipped, expected)
    for name, ours in expected.items():
        theirs = shipped[name]
        wide = ours.astype(mx.float32)
        slack = 4 * mx.finfo(ours.dtype).eps * mx.abs(wide).max()
        if theirs.dtype != ours.dtype or (mx.abs(theirs.astype(mx.float32) - wide).max() > slack):
            raise ModelError(
                f"{name} in {TENSORS} is not what {GRID} makes of this base",
                hint="the files are not of one adapter, or the base is another one",
            )


def read_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, finite floats all of them. Raises ModelError."""
    read_header(file)
    with storage_errors(file):
        tensors: Any = mx.load(str(file))
    for name, tensor in tensors.items():
        if not mx.issubdtype(tensor.dtype, mx.floating):
            raise ModelError(f"{name} holds no floating-point numbers", where=str(file))
        if not mx.all(mx.isfinite(tensor)).item():
            raise ModelError(f"{name} holds NaN or infinity", where=str(file))
    return dict(tensors)


@dataclass(frozen=True)
class _Parameters:
    rank: Annotated[int, Ge(1), Le(1 << 20)]
    # Times the rank it still fits a float32.
    scale: Annotated[float, Ge(-1e30), Le(1e30)]
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Ours:
    adapter: str | None = None


@dataclass(frozen=True)
class _Written:
    """adapter_config.json, as far as it is read."""

    lora_parameters: _Parameters
    fine_tune_type: str = "lora"
    num_layers: int = -1
    mlx_itune: _Ours = _Ours()


def _config(file: Path) -> AdapterConfig:
    read = read_record(file, _Written, error=ModelError)
    kind, given = read.mlx_itune.adapter or read.fine_tune_type, read.lora_parameters
    if _FINE_TUNE_TYPES.get(kind) != read.fine_tune_type:
        raise ModelError(
            f"fine_tune_type {read.fine_tune_type!r} (adapter {kind!r}) is not supported, only "
            + ", ".join(_FINE_TUNE_TYPES),
            where=str(file),
        )
    keys = given.keys or ()
    return AdapterConfig(given.rank, given.scale, given.dropout, keys, read.num_layers, kind)
