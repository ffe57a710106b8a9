"""The loss, and the one place where targets shift: the logits at t - 1 predict token t.

`weights[t]` says how much token t is learned as a target. Only the hidden states that predict a
learned token meet the output head (Cut Your Losses, 2411.09009; section 4.1 of the design), in
chunks, so that logits never stand in memory whole. No architecture is named here: what a model
does after its stack of blocks is run, unchanged, on the rows that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.model import cpu

Array = Any
# Logits that may stand in memory at once.
_LOGITS_BYTES = 64 << 20

Nll = Callable[[nn.Module, Array, Array], tuple[mx.array, mx.array]]


def weighted_nll(model: nn.Module, input_ids: Array, weights: Array) -> tuple[mx.array, mx.array]:
    """Sum of weights[t] * -log p(token t | tokens before t), and the sum of those weights.

    input_ids (B, T) int32, weights (B, T) float32, both MLX or NumPy; two float32 scalars. The
    first token of a row has no context and counts in neither.
    """
    ids, rows, targets, learned = _learned(input_ids, weights)
    if not rows.size:
        return mx.array(0.0), mx.array(0.0)
    hidden, head = _split(model, ids)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    total = mx.array(0.0)
    for chunk in _chunks(model, rows.size):
        logits = head(hidden[mx.array(rows[chunk])])
        total = total + _nll_sum(logits, mx.array(targets[chunk]), mx.array(learned[chunk]))
    return total, mx.array(float(learned.sum(dtype=np.float64)))


def plain_nll(model: nn.Module, input_ids: Array, weights: Array) -> tuple[mx.array, mx.array]:
    """The same sums with full logits in memory: the definition, and what always works."""
    ids, learned = mx.array(input_ids), mx.array(weights)[:, 1:]
    logits = model(ids[:, :-1]).astype(mx.float32)
    nll = nn.losses.cross_entropy(logits, ids[:, 1:], reduction="none")
    return mx.where(learned > 0, nll * learned, 0).sum(), learned.sum()


def learned_logits(
    model: nn.Module, input_ids: Array, weights: Array
) -> tuple[mx.array, mx.array, mx.array]:
    """Logits (N, V) float32, targets (N,) and weights (N,) of the N learned tokens, row by row."""
    ids, rows, targets, learned = _learned(input_ids, weights)
    hidden, head = _split(model, ids)
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


def _nll_sum(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    if cpu.is_faster():
        return cpu.nll_sum(logits, targets, weights)
    nll = nn.losses.cross_entropy(logits, targets, reduction="none")
    total: mx.array = (nll * weights).sum()
    return total


def _chunks(model: nn.Module, rows: int) -> list[slice]:
    size = max(1, _LOGITS_BYTES // (4 * _vocabulary(model)))
    return [slice(start, start + size) for start in range(0, rows, size)]


def _vocabulary(model: nn.Module) -> int:
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


def _split(model: nn.Module, ids: mx.array) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
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
        model(ids)

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
