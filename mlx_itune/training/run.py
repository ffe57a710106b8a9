"""A run on disk, and the provenance that travels with what it made."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_itune import __version__
from mlx_itune.dataset.sources import Source
from mlx_itune.dataset.tokenizer import ChatTokenizer
from mlx_itune.kit.config import to_toml
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import sha256_file, storage_errors, write_durably
from mlx_itune.model.base import LoadedModel
from mlx_itune.training.settings import TrainSettings

# Paths of this machine say nothing about the adapter, and are nobody else's business.
_PRIVATE = {"model", "data", "out", "runs"}


def create(settings: TrainSettings, *, now: datetime | None = None) -> Path:
    """A new run directory `<UTC time>-<short hash>`, mode 0700. Raises StorageError."""
    moment = now or datetime.now(timezone.utc)
    text = to_toml(settings)
    short = hashlib.sha256(f"{moment.isoformat()}{text}".encode()).hexdigest()[:6]
    run = Path(settings.runs) / f"{moment:%Y%m%dT%H%M%SZ}-{short}"
    with storage_errors(run):
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir(mode=0o700)
    write_durably(run / "config.toml", text.encode())
    return run


def require_free_name(out: Path) -> None:
    """Raise StorageError now, not after hours, where an adapter cannot be written."""
    with storage_errors(out):
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken:
        raise StorageError(
            "already exists and is not empty",
            where=str(out),
            hint="choose another --out or remove it first",
        )


def provenance(
    settings: TrainSettings,
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    sources: tuple[Source, ...],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Where an adapter came from; holds no path of this machine."""
    config = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _PRIVATE and value is not None
    }
    tokenizer_file = loaded.path / "tokenizer.json"
    return {
        "v": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": {
            "id": loaded.id,
            "fingerprint": loaded.fingerprint,
            "revision": _revision(loaded.path),
            "quantization": loaded.config.get("quantization"),
        },
        "tokenizer": {
            "sha256": sha256_file(tokenizer_file) if tokenizer_file.is_file() else None,
            "template": tokenizer.name,
            "template_sha256": tokenizer.template_sha256,
        },
        "data": [
            {"path": Path(source.path).name, "rows": source.rows, "sha256": source.sha256}
            for source in sources
        ],
        "mask": {"learn": settings.learn, "too_long": settings.too_long},
        "config": config,
        "versions": _versions(),
        "metrics": dict(metrics),
    }


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait in the yielded list; a second one interrupts at once.

    When the block is done, the first is delivered to whoever handled it before.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    wanted = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, note) for number in wanted}
    except ValueError:
        # Only the main thread may handle signals; elsewhere they are the caller's.
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(signal.Signals(received[0]))


def _revision(path: Path) -> str | None:
    """The commit of a Hub snapshot, which its cache directory is named after."""
    return path.name if path.parent.name == "snapshots" else None


def _versions() -> dict[str, str]:
    found = {"mlx_itune": __version__, "python": platform.python_version()}
    for name in ("mlx", "mlx-lm", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
