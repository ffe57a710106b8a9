"""Gradient checkpointing of a model's blocks: nothing inside a block is kept for the backward pass.

Each block's place is taken, for one pass, by a stand-in that computes it again when its gradient is
asked for (Chen et al., 1604.06174). No class is touched. What the gradient has to flow through is
handed over in the open, as MLX asks: the block's input, its trainable arrays, shared keys and
values, and those that a pass records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.engine.training_caches import TrainingCache


@contextmanager
def checkpointed_blocks(model: nn.Module, count: int | None = None) -> Iterator[None]:
    """Within it, a pass through the model keeps only the inputs of its first `count` blocks.

    None is all of them. The first ones: when they are made again, what the last ones kept is gone.
    """
    if count == 0:
        yield
        return
    blocks = _list_of_blocks(model)
    before = list(blocks)
    count = len(before) if count is None else count
    # In the list itself: models hold on to it under names of their own.
    blocks[:] = [*(_Recomputed(block) for block in before[:count]), *before[count:]]
    try:
        yield
    finally:
        blocks[:] = before


def _list_of_blocks(model: nn.Module) -> list[Any]:
    first = model.layers[0]
    for module in model.modules():
        for value in module.values():
            if isinstance(value, list) and value and value[0] is first:
                return value
    raise ModelError("no list of blocks was found in this architecture")


class _Recomputed:
    """A block's place taken; everything but the call is still the block."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block = self._block
        trained = tree_flatten(block.trainable_parameters())
        # Boolean masks and positions have no gradient, and a mask is known by its identity.
        given = {id(leaf): leaf for leaf in _leaves([args, kwargs]) if _is_float(leaf)}
        caches = [leaf for leaf in _leaves([args, kwargs]) if isinstance(leaf, TrainingCache)]
        shared = [cache.shared or () for cache in caches]
        made: list[Any] = []
        # MLX makes a block again on whatever stream is the default by then.
        stream = mx.default_stream(mx.default_device())

        def call(arrays: list[mx.array]) -> list[mx.array]:
            with mx.stream(stream):
                return computed(arrays)

        def computed(arrays: list[mx.array]) -> list[mx.array]:
            rest = iter(arrays)
            values = [*islice(rest, len(trained))]
            new: dict[int, Any] = dict(zip(given, islice(rest, len(given)), strict=True))
            inner = [
                cache.again(tuple(islice(rest, len(own))))
                for cache, own in zip(caches, shared, strict=True)
            ]
            new.update(zip(map(id, caches), inner, strict=True))
            block.update(tree_unflatten(_renamed(trained, values)))
            try:
                out = block(*_replaced(args, new), **_replaced(kwargs, new))
            finally:
                block.update(tree_unflatten(trained))
            # Of the first time alone: what is made again must not outlive its gradient.
            if not made:
                made.extend([out, *(len(cache.recorded) for cache in inner)])
            leaves, kept = _arrays(out), [*chain.from_iterable(cache.recorded for cache in inner)]
            # Of an array that is there twice MLX would take one gradient alone.
            return [*leaves, *(mx.depends(kept, leaves) if kept else ())]

        arrays = [*(a for _, a in trained), *given.values(), *chain.from_iterable(shared)]
        results = iter(_recomputing(call, len(trained))(arrays))
        out, *counts = made
        replaced = {id(old): next(results) for old in _arrays(out)}
        for cache, count in zip(caches, counts, strict=True):
            cache.recorded = tuple(islice(results, count))
        return _replaced(out, replaced)


def _recomputing(call: Callable[[list[mx.array]], list[mx.array]], trained: int) -> Any:
    """As `mx.checkpoint`, in an order that holds one block at a time; trained: the first arrays.

    A block is made again only once the gradient of its outputs has come, and that of its inputs
    goes on only once those of its trained arrays are there; MLX would leave these for the end.
    """
    operation: Any = mx.custom_function(call)

    def backward(primals: list[mx.array], cotangents: list[mx.array], _: Any) -> list[mx.array]:
        given = mx.depends(primals, cotangents)
        gradients = mx.vjp(lambda *arrays: call(list(arrays)), given, cotangents)[1]
        own, passed_on = gradients[:trained], gradients[trained:]
        return [*own, *(mx.depends(passed_on, own) if own else passed_on)]

    operation.vjp(backward)
    return operation


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _leaves(branch)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))
    else:
        yield tree


def _arrays(tree: Any) -> list[mx.array]:
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, mx.array)]


def _replaced(tree: Any, new: dict[int, Any]) -> Any:
    if isinstance(tree, (list, tuple)):
        return type(tree)(_replaced(branch, new) for branch in tree)
    if isinstance(tree, dict):
        return {name: _replaced(branch, new) for name, branch in tree.items()}
    return new.get(id(tree), tree)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)


def _renamed(trained: list[tuple[str, Any]], values: list[mx.array]) -> list[tuple[str, Any]]:
    return [(name, value) for (name, _), value in zip(trained, values, strict=True)]
