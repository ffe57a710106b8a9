"""How a model's weights meet its activations: quantized kernels, or dequantized products.

The function computed is the same. On a CPU a float32 product of dequantized weights runs some 50
times faster than MLX's quantized kernel; on Apple GPUs the quantized kernels are the fast ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_itune.kit.errors import UsageError
from mlx_itune.model.engine.cpu import on_one_stream
from mlx_itune.model.loading import backend

MODES = ("auto", "dequantized", "quantized")
_HALF = (mx.bfloat16, mx.float16)
# Of the memory now free, what resident float copies may take; activations need the rest.
RESIDENT_SHARE = 0.4


def apply(model: nn.Module, mode: str = "auto", memory_bytes: int | None = None) -> str:
    """Prepare a loaded model's layers for `mode`, in place; "float", "quantized", "dequantized".

    On a CPU floating-point weights become float32. memory_bytes: float copies of quantized weights
    stay only as far as this allows, too. Raises UsageError for an unknown mode.
    """
    if mode not in MODES:
        raise UsageError(f"unknown compute {mode!r}", hint="one of " + ", ".join(MODES))
    quantized = [(path, m) for path, m in model.named_modules() if _is_quantized(m)]
    for _, module in quantized:
        module.packed = Packed.of(module)
    done = "quantized" if quantized else "float"
    if quantized and (mode == "dequantized" or (mode == "auto" and backend.on_cpu())):
        free = _free_bytes()
        _dequantize(model, quantized, free if memory_bytes is None else min(free, memory_bytes))
        done = "dequantized"
    for _, module in model.named_modules():
        if isinstance(module.get("weight"), mx.array) and module["weight"].ndim == 1:
            # What an adapter that moves a norm rounds to.
            module.stored_type = module["weight"].dtype
    if backend.on_cpu():
        model.apply(lambda a: a.astype(mx.float32) if a.dtype in _HALF else a)
    model.freeze()
    mx.eval(model.parameters())
    return done


@dataclass(frozen=True)
class Packed:
    """A quantized layer's tensors as they are stored: what an adapter of the grid starts from."""

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    group_size: int
    bits: int
    mode: str

    @classmethod
    def of(cls, module: nn.Module) -> Packed:
        """The tensors of a quantized module."""
        tensors = module["weight"], module["scales"], module.get("biases")
        return cls(*tensors, module.group_size, module.bits, module.mode)

    def codes(self) -> mx.array:
        """The integers q of w = s q + b, unpacked: (..., out, in) uint8. Affine mode only."""
        return unpacked(self.weight, self.scales, self.group_size, self.bits).astype(mx.uint8)


def packed(module: nn.Module) -> Packed | None:
    """The stored tensors behind a layer, however it is computed; None for a float layer."""
    kept: Packed | None = getattr(module, "packed", None)
    return kept


def release(model: nn.Module) -> None:
    """Let go of stored tensors that only an adapter of the grid would need."""
    for _, module in model.named_modules():
        if packed(module) is not None:
            module.packed = None


def unpacked(weight: mx.array, scales: mx.array, group_size: int, bits: int) -> mx.array:
    """The integers of affine-quantized rows, in float32."""
    ones = mx.ones(scales.shape)
    return mx.dequantize(weight, ones, mx.zeros(scales.shape), group_size=group_size, bits=bits)


def affine(codes: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    """s q + b in float32: codes (..., out, in), scales and biases (..., out, groups)."""
    shape = codes.shape
    grouped = codes.astype(mx.float32).reshape(*scales.shape, -1)
    weight = grouped * scales[..., None].astype(mx.float32) + biases[..., None].astype(mx.float32)
    return weight.reshape(shape)


def product(
    module: nn.Module, x: mx.array, back: bool = False, unpacks: bool | None = None
) -> mx.array:
    """x @ weight.T of a linear layer of any kind here, without its bias; back: x @ weight.

    unpacks: by a dequantized copy of the weight, not by the kernel; None: as the layer does it.
    """
    weight: mx.array = module["weight"]
    if not hasattr(module, "bits"):
        return x @ (weight if back else weight.T)
    if unpacks is None:
        unpacks = getattr(module, "unpacks_back" if back else "unpacks", False)
    if not unpacks:
        return mx.quantized_matmul(
            x,
            weight,
            module["scales"],
            module.get("biases"),
            transpose=not back,
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
        )
    if not back:
        return x @ dequantized_weight(module).astype(x.dtype).T
    # Rounded as the quantized kernel rounds it, and not before there is something to multiply.
    return x @ dequantized_weight(module, dtype=x.dtype, after=x)


def dequantized_weight(
    module: nn.Module,
    rows: slice = slice(None),
    *,
    dtype: Any = mx.float32,
    after: mx.array | None = None,
) -> mx.array:
    """The float weight of a quantized layer; exact, if in float32 and scales are floats."""
    weight, scales, biases = module["weight"][rows], module["scales"][rows], module.get("biases")
    biases = None if biases is None else biases[rows]
    if mx.issubdtype(scales.dtype, mx.floating):
        scales = scales.astype(dtype)
        biases = None if biases is None else biases.astype(dtype)
    if after is not None:
        weight = mx.depends([weight], [after])[0]
    made: mx.array = mx.dequantize(
        weight, scales, biases, group_size=module.group_size, bits=module.bits, mode=module.mode
    )
    return made if after is None else made.astype(dtype)


class DequantizingLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """A quantized linear layer that dequantizes inside the product (`unpacks`), and again in its
    backward (`unpacks_back`). Nothing but the quantized weight stays in memory."""

    def __init__(self, base: nn.Module, *, unpacks: bool = True) -> None:
        nn.Module.__init__(self)
        _take(self, base)
        self.unpacks, self.unpacks_back = unpacks, True

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = _own_gradient(self)(x)
        return y + self["bias"] if "bias" in self else y


class DequantizingTable(nn.QuantizedEmbedding):  # type: ignore[misc]
    """A quantized token table that dequantizes in its backward as an output head."""

    unpacks_back = True

    def __init__(self, base: nn.Module) -> None:
        nn.Module.__init__(self)
        _take(self, base)
        self.num_embeddings, self.dims = base.num_embeddings, base.dims

    def as_linear(self, x: mx.array) -> mx.array:
        """The table as an output head, x (..., dims) to (..., vocabulary)."""
        y: mx.array = _own_gradient(self)(x)
        return y


def _take(module: nn.Module, base: nn.Module) -> None:
    """The frozen tensors of a quantized layer, in another of its kind."""
    for name in ("weight", "scales", "biases", "bias"):
        if base.get(name) is not None:
            module[name] = base[name]
    module.group_size, module.bits, module.mode = base.group_size, base.bits, base.mode
    module.packed = packed(base)
    module.freeze().train(base.training)


def _own_gradient(module: nn.Module) -> Callable[..., Any]:
    return on_one_stream(
        lambda x: product(module, x), lambda _, cotangent, __: product(module, cotangent, back=True)
    )


def _is_quantized(module: nn.Module) -> bool:
    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)
    # A per-expert global scale has no plain dequantized form here; it keeps its own kernel.
    return isinstance(module, kinds) and module.get("global_scale") is None


def _dequantize(
    model: nn.Module, quantized: list[tuple[str, nn.Module]], available_bytes: int
) -> None:
    itemsize_bytes = 4 if backend.on_cpu() else 2
    needed_bytes = sum(itemsize_bytes * m["weight"].size * 32 // m.bits for _, m in quantized)
    resident = needed_bytes <= RESIDENT_SHARE * available_bytes
    # One layer at a time, so that never all of both copies stand in memory.
    for path, module in quantized:
        if not resident and isinstance(module, nn.QuantizedLinear):
            replacement: nn.Module = DequantizingLinear(module)
        else:
            replacement = _float_layer(module)
            mx.eval(replacement.parameters())
            replacement.packed = packed(module)
        model.update_modules(tree_unflatten([(path, replacement)]))


def _float_layer(module: nn.Module) -> nn.Module:
    kept = packed(module)
    if kept is not None and kept.mode == "affine" and kept.biases is not None:
        # The very operations of a grid adapter, whose start is then this weight to the last bit.
        weight = affine(kept.codes(), kept.scales, kept.biases)
    else:
        weight = dequantized_weight(module)
    if not backend.on_cpu():
        weight = weight.astype(_float_type(module))
    if isinstance(module, nn.QuantizedEmbedding):
        layer: nn.Module = nn.Embedding(1, 1)
    elif isinstance(module, nn.QuantizedLinear):
        layer = nn.Linear(1, 1, bias=False)
    else:
        layer = SwitchLinear(1, 1, 1, bias=False)
    layer.weight = weight
    if module.get("bias") is not None:
        layer.bias = module["bias"]
    return layer


def _float_type(module: nn.Module) -> Any:
    dtype = module["scales"].dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16


def _free_bytes() -> int:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
