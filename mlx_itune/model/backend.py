"""The machine under MLX: which device, which BLAS, and what MLX must not do there."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import sys
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
    library = _openblas() if sys.platform == "linux" else None

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


def on_cpu() -> bool:
    """Whether MLX computes on the CPU."""
    return prepare().device == "cpu"


def blas_threads(count: int) -> None:
    """Let each product use `count` threads; no effect without OpenBLAS."""
    if prepare().blas is not None and (library := _openblas()) is not None:
        library.openblas_set_num_threads(count)


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
