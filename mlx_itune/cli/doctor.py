"""``doctor``: what this machine can do, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs
from mlx_itune.kit.wording import size

_PACKAGES = ("mlx", "mlx-lm", "transformers", "numpy", "sentencepiece", "huggingface-hub")


@options.command("doctor")
def command() -> Result:
    """Device, BLAS, memory, disk and versions; a note for each thing that will hurt."""
    from mlx_itune import __version__
    from mlx_itune.model.loading import backend
    from mlx_itune.model.loading.base import resolve

    machine = backend.prepare()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free_bytes = shutil.disk_usage(Path.cwd()).free
    notes = [machine.note] if machine.note else []
    if not (resolve("starter") / "config.json").is_file():
        notes.append("the embedded starter model is missing: install the package again")
    if free_bytes < 1 << 30:
        notes.append("less than 1 GB of disk is free here")
    versions = {"mlx-itune": __version__, "python": platform.python_version()} | {
        name: _version(name) for name in _PACKAGES
    }
    found = {
        "ok": not notes,
        "device": machine.device,
        "blas": machine.blas,
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes,
        "free_disk_bytes": free_bytes,
        "versions": versions,
        "notes": notes,
    }
    facts = [
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("device", machine.device),
        ("BLAS", machine.blas or ("built in" if sys.platform == "darwin" else "none")),
        ("memory", size(memory_bytes)),
        ("free disk", size(free_bytes)),
        *versions.items(),
    ]
    last = [f"note: {note}" for note in notes] or ["all well"]
    return Result(found, [*pairs(facts), *last])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
