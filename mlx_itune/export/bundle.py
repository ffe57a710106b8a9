"""A bundle: a finished artefact with card, licence and install scripts, sealed by a manifest."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from annotated_types import Ge

from mlx_itune import __version__
from mlx_itune.dataset.importing.inputs import licence_in_card
from mlx_itune.export.cards import card, check_script, install_script
from mlx_itune.export.contract import GRAMMAR, SCHEMA, VECTOR
from mlx_itune.export.request import tag
from mlx_itune.kit.errors import ModelError, one_line
from mlx_itune.kit.files import sha256_file, storage_errors
from mlx_itune.kit.json_files import plain, read_object, to_record, write_object
from mlx_itune.model.adapters import adapter as adapters

MANIFEST, CHECK = "manifest.json", "check.py"
UNKNOWN_LICENCE = "unknown: ask"
_VERSION = 1
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_FIDELITY = ("method", "bits", "tokens", "kl_mean", "kl_p99", "top1_agreement")


@dataclass(frozen=True)
class Part:
    """An artefact in a bundle: a file or a directory, and its format."""

    path: str
    format: str


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle; ``path`` is relative, with slashes."""

    path: str
    bytes: Annotated[int, Ge(0)]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    v: int
    name: str
    made_by: str
    base: dict[str, str | None]
    licences: dict[str, str]
    fidelity: dict[str, Any] | None
    parts: tuple[Part, ...]
    files: tuple[BundleFile, ...]
    # Of the tokens that were trained on, each source's.
    token_shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Base:
    id: str | None = None
    revision: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class _Data:
    """A file that was trained on; ``licences`` by the name of the source in it."""

    path: str | None = None
    licences: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Papers:
    base: _Base = _Base()
    data: tuple[_Data, ...] = ()
    fuse: dict[str, Any] | None = None
    source_tokens: dict[str, int] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        total = sum(self.source_tokens.values())
        return {name: round(n / total, 4) for name, n in self.source_tokens.items() if total}

    def licences(self) -> dict[str, str]:
        known: dict[str, str | None] = {}
        for file in self.data:
            known |= file.licences or {file.path or "rows": None}
        return {f"data: {name}": licence or UNKNOWN_LICENCE for name, licence in known.items()}


def seal_bundle(
    stage: Path, part: Part, *, name: str, base_folder: Path, provenance: Mapping[str, Any]
) -> None:
    """Add card, licence, scripts and manifest to the artefact that is in ``stage``. Raises
    ModelError for a provenance of wrong types."""
    licence = next((f for n in _LICENCE_FILES if (f := base_folder / n).is_file()), None)
    if licence is not None:
        shutil.copyfile(licence, stage / "LICENSE.base")
    papers = to_record(provenance, _Papers, where=adapters.PROVENANCE, error=ModelError)
    said = licence_in_card(base_folder) or ("see LICENSE.base" if licence else UNKNOWN_LICENCE)
    head = Manifest(
        v=_VERSION,
        name=name,
        made_by=f"mlx-itune {__version__}",
        base=vars(papers.base),
        licences={"base model": said, **papers.licences()},
        fidelity={key: papers.fuse.get(key) for key in _FIDELITY} if papers.fuse else None,
        parts=(part,),
        files=(),
        token_shares=papers.shares(),
    )
    about = plain(head)
    own = one_line(papers.base.id or "unknown")
    runs = _run_by(stage, part)
    if runs and (stage / VECTOR).is_file():
        (stage / CHECK).write_text(check_script(*runs), encoding="utf-8")
    extra = [each for each in (VECTOR, CHECK, SCHEMA, GRAMMAR) if (stage / each).is_file()]
    told = card("bundle", own, one_line(name), head=about, name=tag(name), extra=extra)
    (stage / "README.md").write_text(told, encoding="utf-8")
    files = [_file(path, stage) for path in sorted(stage.rglob("*")) if path.is_file()]
    script = _install_script(tag(name), part, files)
    if script is not None:
        file = stage / script[0]
        file.write_text(script[1], encoding="utf-8")
        file.chmod(0o755)
        files.append(_file(file, stage))
        files.sort(key=lambda file: PurePosixPath(file.path))
    write_object(stage / MANIFEST, about | {"files": plain(files)})


def check_bundle(folder: Path) -> Manifest:
    """The manifest, if it is what is there. Raises ModelError for the first that is not."""
    place = folder / MANIFEST
    if not place.exists():
        raise ModelError("is not a bundle: no manifest.json", where=str(folder))
    value = read_object(place, error=ModelError)
    if value.get("v") != _VERSION:
        told = f"the manifest has version {value.get('v')}, this program reads {_VERSION}"
        raise ModelError(told, where=str(place))
    manifest = to_record(value, Manifest, where=str(place), error=ModelError)
    for file in manifest.files:
        within = PurePosixPath(file.path)
        if within.is_absolute() or ".." in within.parts or not within.parts:
            told = f"the manifest names {file.path!r}, outside the bundle"
            raise ModelError(told, where=str(place))
        path = folder / within
        with storage_errors(path):
            if path.is_symlink() or not path.is_file():
                raise ModelError("is missing, and the manifest names it", where=str(path))
            size_bytes = path.stat().st_size
        if size_bytes != file.bytes:
            told = f"has {size_bytes:,} bytes, the manifest says {file.bytes:,}"
            raise ModelError(told, where=str(path))
        if sha256_file(path) != file.sha256:
            raise ModelError("changed since the bundle was made (SHA-256)", where=str(path))
    known = {MANIFEST, *(file.path for file in manifest.files)}
    for path in sorted(folder.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and path.relative_to(folder).as_posix() not in known:
            raise ModelError("is not in the manifest", where=str(path))
    return manifest


def _file(path: Path, stage: Path) -> BundleFile:
    return BundleFile(path.relative_to(stage).as_posix(), path.stat().st_size, sha256_file(path))


def _run_by(stage: Path, part: Part) -> tuple[str, str] | None:
    """(the path of what runs as a whole, mlx or gguf)."""
    place = stage / part.path
    files = [place] if place.is_file() else sorted(place.rglob("*.gguf"))
    if part.format in ("gguf", "ollama", "lmstudio") and len(files) == 1:
        return files[0].relative_to(stage).as_posix(), "gguf"
    configs = sorted(place.rglob("config.json")) if part.format in ("mlx", "lmstudio") else []
    return (configs[0].parent.relative_to(stage).as_posix(), "mlx") if configs else None


def _install_script(model: str, part: Part, files: Sequence[BundleFile]) -> tuple[str, str] | None:
    """(its name, its text) where a program has to be told about ``part``."""
    path, kind = part.path, part.format
    within = [f for f in files if f.path == path or f.path.startswith(f"{path}/")]
    checks = any(f.path == CHECK for f in files)
    if kind == "ollama":
        text = install_script(kind, path=path, name=model, files=within, checks=checks)
        return "install-ollama.sh", text
    if kind not in ("lmstudio", "mlx", "gguf"):
        return None
    source, name = path, f"local/{model}"
    if kind == "lmstudio":
        _, publisher, listed, *_ = within[0].path.split("/")
        source, name = f"{path}/{publisher}/{listed}", f"{publisher}/{listed}"
    source = shlex.quote(source) + ("/*" if kind != "gguf" else "")
    about = {"source": source, "name": name, "files": within, "checks": checks}
    return "install-lmstudio.sh", install_script(kind, **about)
