"""Where mlx-itune keeps what it can make again, and small findings that are kept there.
`MLX_ITUNE_CACHE` names another place, or `off`."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from mlx_itune import __version__
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.json_files import canonical, read_record, write_object

T = TypeVar("T")


def cache_root() -> Path | None:
    """The folder; None where nothing may be kept."""
    named = os.environ.get("MLX_ITUNE_CACHE")
    if named is not None:
        return None if named in ("", "off", "0") else Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlx_itune"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx_itune"


def remembered(kind: str, facts: Mapping[str, Any], cls: type[T], find: Callable[[], T]) -> T:
    """What `find` found for these facts under these versions, now or in an earlier process: a
    dataclass, in `kind`/<hash>.json. What cannot be kept or read is found again."""
    root = cache_root()
    if root is None:
        return find()
    versions = [__version__, version("mlx"), version("mlx-lm")]
    name = hashlib.sha256(canonical([versions, facts])).hexdigest()[:32]
    path = root / kind / f"{name}.json"
    with suppress(StorageError):
        return read_record(path, cls, error=StorageError)
    found = find()
    with suppress(StorageError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_object(path, found)
    return found
