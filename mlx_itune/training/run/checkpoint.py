"""Sealed checkpoints: a directory that is complete, or not there.

step-000200/  adapter_config.json adapters.safetensors provenance.json   a usable adapter
              optimizer.safetensors state.json                          what resuming needs
              learned.safetensors    what is trained and not in the adapter's file as it is
              manifest.json          step, run, sizes and hashes of all; its own hash; written last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.kit.errors import DivergedError, StorageError
from mlx_itune.kit.files import (
    remove_directory,
    sha256_file,
    staged_directory,
    storage_errors,
    sweep,
    write_durably,
)
from mlx_itune.kit.json_files import plain, read_bytes, read_object, to_record
from mlx_itune.model.adapters import adapter
from mlx_itune.training.engine.step import Learner

MANIFEST, STATE = "manifest.json", "state.json"
OPTIMIZER, LEARNED = "optimizer.safetensors", "learned.safetensors"
# The rest of a checkpoint's files are the adapter's.
_OURS = frozenset({MANIFEST, STATE, OPTIMIZER, LEARNED})
_NEEDED = frozenset({STATE, OPTIMIZER, adapter.TENSORS, adapter.CONFIG})
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class SealedFile:
    """A file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds; `seal` is the hash of all the rest, set by `sealed`."""

    step: int
    run: str | None
    files: dict[str, SealedFile]
    v: Literal[1] = 1
    seal: str = ""

    def sealed(self) -> bytes:
        """The manifest with its seal, in the one way to write it."""
        rest = {name: value for name, value in plain(self).items() if name != "seal"}
        return _canonical({**rest, "seal": hashlib.sha256(_canonical(rest)).hexdigest()})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file matches its manifest."""

    path: Path
    state: Mapping[str, Any]
    files: tuple[str, ...]


def write(
    folder: Path,
    learner: Learner,
    config: adapter.AdapterConfig,
    provenance: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    best_step: int | None = None,
) -> Path:
    """Seal `folder/step-NNNNNN` for state["step"]; the newest `keep` and the best one stay.

    Raises StorageError, with the earlier checkpoints as they were; DivergedError, before anything
    is written, when a weight or a moment is not finite.
    """
    moments = learner.optimizer.arrays(learner.states)
    learned = _not_in_adapter(learner.model)
    require_finite(learner.model, moments)
    out = folder / name_of(state["step"])
    with staged_directory(out, overwrite=True) as stage:
        adapter.write_files(stage, learner.model, config, provenance)
        adapter.write_arrays(stage / OPTIMIZER, moments)
        if learned:
            adapter.write_arrays(stage / LEARNED, learned)
        write_durably(stage / STATE, _canonical(state))
        files = {
            file.name: SealedFile(file.stat().st_size, sha256_file(file))
            for file in sorted(stage.iterdir())
        }
        manifest = Manifest(state["step"], state.get("run"), files)
        write_durably(stage / MANIFEST, manifest.sealed())
    # What is sealed is sealed; what could not be removed now, the next one removes.
    with contextlib.suppress(StorageError):
        rotate(folder, keep=keep, best_step=best_step, newest=state["step"])
    return out


def size_bytes(learner: Learner) -> int:
    """About what one checkpoint takes on the disk."""
    arrays = [
        *(value for _, value in tree_flatten(learner.model.trainable_parameters())),
        *adapter.shipped_by(learner.model).values(),
        *learner.optimizer.arrays(learner.states).values(),
    ]
    return sum(array.nbytes for array in arrays)


def require_finite(model: nn.Module, moments: Mapping[str, Any] | None = None) -> None:
    """Raise DivergedError naming the first tensor that holds NaN or infinity."""
    values = dict(tree_flatten(model.trainable_parameters()))
    # Of an adapter on the grid, what is shipped is computed, and may overflow where factors do not.
    values |= adapter.shipped_by(model)
    values |= {f"the optimizer's {name}": value for name, value in (moments or {}).items()}
    finite = {name: mx.all(mx.isfinite(value)) for name, value in values.items()}
    mx.eval(finite)
    for name, good in finite.items():
        if not good.item():
            raise DivergedError(
                f"{name} holds NaN or infinity; nothing of it was written",
                hint="lower the learning rate",
            )


def rotate(
    folder: Path,
    *,
    keep: int,
    best_step: int | None,
    newest: float = math.inf,
    dry_run: bool = False,
) -> list[Path]:
    """Remove all checkpoints up to step `newest` but the last `keep` and the best one; the paths.

    A checkpoint is gone as a whole: a crash on the way leaves no part of it. Raises StorageError.
    """
    with storage_errors(folder):
        found = [path for path in complete(folder) if step_of(path) <= newest]
        gone = [path for path in found[: -max(keep, 1)] if step_of(path) != best_step]
        if not dry_run:
            for path in gone:
                remove_directory(path)
            sweep(folder, every_owner=True)
    return gone


def complete(folder: Path) -> list[Path]:
    """The sealed checkpoints of a run, oldest first; `read` tells whether one is undamaged."""
    return [path for path in all_of(folder) if (path / MANIFEST).is_file()]


def all_of(folder: Path) -> list[Path]:
    """Whatever is called a checkpoint, sealed or not, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if _NAME.fullmatch(p.name)), key=step_of)


def name_of(step: int) -> str:
    """The directory's name for a step."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest. Raises StorageError naming what differs."""
    where = str(path / MANIFEST)
    raw = read_bytes(path / MANIFEST)
    manifest = to_record(raw, Manifest, where=where, error=StorageError)
    # Every byte of the manifest counts: it is the one way to write what it says.
    if raw != manifest.sealed():
        raise StorageError("is not as it was sealed", where=where)
    if manifest.files.keys() < _NEEDED:
        raise StorageError("lists too few files", where=where)
    if name_of(manifest.step) != path.name:
        raise StorageError(f"is the manifest of {name_of(manifest.step)}", where=where)
    for name, entry in manifest.files.items():
        file = path / name
        if Path(name).name != name:
            raise StorageError(f"names {name!r}, outside of it", where=where)
        if not file.is_file():
            raise StorageError("is missing; the manifest lists it", where=str(file))
        if file.stat().st_size != entry.bytes or sha256_file(file) != entry.sha256:
            raise StorageError("is not what its manifest says", where=str(file))
    state = read_object(path / STATE, error=StorageError)
    if state.get("step") != manifest.step:
        raise StorageError("is the state of another step", where=str(path / STATE))
    return Checkpoint(path, state, tuple(manifest.files))


def restore(checkpoint: Checkpoint, learner: Learner) -> None:
    """Put a checkpoint's weights and optimizer state into a learner of the same settings.

    Raises StorageError when a trained tensor is missing or has another shape.
    """
    wanted: dict[str, Any] = dict(tree_flatten(learner.model.trainable_parameters()))
    found = dict(adapter.load(checkpoint.path).tensors)
    if LEARNED in checkpoint.files:
        found |= _arrays(checkpoint.path / LEARNED)
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            raise StorageError(f"does not hold {name} {value.shape}", where=str(checkpoint.path))
    learner.model.load_weights([(name, found[name]) for name in wanted], strict=False)
    learner.restore(_arrays(checkpoint.path / OPTIMIZER))


def publish(checkpoint: Checkpoint, out: Path, *, overwrite: bool = False) -> None:
    """Write the adapter that a checkpoint holds, byte for byte. Raises StorageError."""
    with staged_directory(Path(out), overwrite=overwrite) as stage:
        for name in checkpoint.files:
            if name not in _OURS:
                shutil.copyfile(checkpoint.path / name, stage / name)


def _not_in_adapter(model: nn.Module) -> dict[str, Any]:
    """What is trained and stands in the adapter's file under another name, type or shape."""
    kept = adapter.tensors_of(model)
    return {
        name: value
        for name, value in tree_flatten(model.trainable_parameters())
        if name not in kept or (kept[name].dtype, kept[name].shape) != (value.dtype, value.shape)
    }


def _arrays(file: Path) -> dict[str, Any]:
    with storage_errors(file):
        arrays: Any = mx.load(str(file))
    return dict(arrays)


def _canonical(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
