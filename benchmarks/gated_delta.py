"""Gated delta rule of one layer, forward and backward: chunks against mlx-lm's loop over tokens.

Each side is a process of its own, on one core; seconds are of its processor, so that other work on
the machine counts little. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

HEADS, SIZE = 16, 128


def measured(side: str, tokens: int, per_channel: bool) -> dict[str, Any]:
    """Seconds, peak bytes above the inputs, and some entries of all gradients."""
    import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

    import mlx.core as mx  # isort: skip
    import numpy as np
    from mlx_lm.models.gated_delta import gated_delta_ops, normalize_qk

    from mlx_itune.model.engine.gated_delta import chunked
    from mlx_itune.model.loading import backend

    backend.blas_threads(1)
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape), mx.float32)

    wide = (1, tokens, HEADS, SIZE)
    q, k = normalize_qk(drawn(*wide), drawn(*wide), inv_scale=SIZE**-0.5, eps=1e-6)
    rates = mx.array(rng.uniform(0.02, 2, HEADS), mx.float32)[:, None]
    gates = drawn(*wide) if per_channel else drawn(1, tokens, HEADS, 1)
    g = mx.exp(-rates * mx.logaddexp(gates, mx.array(0.0)))
    beta = mx.sigmoid(drawn(1, tokens, HEADS))
    given = [q, k, drawn(*wide), g if per_channel else g[..., 0], beta]
    cotangent = drawn(*wide)
    mx.eval(given, cotangent)
    function = chunked if side == "chunks" else gated_delta_ops
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), time.process_time()
    gradients = mx.grad(lambda arrays: (function(*arrays)[0] * cotangent).sum())(given)
    mx.eval(gradients)
    used = time.process_time() - start
    flat = [np.array(a, np.float64).reshape(-1) for a in gradients]
    found = {"seconds": used, "bytes": mx.get_peak_memory() - before}
    found |= {"largest": [float(np.abs(a).max()) for a in flat]}
    return found | {"entries": [a[:: max(1, a.size // 4096)].tolist() for a in flat]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--per-channel", action="store_true", help="a decay per key channel")
    parser.add_argument("--side", choices=("chunks", "loop"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measured(options.side, options.tokens, options.per_channel)))
        return
    found = {}
    for side in ("chunks", "loop"):
        command = [sys.executable, *sys.argv, "--side", side]
        found[side] = json.loads(subprocess.check_output(command))
    ours, loop = found["chunks"], found["loop"]
    result = {}
    for what in ("seconds", "bytes"):
        result |= {what: ours[what], f"loop_{what}": loop[what]}
        result[f"{what}_ratio"] = ours[what] / loop[what]
    pairs = zip(ours["entries"], loop["entries"], loop["largest"], strict=True)
    far = (max(abs(a - b) for a, b in zip(x, y, strict=True)) / top for x, y, top in pairs)
    result["gradient"] = max(far)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
