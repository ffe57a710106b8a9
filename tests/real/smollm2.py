"""SmolLM2-135M-Instruct (Apache-2.0), a real model small enough for a test, as MLX directories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KEPT = Path(__file__).resolve().parents[2] / ".cache"
FOUR_BITS = KEPT / "models" / "smollm2"


def directory(bits: int) -> Path:
    """The model in 4 bits or, of the same weights, in float16 (16)."""
    out = FOUR_BITS if bits == 4 else KEPT / "models" / "smollm2-float16"
    if not FOUR_BITS.is_dir():
        _run("mlx_itune", "models", "get", "smollm2")
    if not out.is_dir():
        _run("mlx_lm", "convert", "--dequantize", "--model", FOUR_BITS, "--mlx-path", out)
    return out


def _run(*argv: object) -> None:
    """In a process of its own: a test has no network."""
    command = [sys.executable, "-m", *map(str, argv)]
    environment = {**os.environ, "MLX_ITUNE_CACHE": str(KEPT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr[-500:]}"
