"""Which ways of computing a loss are exact for a model: each is tried against the plain one.

A few random rows go through full logits one by one, then through everything at once; only where
that does not agree is each way tried alone. What an architecture does that a fast way does not
expect (a state besides keys and values, absolute positions, ...) shows in the loss or the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.model.engine import cpu, host, rotary, training_caches
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.loss import plain_nll, weighted_nll

_ROW_TOKENS, _SHARED_TOKENS = (13, 9, 16, 6), 4
# Relative to the loss, and to the length of the whole gradient.
_TOLERANCE, _COARSE_TOLERANCE = 1e-4, 5e-2


@dataclass(frozen=True)
class Exact:
    """Ways of computing that agree with the plain one; why not, where one does not."""

    head: bool = True
    caches: bool = True
    packing: bool = True
    sharing: bool = True
    packing_and_sharing: bool = True
    checkpointing: bool = True
    at_once: bool = True
    cache_count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Way:
    head: bool = False
    caches: bool = False
    packing: bool = False
    sharing: bool = False
    checkpointing: bool = False
    at_once: bool = False


def probe(model: nn.Module) -> Exact:
    """Try every way on a model, which has its adapter on; the model is as before afterwards."""
    count, why = _caches(model)
    if count is not None:
        rotary.install(model)
    was_training = model.training
    model.train()
    try:
        return _probe(_Trial(model, count or 0), count, why)
    finally:
        model.train(was_training)


def _probe(trial: _Trial, count: int | None, why: str) -> Exact:
    cached = count is not None
    everything = _Way(True, cached, cached, cached, True)
    found = Exact(cache_count=count or 0)
    reasons: dict[str, str] = {}
    if not cached:
        found = replace(
            found, caches=False, packing=False, sharing=False, packing_and_sharing=False
        )
        reasons = {"packing": why, "prefix": why}

    def tried(name: str, way: _Way, reason: str) -> bool:
        fault = trial.disagreement(way)
        if fault is not None and reason:
            reasons[reason] = fault
        return fault is None

    if cpu.is_faster():
        # As one row, or else row by row: a large model takes its time.
        row = _Way(True, cached, cached, False, True, True)
        exact = tried("at_once", row, "at_once") or tried(
            "at_once", replace(row, packing=False), "at_once"
        )
        found = replace(found, at_once=exact)
    if trial.disagreement(everything) is None:
        return replace(found, reasons=reasons)
    head = tried("head", _Way(head=True), "head")
    checkpointing = tried("checkpointing", _Way(checkpointing=True), "checkpointing")
    if not cached:
        return replace(found, head=head, checkpointing=checkpointing, reasons=reasons)
    at_once = found.at_once
    caches = tried("caches", _Way(caches=True), "packing")
    packing = caches and tried("packing", _Way(caches=True, packing=True), "packing")
    sharing = tried("sharing", _Way(caches=True, sharing=True), "prefix")
    both = packing and sharing
    both = both and tried(
        "both", _Way(caches=True, packing=True, sharing=True), "packing_and_prefix"
    )
    return Exact(head, caches, packing, sharing, both, checkpointing, at_once, count or 0, reasons)


def _caches(model: nn.Module) -> tuple[int | None, str]:
    try:
        count = training_caches.layer_count(model)
    # An architecture may make its caches in any way.
    except Exception as error:
        return None, _one_line(error)
    return count, "" if count is not None else "its layers keep more than keys and values"


class _Trial:
    """A model, a few rows, and what the plain way makes of them."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.model, self.count = model, count
        rng = np.random.default_rng(0)
        common = rng.integers(0, 32, _SHARED_TOKENS)
        self.rows = [np.concatenate([common, rng.integers(0, 32, n)]) for n in _ROW_TOKENS]
        self.weights = [(rng.random(len(row)) < 0.6).astype(np.float32) for row in self.rows]
        for weights in self.weights:
            weights[[0, -1]] = 0.0, 1.0
        dtypes = {a.dtype for _, a in tree_flatten(model.parameters())}
        coarse = bool(dtypes & {mx.bfloat16, mx.float16})
        self.tolerance = _COARSE_TOLERANCE if coarse else _TOLERANCE
        self.plain: tuple[float, Any] | None = None

    def disagreement(self, way: _Way) -> str | None:
        """How far `way` is from the plain one, in words; None where it agrees."""
        if self.plain is None:
            self.plain = self._computed(_Way())
        try:
            loss, gradient = self._computed(way)
        # Whatever an architecture raises that a way does not fit, the plain way is there.
        except Exception as error:
            return _one_line(error)
        plain_loss, plain_gradient = self.plain
        if not abs(loss - plain_loss) <= self.tolerance * abs(plain_loss):
            return f"its loss differs, {loss:.6g} for {plain_loss:.6g}"
        length = float(np.linalg.norm(plain_gradient)) or 1.0
        distance = float(np.linalg.norm(gradient - plain_gradient)) / length
        return None if distance <= self.tolerance else f"its gradient differs by {distance:.1e}"

    def _computed(self, way: _Way) -> tuple[float, Any]:
        parameters = self.model.trainable_parameters()

        def loss(values: Any) -> mx.array:
            self.model.update(values)
            blocks = None if way.checkpointing else 0
            at_once = host.at_once() if way.at_once else nullcontext()
            with at_once, checkpointed_blocks(self.model, blocks, at_once=way.at_once):
                return self._loss(way)

        try:
            if not tree_flatten(parameters):
                return float(np.asarray(self._loss(way))), np.zeros(1)
            value, gradients = mx.value_and_grad(loss)(parameters)
            flat = [np.asarray(a.astype(mx.float32)).ravel() for _, a in tree_flatten(gradients)]
            return float(np.asarray(value)), np.concatenate(flat).astype(np.float64)
        finally:
            self.model.update(parameters)

    def _loss(self, way: _Way) -> mx.array:
        nll: Callable[..., Any] = weighted_nll if way.head else plain_nll
        rows, weights, total, shared = self.rows, self.weights, mx.array(0.0), None
        if way.sharing:
            ahead = training_caches.Rows(_SHARED_TOKENS - 1)
            made = training_caches.caches(self.count, ahead, record=True)
            summed = np.sum([w[:_SHARED_TOKENS] for w in weights], axis=0)
            total = nll(self.model, rows[0][None, :_SHARED_TOKENS], summed[None], caches=made)[0]
            shared = training_caches.recorded(made)
            rows, weights = ([a[_SHARED_TOKENS - 1 :] for a in part] for part in (rows, weights))
        weights = [np.concatenate([[0.0], w[1:]]).astype(np.float32) for w in weights]
        tokens = shared[0][0].shape[2] if shared else 0
        if not way.packing:
            for ids, learned in zip(rows, weights, strict=True):
                layout = training_caches.Rows(len(ids) - 1, None, tokens)
                own = training_caches.caches(self.count, layout, shared) if way.caches else None
                total = total + nll(self.model, ids[None], learned[None], caches=own)[0]
            return total
        # As they will be: all in one row, or two rows of two, the second with padding at its end.
        bins = [[0, 1, 2, 3]] if cpu.is_faster() else [[0, 1], [2, 3]]
        width = max(sum(len(rows[i]) for i in chosen) for chosen in bins)
        ids, targets = (
            np.stack([_joined([part[i] for i in chosen], width) for chosen in bins])
            for part in (rows, weights)
        )
        lengths = [[len(rows[i]) for i in chosen] for chosen in bins]
        layout = training_caches.Rows(width - 1, lengths, tokens)
        made = training_caches.caches(self.count, layout, shared)
        whole: mx.array = total + nll(self.model, ids, targets, caches=made)[0]
        return whole


def _joined(parts: list[Any], width: int) -> Any:
    whole = np.concatenate(parts)
    return np.pad(whole, (0, width - len(whole)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
