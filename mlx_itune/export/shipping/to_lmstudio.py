"""Export for LM Studio: <models>/<publisher>/<model>/ with a GGUF file or an MLX directory."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.export.artifact import Artifact, describe
from mlx_itune.export.shipping.to_ollama import place, require_gguf
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.files import require_free_bytes, staged_directory, storage_errors

# LM Studio lists a folder by these two names; both are one path component.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Data only, as in every export.
_DATA = re.compile(r"[^.].*\.(json|safetensors|jinja|model|txt|md)|LICENSE|NOTICE")


@dataclass(frozen=True)
class LMStudioExport:
    """The model's folder, its name in LM Studio, and how to bring it there."""

    artifact: Artifact
    name: str
    notes: tuple[str, ...]


def export_lmstudio(
    source: Path,
    out: Path,
    *,
    publisher: str,
    model: str,
    overwrite: bool = False,
) -> LMStudioExport:
    """Write ``out``/``publisher``/``model``/ with ``source``: a GGUF file or an MLX directory.

    ``out`` is LM Studio's models folder (~/.lmstudio/models) or one to be copied there; other
    models in it are left alone. Raises UsageError for a name that is no folder's, ModelError for a
    source that is neither, StorageError.
    """
    for what, name in (("publisher", publisher), ("model", model)):
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{what} {name!r} is no name of a folder",
                hint="letters, digits, dots, dashes and underscores",
            )
    target = Path(out) / publisher / model
    files = _files(source)
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise UsageError("is the model itself", where=str(target), hint="choose another --out")
    with staged_directory(target, overwrite=overwrite) as stage, storage_errors(source):
        size_bytes = sum(file.stat().st_size for file in files)
        require_free_bytes(stage, size_bytes, "the model")
        for file in files:
            if source.is_file():
                place(file, stage / f"{model}.gguf", move=False)
            else:
                shutil.copyfile(file, stage / file.name)
    notes = (
        "LM Studio loads no adapters; this is a whole model",
        f"copy it into ~/.lmstudio/models, or start LM Studio with {out} as its models folder",
    )
    return LMStudioExport(describe(target, "lmstudio"), f"{publisher}/{model}", notes)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        require_gguf(source)
        return [source]
    files = sorted(p for p in source.glob("*") if p.is_file() and _DATA.fullmatch(p.name))
    names = {file.name for file in files}
    if "config.json" not in names or not any(n.endswith(".safetensors") for n in names):
        raise ModelError("is neither a GGUF file nor an MLX model directory", where=str(source))
    return files
