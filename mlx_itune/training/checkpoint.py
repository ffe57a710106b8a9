"""Sealed checkpoints: a directory that is complete, or not there.

step-000200/  adapter_config.json adapters.safetensors provenance.json   a usable adapter
              optimizer.safetensors state.json                          what resuming needs
              manifest.json                                             sizes and hashes of all
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import sha256_file, staged_directory, storage_errors, write_durably
from mlx_itune.model import adapter
from mlx_itune.training.step import Learner, optimizer_arrays, restore_optimizer

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file matches its manifest."""

    path: Path
    state: Mapping[str, Any]


def write(
    folder: Path,
    learner: Learner,
    config: adapter.AdapterConfig,
    provenance: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Path:
    """Seal `folder/step-NNNNNN` for state["step"]; the newest two stay. Raises StorageError."""
    out = folder / f"step-{state['step']:06d}"
    with staged_directory(out, overwrite=True) as stage:
        adapter.write_files(stage, learner.model, config, provenance)
        adapter.write_arrays(stage / "optimizer.safetensors", optimizer_arrays(learner.optimizer))
        write_durably(stage / "state.json", _json_bytes(state))
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
            for file in sorted(stage.iterdir())
        }
        write_durably(stage / MANIFEST, _json_bytes({"v": 1, "files": files}))
    for old in complete(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return out


def complete(folder: Path) -> list[Path]:
    """The sealed checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and (path / MANIFEST).is_file()
    ]
    return [path for _, path in sorted(found)]


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest. Raises StorageError naming what differs."""
    manifest = _read_json(path / MANIFEST)
    for name, entry in manifest.get("files", {}).items():
        file = path / name
        if not file.is_file() or sha256_file(file) != entry.get("sha256"):
            raise StorageError("is not what its manifest says", where=str(file))
    return Checkpoint(path, _read_json(path / "state.json"))


def restore(checkpoint: Checkpoint, learner: Learner) -> None:
    """Put a checkpoint's weights and optimizer state into a learner of the same settings."""
    stored = adapter.load(checkpoint.path)
    learner.model.load_weights(list(stored.tensors.items()), strict=False)
    arrays: Any = mx.load(str(checkpoint.path / "optimizer.safetensors"))
    restore_optimizer(learner.optimizer, arrays)
    mx.eval(learner.model.trainable_parameters(), learner.optimizer.state)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _read_json(file: Path) -> dict[str, Any]:
    with storage_errors(file):
        data = file.read_bytes()
    try:
        value = json.loads(data)
    except ValueError as error:
        raise StorageError(f"is not valid JSON ({error})", where=str(file)) from error
    if not isinstance(value, dict):
        raise StorageError("is not a JSON object", where=str(file))
    return value
