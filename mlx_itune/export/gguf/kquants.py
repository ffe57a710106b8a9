"""K-quants (Q4_K_M and kin), made by llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError, UsageError

# llama.h, enum llama_ftype.
_FILE_TYPES = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}


def require_quantizer() -> Any:
    """The llama_cpp package. Raises UsageError where it is not installed."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            "K-quants need llama.cpp's own quantizer",
            hint="pip install 'mlx-itune[llama-cpp]', or choose q8_0, q4_0 or lossless",
        ) from error
    return llama_cpp


def quantize(source: Path, out: Path, kind: str) -> None:
    """Make a K-quant file of a GGUF file of floats. Raises ModelError where llama.cpp fails."""
    llama_cpp = require_quantizer()
    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level in (2, 3):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            said.append(text.decode("utf-8", "replace").strip())

    llama_cpp.llama_log_set(listen, ctypes.c_void_p())
    try:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = _FILE_TYPES[kind]
        parameters.nthread = os.cpu_count() or 1
        failed = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(parameters)
        )
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p())
    if failed or not out.is_file():
        reason = said[-1] if said else f"error {failed}"
        raise ModelError(f"llama.cpp could not quantize it: {reason}", where=out.name)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
