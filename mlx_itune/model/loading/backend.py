"""The machine under MLX: which device, which BLAS, and what MLX must not do there."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib
import os
import resource
import sys
import types
from dataclasses import dataclass

_OPENBLAS = ("libopenblas.so.0", "libopenblas.so", "libopenblasp.so.0")


@dataclass(frozen=True)
class Backend:
    """What MLX runs on; `note` is one line for the user, or None when all is well."""

    device: str
    blas: str | None
    note: str | None


@functools.cache
def prepare() -> Backend:
    """Ready the machine for MLX, once: load OpenBLAS first, then import mlx.core.

    MLX's Linux CPU build brings the reference BLAS, 50 times slower than OpenBLAS; the library
    whose symbols are loaded first is the one MLX binds to.
    """
    too_late = "mlx.core" in sys.modules
    # Threads of OpenBLAS that wait for work spin, on cores that others could use: not for long.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "8")
    # A graph on several streams is queued breadth first, or one stream would wait for the other.
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "500")
    library = _openblas() if sys.platform == "linux" else None
    _allow_few_files()

    import mlx.core as mx

    device = "gpu" if mx.default_device() == mx.gpu else "cpu"
    if device == "cpu":
        # On a CPU, mx.compile runs g++ on every new kernel and loads the result from the shared
        # temporary directory. It stops with an error where g++ is broken or that directory is
        # read-only, loads what others put there, and gains under 10 %.
        mx.disable_compile()
    if sys.platform != "linux" or device == "gpu":
        return Backend(device, None, None)
    if library is None:
        return Backend(
            device, None, "OpenBLAS not found: slow; apt-get install libopenblas0-pthread"
        )
    if too_late:
        return Backend(
            device, None, "mlx was imported before mlx_itune: OpenBLAS unused, this will be slow"
        )
    return Backend(device, _version(library), None)


def _allow_few_files() -> None:
    """mlx-lm asks for 4,096 open files when it is imported, and fails where the hard limit is
    lower; it does not need them, so there its wish is not passed on."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 4096))
    except (ValueError, OSError):
        deaf = types.ModuleType("resource")
        deaf.RLIMIT_NOFILE, deaf.setrlimit = resource.RLIMIT_NOFILE, lambda *_: None  # type: ignore[attr-defined]
        sys.modules["resource"] = deaf
        try:
            importlib.import_module("mlx_lm.utils")
        finally:
            sys.modules["resource"] = resource


def on_cpu() -> bool:
    """Whether MLX computes on the CPU."""
    return prepare().device == "cpu"


def blas_threads(count: int) -> int:
    """Let each product use `count` threads; how many it was. No effect without OpenBLAS."""
    if prepare().blas is None or (library := _openblas()) is None:
        return count
    before = int(library.openblas_get_num_threads())
    library.openblas_set_num_threads(count)
    return before


@functools.cache
def _openblas() -> ctypes.CDLL | None:
    found = ctypes.util.find_library("openblas")
    for name in (*_OPENBLAS, *([found] if found else [])):
        try:
            library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        # Builds that other packages bundle rename their symbols; MLX would not bind to them.
        if hasattr(library, "cblas_sgemm") and hasattr(library, "openblas_set_num_threads"):
            return library
    return None


def _version(library: ctypes.CDLL) -> str:
    try:
        describe = library.openblas_get_config
    except AttributeError:
        return "OpenBLAS"
    describe.restype = ctypes.c_char_p
    return " ".join((describe() or b"OpenBLAS").decode("ascii", "replace").split()[:2])
