"""The loss, and the one place where targets shift: the logits at t - 1 predict token t.

`weights[t]` says how much token t is learned as a target. Only the hidden states that predict a
learned token meet the output head (Cut Your Losses, 2411.09009; section 4.1 of the design), a chunk
at a time; a chunk's gradient is made together with its loss, so that logits neither stand in memory
whole nor are made twice. No architecture is named here: what a model does after its stack of
blocks is run, unchanged, on the rows that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.engine import cpu
from mlx_itune.model.loading import backend

Array = Any
# Logits that stand in memory at once, and the fewest rows of them.
_CPU_LOGITS_BYTES, _CPU_ROWS = 4 << 20, 32
_GPU_LOGITS_BYTES, _GPU_ROWS = 64 << 20, 128
_BLOCK = 256


class Nll(Protocol):
    """`weighted_nll` or `plain_nll`."""

    def __call__(
        self, model: nn.Module, input_ids: Array, weights: Array, *, caches: Any = None
    ) -> tuple[mx.array, mx.array]: ...


@dataclass(frozen=True)
class Learned:
    """The positions of a pass that are learned: inputs of a graph, so their shapes are its own.

    rows (N,) int32: where in the flat inputs the hidden state is that predicts the target;
    inverse (B * T,) int32: for each input, which of the N that is, or N; targets (N,) int32 and
    weights (N,) float32. Entries that only fill up to N have weight 0.
    """

    rows: Array
    inverse: Array
    targets: Array
    weights: Array

    @classmethod
    def of(cls, input_ids: Array, weights: Array, least: int = 1) -> Learned:
        """Of input_ids (B, T + 1) int32 and weights (B, T + 1) float32, NumPy; N at least that."""
        targets, learned = input_ids[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
        places = np.flatnonzero(learned)
        count = len(places)
        size = max(count, least)
        fill = (0, size - count)
        inverse = np.full(learned.size, size, np.int32)
        inverse[places] = np.arange(count)
        return cls(
            np.pad(places.astype(np.int32), fill),
            inverse,
            np.pad(targets[places].astype(np.int32), fill),
            np.pad(learned[places], fill),
        )

    def arrays(self) -> list[Array]:
        """The four, in the order of the fields."""
        return [self.rows, self.inverse, self.targets, self.weights]


def learned_nll(model: nn.Module, ids: mx.array, learned: Learned, caches: Any = None) -> mx.array:
    """Sum of weight * -log p(target | tokens before it): ids (B, T) int32; a float32 scalar.

    caches: see training_caches. While a model trains (`model.training`) the gradient is made along;
    differentiate only then.
    """
    hidden, head = _split(model, ids, caches)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return _head_loss(model, head, _picked(flat, learned.rows, learned.inverse), learned)


def weighted_nll(
    model: nn.Module, input_ids: Array, weights: Array, *, caches: Any = None
) -> tuple[mx.array, mx.array]:
    """The same for input_ids and weights (B, T + 1) as they are; and the sum of the weights."""
    ids, weights = np.asarray(input_ids), np.asarray(weights, dtype=np.float32)
    if ids.shape != weights.shape or ids.ndim != 2:
        raise ModelError(f"input_ids {ids.shape} and weights {weights.shape} do not match")
    learned = Learned(*map(mx.array, Learned.of(ids, weights).arrays()))
    total = learned_nll(model, mx.array(ids[:, :-1]), learned, caches)
    return total, learned.weights.sum()


def plain_nll(
    model: nn.Module, input_ids: Array, weights: Array, *, caches: Any = None
) -> tuple[mx.array, mx.array]:
    """The same sums with full logits in memory: the definition, and what always works."""
    ids, learned = mx.array(input_ids), mx.array(weights)[:, 1:]
    logits = _called(model, ids[:, :-1], caches).astype(mx.float32)
    wanted = mx.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    nll = log_sum_exp(logits) - wanted
    return mx.where(learned > 0, nll * learned, 0).sum(), learned.sum()


def log_sum_exp(logits: mx.array) -> mx.array:
    """Along the last axis, by blocks: of a large vocabulary one running float32 sum would lose four
    digits on a CPU."""
    fill = -logits.shape[-1] % _BLOCK
    padded = mx.pad(logits, [*[(0, 0)] * (logits.ndim - 1), (0, fill)], constant_values=-mx.inf)
    blocks = mx.logsumexp(mx.unflatten(padded, -1, (-1, _BLOCK)), axis=-1)
    total: mx.array = mx.logsumexp(blocks, axis=-1)
    return total


def learned_logits(
    model: nn.Module, input_ids: Array, weights: Array
) -> tuple[mx.array, mx.array, mx.array]:
    """Logits (N, V) float32, targets (N,) and weights (N,) of the N learned tokens, row by row."""
    ids = np.asarray(input_ids)
    learned = Learned.of(ids, np.asarray(weights, dtype=np.float32))
    hidden, head = _split(model, mx.array(ids[:, :-1]), None)
    logits = head(hidden.reshape(-1, hidden.shape[-1])[mx.array(learned.rows)])
    return logits.astype(mx.float32), mx.array(learned.targets), mx.array(learned.weights)


def chunk_rows(vocabulary: int, hidden: int) -> int:
    """How many rows of logits are made at once."""
    least, limit = (
        (_CPU_ROWS, _CPU_LOGITS_BYTES) if backend.on_cpu() else (_GPU_ROWS, _GPU_LOGITS_BYTES)
    )
    return max(least, limit // (4 * vocabulary))


def _called(model: nn.Module, ids: mx.array, caches: Any) -> mx.array:
    called: mx.array = model(ids) if caches is None else model(ids, cache=caches)
    return called


def _picked(flat: mx.array, rows: mx.array, inverse: mx.array) -> mx.array:
    """flat[rows], whose gradient is gathered by the inverse: a scatter is slow on a GPU."""

    def forward(flat: mx.array) -> mx.array:
        return flat[rows]

    def backward(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        nothing = mx.zeros((1, cotangent.shape[-1]), cotangent.dtype)
        return mx.concatenate([cotangent, nothing])[inverse]

    picked: mx.array = cpu.on_one_stream(forward, backward)(flat)
    return picked


def _head_loss(
    model: nn.Module, head: Callable[[mx.array], mx.array], rows: mx.array, learned: Learned
) -> mx.array:
    """The weighted sum over rows (N, D) of hidden states, chunk by chunk."""
    trained = _trained_in_head(model)
    names = [name for name, _ in trained]
    learns = model.training
    fast = backend.on_cpu() and not names

    def chunk_loss(rows: mx.array, values: Sequence[mx.array], chunk: slice) -> Any:
        with _updated(model, names, values):
            logits = head(rows).astype(mx.float32)
        wanted, factor = learned.targets[chunk], learned.weights[chunk]
        if fast:
            nll, totals = cpu.nll(logits, wanted)
            return (nll * factor).sum(), (factor / totals)[:, None]
        nll = nn.losses.cross_entropy(logits, wanted, reduction="none")
        return (nll * factor).sum(), None

    def forward(rows: mx.array, *values: mx.array) -> list[mx.array]:
        total, sums = mx.array(0.0), [mx.zeros_like(value) for value in values]
        parts: list[mx.array] = []
        for chunk in _chunks(model, *rows.shape):
            # One after the other: MLX would make the logits of all chunks side by side.
            part = rows[chunk]
            if chunk.start:
                part = mx.depends([part], [total, *parts[-1:]])[0]
            if not learns:
                total = total + chunk_loss(part, values, chunk)[0]
                continue
            (nll, scale), (gradient, more) = mx.value_and_grad(chunk_loss, argnums=(0, 1))(
                part, list(values), chunk
            )
            total = total + nll
            parts.append(gradient if scale is None else gradient * scale)
            sums = [one + other for one, other in zip(sums, more, strict=True)]
        return [total, mx.concatenate(parts), *sums] if learns else [total]

    def backward(_: Any, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> Any:
        if not learns:
            raise RuntimeError("in evaluation mode the loss has no gradient; call model.train()")
        return [(cotangents[0] * made).astype(made.dtype) for made in outputs[1:]]

    total: mx.array = cpu.on_one_stream(forward, backward)(rows, *(v for _, v in trained))[0]
    return total


def _trained_in_head(model: nn.Module) -> list[tuple[str, mx.array]]:
    """The trainable arrays outside the blocks: those that a head may use."""
    inside = {
        id(a) for block in model.layers for _, a in tree_flatten(block.trainable_parameters())
    }
    flat = tree_flatten(model.trainable_parameters())
    return [(name, array) for name, array in flat if id(array) not in inside]


@contextmanager
def _updated(model: nn.Module, names: Sequence[str], values: Sequence[mx.array]) -> Iterator[None]:
    """The model with other arrays for a while."""
    if not names:
        yield
        return
    flat = dict(tree_flatten(model.trainable_parameters()))
    model.update(tree_unflatten(list(zip(names, values, strict=True))))
    try:
        yield
    finally:
        model.update(tree_unflatten([(name, flat[name]) for name in names]))


def _chunks(model: nn.Module, rows: int, hidden: int) -> list[slice]:
    """Slices of like size, none above `chunk_rows`."""
    count = -(-rows // chunk_rows(vocabulary(model), hidden))
    cuts = [rows * part // count for part in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def vocabulary(model: nn.Module) -> int:
    """How many logits a position has, at least as many as the token table has rows."""
    sizes = [
        m.weight.shape[0]
        for _, m in model.named_modules()
        if hasattr(m, "as_linear") and "weight" in m
    ]
    return max(sizes, default=1 << 17)


class _StandIn:
    """A module's place taken for one call; everything but the call is still the module."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self._module, self._call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _split(
    model: nn.Module, ids: mx.array, caches: Any
) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
    """The hidden states (B, T, D) of the stack of blocks, and what the model does after it.

    The model is called once with a recorder in the stack's place. What it makes of the one row
    it gets back is never computed, MLX being lazy.
    """
    parent, name = _stack(model)
    stack = parent[name]
    recorded: list[mx.array] = []

    def record(*args: Any, **kwargs: Any) -> mx.array:
        recorded.append(stack(*args, **kwargs))
        return recorded[0][:, :1]

    with _instead(parent, name, record):
        _called(model, ids, caches)

    def head(rows: mx.array) -> mx.array:
        with _instead(parent, name, lambda *_, **__: rows[None]):
            logits: mx.array = model(ids[:1, :1])[0]
            return logits

    return recorded[0], head


def _stack(model: nn.Module) -> tuple[nn.Module, str]:
    """Where the innermost module sits that holds the blocks: (its parent, its name there)."""
    parent, name, inner = None, "", model
    while True:
        deeper = [
            key
            for key, child in inner.children().items()
            if isinstance(child, nn.Module) and hasattr(child, "layers")
        ]
        if len(deeper) != 1:
            break
        parent, name, inner = inner, deeper[0], inner[deeper[0]]
    if parent is None:
        raise ModelError("no stack of blocks was found in this architecture")
    return parent, name


@contextmanager
def _instead(parent: nn.Module, name: str, call: Callable[..., Any]) -> Iterator[None]:
    module = parent[name]
    parent[name] = _StandIn(module, call)
    try:
        yield
    finally:
        parent[name] = module
