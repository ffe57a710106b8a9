"""LoRA (Hu et al., 2106.09685, section 4.1): y = base(x) + scale * (dropout(x) A) B.

Layer and parameter names, shapes and the meaning of `scale` are mlx-lm's, so an adapter of either
loads in the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_itune.kit.errors import ModelError, closest
from mlx_itune.model.compute import DequantizingLinear

_LINEAR = (nn.Linear, nn.QuantizedLinear, DequantizingLinear)
_SWITCH = (SwitchLinear, QuantizedSwitchLinear)
_EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)


class _Low(nn.Module):  # type: ignore[misc]
    """What the three kinds share: scale, the low-rank pair and dropout with an explicit key."""

    def __init__(self, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self._key: mx.array | None = None

    def _drop(self, x: mx.array) -> mx.array:
        if self._key is None or not self.training:
            return x
        kept = mx.random.bernoulli(1 - self.dropout, x.shape, key=self._key)
        return kept.astype(x.dtype) * x * (1 / (1 - self.dropout))


class LoRALinear(_Low):
    """A frozen linear layer plus a low-rank update: lora_a (in, rank), lora_b (rank, out)."""

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: float, key: mx.array
    ) -> None:
        super().__init__(scale, dropout)
        self.linear = base
        outputs, inputs = _matrix_shape(base)
        self.lora_a = _uniform((inputs, rank), inputs, key)
        self.lora_b = mx.zeros((rank, outputs))

    def __call__(self, x: mx.array) -> mx.array:
        # The factor goes to the small matrix, not to the activations.
        low = (self._drop(x) @ self.lora_a) @ (self.scale * self.lora_b)
        y: mx.array = self.linear(x)
        return y + low.astype(x.dtype)


class LoRASwitchLinear(_Low):
    """The same for the experts of a mixture: (experts, rank, in), (experts, out, rank)."""

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: float, key: mx.array
    ) -> None:
        super().__init__(scale, dropout)
        self.linear = base
        experts, inputs, outputs = base.num_experts, base.input_dims, base.output_dims
        self.num_experts = experts
        self.lora_a = _uniform((experts, rank, inputs), inputs, key)
        self.lora_b = mx.zeros((experts, outputs, rank))

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        low = self._drop(x)
        for factor in (self.lora_a, self.scale * self.lora_b):
            low = mx.gather_mm(
                low,
                factor.swapaxes(-1, -2),
                rhs_indices=indices,
                sorted_indices=sorted_indices,
            )
        y: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        return y + low.astype(x.dtype)


class LoRAEmbedding(_Low):
    """The same for a token table: lora_a (vocabulary, rank), lora_b (rank, dims)."""

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: float, key: mx.array
    ) -> None:
        super().__init__(scale, dropout)
        self.embedding = base
        vocabulary, dims = _matrix_shape(base)
        self.lora_a = _uniform((vocabulary, rank), vocabulary, key)
        self.lora_b = mx.zeros((rank, dims))

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.embedding(x)
        return y + self._drop(self.lora_a[x] @ (self.scale * self.lora_b)).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """The table as an output head, x (..., dims) to (..., vocabulary)."""
        low = (self._drop(x) @ (self.scale * self.lora_b).T) @ self.lora_a.T
        y: mx.array = self.embedding.as_linear(x)
        return y + low.astype(x.dtype)


def attach(
    model: nn.Module,
    *,
    rank: int,
    scale: float,
    dropout: float = 0.0,
    keys: Sequence[str] | None = None,
    num_layers: int = -1,
    seed: int = 0,
) -> list[str]:
    """Put LoRA on the model's blocks, in place; the model is frozen but for it. Returns the paths.

    keys: names inside a block ("self_attn.q_proj") or full paths ("lm_head"); None takes every
    linear layer of the blocks. num_layers: how many of the last blocks, -1 for all. The start is
    a pure function of (seed, path), and the adapted model equals the base. Raises ModelError.
    """
    layers = list(model.layers)
    if not (num_layers == -1 or 0 < num_layers <= len(layers)):
        raise ModelError(f"the model has {len(layers)} layers, not {num_layers}")
    if keys is None:
        keys = linear_keys(model)
    chosen = layers if num_layers == -1 else layers[-num_layers:]
    modules = dict(model.named_modules())
    prefixes = {id(module): path for path, module in modules.items()}
    paths = [
        path
        for layer in chosen
        for key in keys
        if (path := f"{prefixes[id(layer)]}.{key}") in modules
    ]
    paths += [key for key in keys if key in modules]
    _check_keys(keys, paths, layers)
    model.freeze()
    for path in paths:
        layer = _wrap(modules[path], path, rank, scale, dropout, seed)
        layer.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
        layer.train(model.training)
        model.update_modules(tree_unflatten([(path, layer)]))
    mx.eval(model.trainable_parameters())
    return paths


def linear_keys(model: nn.Module) -> list[str]:
    """The names, inside a block, of every linear layer of the model's blocks; sorted."""
    kinds = (*_LINEAR, *_SWITCH)
    return sorted(
        {
            path
            for layer in model.layers
            for path, m in layer.named_modules()
            if isinstance(m, kinds)
        }
    )


def adapted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, layer) of every LoRA layer, in the model's order."""
    kinds = (LoRALinear, LoRASwitchLinear, LoRAEmbedding)
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, kinds)]
    return sorted(found, key=lambda item: item[0])


def adapted_keys(model: nn.Module) -> list[str]:
    """The names, inside a block, of the layers that carry LoRA; sorted."""
    kinds = (LoRALinear, LoRASwitchLinear, LoRAEmbedding)
    return sorted(
        {
            path
            for layer in model.layers
            for path, m in layer.named_modules()
            if isinstance(m, kinds)
        }
    )


def merge_delta(layer: nn.Module) -> mx.array:
    """What the update adds to the base's weight, in the weight's shape; float32."""
    if isinstance(layer, LoRAEmbedding):
        return (layer.scale * layer.lora_a) @ layer.lora_b
    if isinstance(layer, LoRASwitchLinear):
        return (layer.scale * layer.lora_b) @ layer.lora_a
    if isinstance(layer, LoRALinear):
        return (layer.scale * layer.lora_b.T) @ layer.lora_a.T
    raise ModelError(f"{type(layer).__name__} has no low-rank update")


def set_dropout_key(model: nn.Module, key: mx.array | None) -> None:
    """Draw the next forward pass's dropout from `key`; None turns dropout off."""
    for index, (_, layer) in enumerate(adapted(model)):
        if key is None or not layer.dropout:
            layer._key = None
        else:
            layer._key = mx.random.split(key, index + 1)[index]


def _wrap(
    base: nn.Module, path: str, rank: int, scale: float, dropout: float, seed: int
) -> nn.Module:
    digest = hashlib.sha256(f"{seed}\0{path}".encode()).digest()
    key = mx.random.key(int.from_bytes(digest[:8], "little"))
    if isinstance(base, _LINEAR):
        return LoRALinear(base, rank, scale, dropout, key)
    if isinstance(base, _SWITCH):
        return LoRASwitchLinear(base, rank, scale, dropout, key)
    if isinstance(base, _EMBEDDING):
        return LoRAEmbedding(base, rank, scale, dropout, key)
    raise ModelError(f"LoRA cannot adapt a {type(base).__name__}", where=path)


def _check_keys(keys: Sequence[str], paths: list[str], layers: list[Any]) -> None:
    unused = [k for k in keys if not any(p == k or p.endswith(f".{k}") for p in paths)]
    if unused:
        known = {path for layer in layers for path, _ in layer.named_modules() if path}
        near = closest(unused[0], known)
        hint = f"did you mean {near}?" if near else None
        raise ModelError(f"no layer is called {', '.join(unused)}", hint=hint)
    if not paths:
        raise ModelError("the model has no linear layer to adapt")


def _matrix_shape(base: nn.Module) -> tuple[int, int]:
    rows, columns = base.weight.shape
    return rows, columns * 32 // base.bits if hasattr(base, "bits") else columns


def _uniform(shape: tuple[int, ...], fan: int, key: mx.array) -> mx.array:
    bound = 1 / math.sqrt(fan)
    return mx.random.uniform(-bound, bound, shape, key=key)
