"""How quantized layers go back on a GPU: by MLX's kernel, or through a dequantized copy.

The forward kernel is fast everywhere. Of the backward one CUDA has a slow form only, and Metal none
for the newest chips' matrix units; a copy of one layer's weight, made and gone again, and a product
of floats may be several times faster. So both are timed, once for a device and a model's shapes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_itune.kit.cache import remembered
from mlx_itune.model.adapters import lora
from mlx_itune.model.engine.compute import DequantizingLinear, DequantizingTable, product

# Of the memory budget: a layer whose copy would take more keeps its kernel.
COPY_SHARE = 1 / 16
_FEWEST_ROWS, _MOST_ROWS = 64, 1024
_SHAPES, _REPEATS, _ENOUGH_S = 2, 3, 0.04


@dataclass(frozen=True)
class Timing:
    """Seconds that the backward products of the heaviest layers take, each way."""

    quantized_s: float
    dequantized_s: float


def seconds(call: Callable[[], mx.array]) -> float:
    """The best of a few runs on the device, after one that is not counted."""
    mx.eval(call())
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH_S:
        began = time.perf_counter()
        mx.eval(call())
        times.append(time.perf_counter() - began)
    return min(times)


def timing(model: nn.Module, rows: int) -> Timing | None:
    """What both ways take for so many rows, measured or remembered; None without a quantized layer
    that could go either way."""
    rows = min(max(rows, _FEWEST_ROWS), _MOST_ROWS)
    kinds: dict[tuple[Any, ...], nn.Module] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    for _, module in _quantized(model):
        how = module.group_size, module.bits, module.mode, str(module["scales"].dtype)
        kind = (module["weight"].shape[0], module["scales"].shape[1] * module.group_size, *how)
        kinds[kind] = module
        counts[kind] += 1
    if not kinds:
        return None
    heaviest = sorted(kinds, key=lambda kind: -kind[0] * kind[1] * counts[kind])[:_SHAPES]

    def measured() -> Timing:
        def total_s(unpacks: bool) -> float:
            made = ((kinds[k], mx.ones((rows, k[0]), dtype), counts[k]) for k in heaviest)
            return sum(n * seconds(partial(product, m, x, True, unpacks)) for m, x, n in made)

        dtype = lora.activation_type(model)
        return Timing(total_s(False), total_s(True))

    info = mx.device_info()
    facts = {
        "device": [info.get("device_name"), info.get("architecture")],
        "layers": [(*kind, counts[kind]) for kind in heaviest],
        "rows": rows,
    }
    return remembered("backward", facts, Timing, measured)


def unpack(model: nn.Module, most_bytes: float) -> None:
    """Let quantized layers go back through a copy of their weight of at most so many bytes."""
    swapped: list[tuple[str, nn.Module]] = []
    item_bytes = lora.activation_type(model).size
    for path, module in _quantized(model):
        if item_bytes * module["scales"].size * module.group_size > most_bytes:
            continue
        if hasattr(module, "unpacks_back"):
            module.unpacks_back = True
        elif isinstance(module, nn.QuantizedLinear):
            swapped.append((path, DequantizingLinear(module, unpacks=False)))
        else:
            swapped.append((path, DequantizingTable(module)))
    if swapped:
        model.update_modules(tree_unflatten(swapped))


def _quantized(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers whose products are the quantized kernel's; experts keep theirs."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if hasattr(module, "bits")
        and "scales" in module
        and module["scales"].ndim == 2
        and not getattr(module, "unpacks", False)
    ]
