"""A bundle: finished artefacts with what a user of them needs, sealed by a manifest.

manifest.json      every file: path, size, SHA-256; what it was made from, how close it is
README.md          model card: base, data, fidelity, how to run it from each program
LICENSE.base       the base model's licence text, where it brought one
install-*.sh       check the hashes, then put the files in place; no network
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_itune import __version__
from mlx_itune.export.shipping.bundle_card import bundle_card
from mlx_itune.export.shipping.bundle_scripts import install_scripts
from mlx_itune.export.shipping.card import card_licence
from mlx_itune.kit.errors import (
    DataError,
    ModelError,
    StorageError,
    UsageError,
    one_line,
)
from mlx_itune.kit.files import (
    require_free_bytes,
    sha256_file,
    staged_directory,
    storage_errors,
)

MANIFEST = "manifest.json"
FORMATS = ("mlx", "gguf", "gguf-lora", "hf", "peft", "ollama", "lmstudio", "adapter")
UNKNOWN_LICENCE = "unknown: ask"
_VERSION = 1


@dataclass(frozen=True)
class Part:
    """One finished artefact: a file or a directory, and its format, one of FORMATS."""

    path: Path
    format: str


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle; ``path`` is relative, with slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What a manifest says, and the folder it was found in or written to."""

    path: str
    name: str
    files: tuple[BundleFile, ...]
    parts: tuple[Mapping[str, str], ...]
    base: Mapping[str, Any]
    licences: Mapping[str, str]
    fidelity: Mapping[str, Any] | None


def write_bundle(
    parts: Sequence[Part],
    out: Path,
    *,
    name: str,
    provenance: Mapping[str, Any] | None = None,
    base_folder: Path | None = None,
    dataset: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Copy finished artefacts into ``out`` with card, licences, scripts and manifest.

    ``provenance`` is the artefact's provenance.json (base, data, fuse); ``base_folder`` the base
    model's directory, for its licence; ``dataset`` the data's dataset.json. Raises UsageError for
    no parts or two of one name, StorageError.
    """
    _require_parts(parts)
    record = dict(provenance or {})
    licences = _licences(base_folder, dataset, record)
    with staged_directory(out, overwrite=overwrite) as stage:
        for part in parts:
            _copy(part.path, stage / part.path.name)
        if base_folder is not None:
            _copy_licence(base_folder, stage)
        kinds = [{"path": part.path.name, "format": part.format} for part in parts]
        head = {
            "v": _VERSION,
            "name": name,
            "made_by": f"mlx-itune {__version__}",
            "base": _base(record),
            "licences": licences,
            "fidelity": _fidelity(record),
            "parts": kinds,
        }
        (stage / "README.md").write_text(bundle_card(head), encoding="utf-8")
        sums = {file.path: file.sha256 for file in _files(stage)}
        for script, text in install_scripts(name, kinds, sums).items():
            (stage / script).write_text(text, encoding="utf-8")
            (stage / script).chmod(0o755)
        files = [asdict(file) for file in _files(stage)]
        text = json.dumps({**head, "files": files}, indent=2, ensure_ascii=False) + "\n"
        (stage / MANIFEST).write_text(text, encoding="utf-8")
    return read_manifest(out)


def read_manifest(folder: Path) -> Bundle:
    """The manifest of a bundle. Raises ModelError where it is missing or broken."""
    try:
        with storage_errors(folder / MANIFEST):
            value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if value["v"] != _VERSION:
            raise ModelError(
                f"the manifest has version {value['v']}, this program reads {_VERSION}",
                where=str(folder / MANIFEST),
            )
        files = tuple(BundleFile(f["path"], f["bytes"], f["sha256"]) for f in value["files"])
        return Bundle(
            str(folder),
            value["name"],
            files,
            tuple(value["parts"]),
            value["base"],
            value["licences"],
            value["fidelity"],
        )
    except StorageError as error:
        if not (folder / MANIFEST).exists():
            raise ModelError("is not a bundle: no manifest.json", where=str(folder)) from error
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"the manifest is broken: {error!r}", where=str(folder / MANIFEST)
        ) from error


def check_bundle(folder: Path) -> Bundle:
    """Compare every file with the manifest; return it when nothing differs.

    Raises ModelError for a missing, extra or changed file, naming the first; StorageError.
    """
    bundle = read_manifest(folder)
    named = {file.path for file in bundle.files}
    for file in bundle.files:
        path = folder / _inside(file.path, folder)
        with storage_errors(path):
            if path.is_symlink() or not path.is_file():
                raise ModelError("is missing, and the manifest names it", where=str(path))
            size_bytes = path.stat().st_size
        if size_bytes != file.bytes:
            raise ModelError(
                f"has {size_bytes:,} bytes, the manifest says {file.bytes:,}", where=str(path)
            )
        if sha256_file(path) != file.sha256:
            raise ModelError("changed since the bundle was made (SHA-256)", where=str(path))
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        folder_only = path.is_dir() and not path.is_symlink()
        if not folder_only and relative != MANIFEST and relative not in named:
            raise ModelError("is not in the manifest", where=str(path))
    return bundle


def _inside(name: Any, folder: Path) -> PurePosixPath:
    path = PurePosixPath(name if isinstance(name, str) else "")
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ModelError(
            f"the manifest names {name!r}, outside the bundle", where=str(folder / MANIFEST)
        )
    return path


def _require_parts(parts: Sequence[Part]) -> None:
    if not parts:
        raise UsageError("a bundle needs at least one artefact")
    names = [part.path.name for part in parts]
    for part in parts:
        if part.format not in FORMATS:
            raise UsageError(f"unknown format {part.format!r}", hint=f"one of {', '.join(FORMATS)}")
        if names.count(part.path.name) > 1:
            raise UsageError(f"two artefacts are called {part.path.name}")
        if not part.path.exists():
            raise UsageError("does not exist", where=str(part.path))


def _copy(source: Path, target: Path) -> None:
    """Copy a finished artefact; links are not followed out of it.

    Names have to be fit for a line of a list of hashes.
    """
    with storage_errors(source):
        found = [source] if source.is_file() else sorted(source.rglob("*"))
        for path in found:
            if path.is_symlink():
                raise ModelError("is a link; a bundle holds files", where=str(path))
            if one_line(path.name) != path.name or "\\" in path.name:
                raise ModelError("has a name with odd characters", where=str(path))
        files = [path for path in found if path.is_file()]
        require_free_bytes(target, sum(f.stat().st_size for f in files), source.name)
        for file in files:
            to = target if source.is_file() else target / file.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)


def _copy_licence(base_folder: Path, stage: Path) -> None:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, stage / "LICENSE.base")
            return


def _files(stage: Path) -> list[BundleFile]:
    paths = sorted(p for p in stage.rglob("*") if p.is_file())
    return [
        BundleFile(p.relative_to(stage).as_posix(), p.stat().st_size, sha256_file(p)) for p in paths
    ]


def _base(record: Mapping[str, Any]) -> dict[str, Any]:
    base = record.get("base") or {}
    return {key: base.get(key) for key in ("id", "revision", "fingerprint")}


def _fidelity(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far the fused model is from base + adapter, as measured when it was fused."""
    fuse = record.get("fuse")
    if not fuse:
        return None
    keys = ("method", "bits", "tokens", "kl_mean", "kl_p99", "top1_agreement")
    return {key: fuse.get(key) for key in keys}


def _licences(
    base_folder: Path | None, dataset: Mapping[str, Any] | None, record: Mapping[str, Any]
) -> dict[str, str]:
    """Licence of the base and of every source of the data, by name."""
    found = {"base model": _licence_of(base_folder) or UNKNOWN_LICENCE}
    sources = (dataset or {}).get("sources") or record.get("data") or []
    if not isinstance(sources, Sequence):
        raise DataError("dataset.json has no list of sources")
    for source in sources:
        label = f"data: {source.get('name') or source.get('path')}"
        found[label] = source.get("licence") or UNKNOWN_LICENCE
    return found


def _licence_of(folder: Path | None) -> str | None:
    """What the card says, or that a licence file is there."""
    if folder is None:
        return None
    licence = any((folder / n).is_file() for n in ("LICENSE", "LICENSE.txt", "LICENSE.md"))
    return card_licence(folder) or ("see LICENSE.base" if licence else None)
