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
from itertools import pairwise
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.engine import cpu, host
from mlx_itune.model.loading import backend

Array = Any
# Logits that stand in memory at once, and the fewest rows of them.
_CPU_LOGITS_BYTES, _CPU_ROWS = 4 << 20, 32
_GPU_LOGITS_BYTES, _GPU_ROWS = 64 << 20, 128
# On a CPU, chunks of logits as large as this part of the head: of fewer rows, reading the head
# would cost more than computing.
_SHARE_OF_HEAD, _CPU_ROWS_AT_MOST = 16, 128


class Nll(Protocol):
    """`weighted_nll` or `plain_nll`."""

    def __call__(
        self, model: nn.Module, input_ids: Array, weights: Array, *, caches: Any = None
    ) -> tuple[mx.array, mx.array]: ...


def weighted_nll(
    model: nn.Module, input_ids: Array, weights: Array, *, caches: Any = None
) -> tuple[mx.array, mx.array]:
    """Sum of weights[t] * -log p(token t | tokens before t), and the sum of those weights.

    input_ids (B, T) int32, weights (B, T) float32, both MLX or NumPy; two float32 scalars. The
    first token of a row has no context and counts in neither. caches: see training_caches; a
    sequence's first token has no context either, and its weight must be 0. While a model trains
    (`model.training`) the gradient is made along; differentiate only then.
    """
    ids, rows, targets, learned = _learned(input_ids, weights)
    if not rows.size:
        # A pass may still have to record keys and values.
        _called(model, ids, caches)
        return mx.array(0.0), mx.array(0.0)
    hidden, head = _split(model, ids, caches)
    picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(rows)]
    total = _head_loss(model, head, picked, targets, learned)
    return total, mx.array(float(learned.sum(dtype=np.float64)))


def plain_nll(
    model: nn.Module, input_ids: Array, weights: Array, *, caches: Any = None
) -> tuple[mx.array, mx.array]:
    """The same sums with full logits in memory: the definition, and what always works."""
    ids, learned = mx.array(input_ids), mx.array(weights)[:, 1:]
    logits = _called(model, ids[:, :-1], caches).astype(mx.float32)
    nll = nn.losses.cross_entropy(logits, ids[:, 1:], reduction="none")
    return mx.where(learned > 0, nll * learned, 0).sum(), learned.sum()


def learned_logits(
    model: nn.Module, input_ids: Array, weights: Array
) -> tuple[mx.array, mx.array, mx.array]:
    """Logits (N, V) float32, targets (N,) and weights (N,) of the N learned tokens, row by row."""
    ids, rows, targets, learned = _learned(input_ids, weights)
    hidden, head = _split(model, ids, None)
    logits = head(hidden.reshape(-1, hidden.shape[-1])[mx.array(rows)])
    return logits.astype(mx.float32), mx.array(targets), mx.array(learned)


def head_is_exact(model: nn.Module) -> bool:
    """Whether `weighted_nll` equals `plain_nll` on this architecture; tried on a few tokens."""
    key = mx.random.key(0)
    ids = mx.random.randint(0, 32, (2, 12), key=key)
    weights = mx.random.bernoulli(0.5, (2, 12), key=key).astype(mx.float32)
    try:
        fast, plain = (
            np.asarray(nll(model, ids, weights)[0]).item() for nll in (weighted_nll, plain_nll)
        )
    # An architecture may be built in any way; whatever it raises, the plain way is there.
    except Exception:
        return False
    low_precision = any(
        a.dtype in (mx.bfloat16, mx.float16) for _, a in tree_flatten(model.parameters())
    )
    return bool(abs(fast - plain) <= (2e-2 if low_precision else 1e-5) * abs(plain))


def choose_nll(model: nn.Module) -> Nll:
    """`weighted_nll` where it is exact, else `plain_nll`."""
    return weighted_nll if head_is_exact(model) else plain_nll


def _learned(
    input_ids: Array, weights: Array
) -> tuple[mx.array, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Inputs (B, T - 1); then, per learned token: its row in the flat inputs, target, weight."""
    ids, learned = np.asarray(input_ids), np.asarray(weights, dtype=np.float32)
    if ids.shape != learned.shape or ids.ndim != 2:
        raise ModelError(f"input_ids {ids.shape} and weights {learned.shape} do not match")
    targets, learned = ids[:, 1:].reshape(-1), learned[:, 1:].reshape(-1)
    rows = np.flatnonzero(learned)
    return mx.array(ids[:, :-1]), rows, targets[rows], learned[rows]


def chunk_rows(vocabulary: int, hidden: int) -> int:
    """How many rows of logits are made at once."""
    if not backend.on_cpu():
        return max(_GPU_ROWS, _GPU_LOGITS_BYTES // (4 * vocabulary))
    fewest = max(_CPU_ROWS, min(hidden // _SHARE_OF_HEAD, _CPU_ROWS_AT_MOST))
    return max(fewest, _CPU_LOGITS_BYTES // (4 * vocabulary))


def _called(model: nn.Module, ids: mx.array, caches: Any) -> mx.array:
    called: mx.array = model(ids) if caches is None else model(ids, cache=caches)
    return called


def _head_loss(
    model: nn.Module,
    head: Callable[[mx.array], mx.array],
    rows: mx.array,
    targets: npt.NDArray[Any],
    weights: npt.NDArray[Any],
) -> mx.array:
    """The weighted sum over rows (N, D) of hidden states, chunk by chunk."""
    trained = _trained_in_head(model)
    names = [name for name, _ in trained]
    learns = model.training

    def chunk_loss(rows: mx.array, values: Sequence[mx.array], chunk: slice) -> Any:
        with _updated(model, names, values):
            logits = head(rows).astype(mx.float32)
        wanted, factor = mx.array(targets[chunk]), mx.array(weights[chunk])
        if cpu.is_faster() and not names:
            nll, totals = cpu.nll(logits, wanted)
            return (nll * factor).sum(), (factor / totals)[:, None]
        nll = nn.losses.cross_entropy(logits, wanted, reduction="none")
        return (nll * factor).sum(), mx.array(1.0)

    def forward(rows: mx.array, *given: mx.array) -> list[mx.array]:
        values = list(given)
        total, sums = mx.array(0.0), [mx.zeros_like(value) for value in values]
        parts: list[mx.array] = []
        if host.active():
            rows, *values = host.untraced([rows, *values])
        for chunk in _chunks(model, *rows.shape):
            # One after the other: MLX would make the logits of all chunks side by side.
            part = (
                rows[chunk]
                if chunk.start == 0
                else mx.depends([rows[chunk]], [total, *parts[-1:]])[0]
            )
            if not learns:
                total = total + chunk_loss(part, values, chunk)[0]
                continue
            (nll, scale), (gradient, more) = mx.value_and_grad(chunk_loss, argnums=(0, 1))(
                part, list(values), chunk
            )
            total = total + nll
            parts.append(gradient * scale.astype(gradient.dtype))
            sums = [one + other for one, other in zip(sums, more, strict=True)]
            if host.active():
                total, parts[-1], *sums = host.untraced([total, parts[-1], *sums])
        return [total, mx.concatenate(parts), *sums] if learns else [total]

    def backward(_: Any, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> Any:
        if not learns:
            raise RuntimeError("in evaluation mode the loss has no gradient; call model.train()")
        return [(cotangents[0] * made).astype(made.dtype) for made in outputs[1:]]

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    total: mx.array = operation(rows, *(value for _, value in trained))[0]
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
