"""Which ways of computing a loss are exact for a model: each is tried against the plain one.

A few random rows go through full logits, then through everything at once; only where that does not
agree is each way tried alone. What an architecture does that a fast way does not expect (absolute
positions, a mask of its own, ...) shows in the loss or the gradient, and is large:
how far the plain way is from itself, computed in another order, tells what is only rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.kit.cache import remembered
from mlx_itune.kit.wording import brief
from mlx_itune.model.engine import training_caches
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.gated_delta import in_chunks
from mlx_itune.model.engine.loss import Nll, plain_nll, weighted_nll
from mlx_itune.model.engine.training_caches import Kind
from mlx_itune.model.loading import backend
from mlx_itune.model.loading.fingerprint import function_of

_ROW_TOKENS, _SHARED_TOKENS = (13, 9, 16, 6), 4
# A way may differ from the plain one by so many times what this differs from itself. A fault is
# thousands of times that; below the floor all is well.
_TIMES_ROUNDING, _FLOOR = 20.0, 1e-5
Rows = list[tuple[Any, Any]]
# Where the reason is told why a way is not taken.
_REASONS = {
    "head": "head",
    "packing": "packing",
    "sharing": "prefix",
    "checkpointing": "checkpointing",
}


@dataclass(frozen=True)
class Exact:
    """Ways of computing that agree with the plain one; why not, where one does not."""

    head: bool = True
    packing: bool = True
    sharing: bool = True
    checkpointing: bool = True
    caches: tuple[Kind, ...] = ()
    gap_tokens: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Way:
    head: bool = False
    packing: bool = False
    sharing: bool = False
    checkpointing: bool = False


# Architectures, by the model type of their config, for which tests/model/test_model_families.py
# proves every way that their caches allow, but for the ways named; and the mlx-lm it was done with:
# another one may compute a layer by other functions, so there each is tried.
_PROVED_WITH = "0.32."
_PROVED = frozenset(
    "apertus cohere deepseek_v3 ernie4_5 exaone4 falcon_h1 gemma2 gemma3 gemma3_text gemma4 "
    "gemma4_text glm4 glm4_moe glm4_moe_lite gpt_oss granite granitemoehybrid hunyuan_v1_dense "
    "kimi_linear lfm2 lfm2_moe llama mamba2 mistral nemotron_h olmo3 phi3 qwen2 qwen3 qwen3_5 "
    "qwen3_5_moe qwen3_moe qwen3_next qwen3_vl seed_oss smollm3".split()
)
_BUT = {
    "gemma2": ("packing", "its attention takes one mask for all rows"),
    "hunyuan_v1_dense": ("packing", "it normalizes what it rotated: absolute places count"),
}


def exact_ways(model: nn.Module) -> Exact:
    """What is exact for a model with its adapter on: known for its architecture, or tried once
    and remembered."""
    kind = getattr(model, "model_type", "")
    if not _is_proved(kind):
        return remembered("probe", _identity(model), Exact, lambda: probe(model))
    found = _possible(model)
    name, reason = _BUT.get(kind, ("", ""))
    if name and getattr(found, name):
        found = replace(found, **{name: False})  # type: ignore[arg-type]
        found.reasons[_REASONS[name]] = reason
    return found


def _is_proved(kind: str) -> bool:
    return kind in _PROVED and version("mlx-lm").startswith(_PROVED_WITH)


def _identity(model: nn.Module) -> dict[str, Any]:
    """What a trial depends on, but for the weights' values: configuration, layers, adapter."""
    layers = [
        (path, f"{type(m).__module__}.{type(m).__name__}") for path, m in model.named_modules()
    ]
    arrays = [(path, a.shape, str(a.dtype)) for path, a in tree_flatten(model.parameters())]
    return {
        "config": function_of(model, {}),
        "layers": sorted(layers),
        "arrays": sorted(arrays),
        "device": backend.prepare().device,
        "asked": sorted(Exact.__dataclass_fields__),
    }


def probe(model: nn.Module) -> Exact:
    """Try every way on a model, which has its adapter on; the model is as before afterwards."""
    was_training = model.training
    model.train()
    try:
        found = _possible(model)
        trial, cached = _Trial(model, found), found.packing
        # Rows behind a prefix are not packed, so these two are never together.
        together = [_Way(True, sharing=cached, checkpointing=True)]
        together += [_Way(True, packing=True, checkpointing=True)] if cached else []
        if all(trial.disagreement(way) is None for way in together):
            return found
        for name, reason in _REASONS.items():
            if not getattr(found, name):
                continue
            fault = trial.disagreement(_Way(**{name: True}))
            if fault is not None:
                found = replace(found, **{name: False})  # type: ignore[arg-type]
                found.reasons[reason] = fault
        return found
    finally:
        model.train(was_training)


def choose_nll(model: nn.Module) -> Nll:
    """`weighted_nll` where it is known to be exact, or equals `plain_nll` on a few tokens; else
    that."""
    kind = getattr(model, "model_type", "")
    if _is_proved(kind) and _BUT.get(kind, ("",))[0] != "head":
        return weighted_nll
    key = mx.random.key(0)
    ids = mx.random.randint(0, 32, (2, 12), key=key)
    weights = mx.random.bernoulli(0.5, (2, 12), key=key).astype(mx.float32)
    try:
        fast, plain = (
            np.asarray(nll(model, ids, weights)[0]).item() for nll in (weighted_nll, plain_nll)
        )
    # An architecture may be built in any way; whatever it raises, the plain way is there.
    except Exception:
        return plain_nll
    half = any(a.dtype in (mx.bfloat16, mx.float16) for _, a in tree_flatten(model.parameters()))
    near = abs(fast - plain) <= (2e-2 if half else 1e-5) * abs(plain)
    return weighted_nll if near else plain_nll


class _Trial:
    """A model, a few rows, and what the plain way makes of them."""

    def __init__(self, model: nn.Module, possible: Exact) -> None:
        self.model, self.possible = model, possible
        rng = np.random.default_rng(0)
        common = rng.integers(0, 32, _SHARED_TOKENS)
        rows = [np.concatenate([common, rng.integers(0, 32, n)]) for n in _ROW_TOKENS]
        weights = [(rng.random(len(row)) < 0.6).astype(np.float32) for row in rows]
        for learned in weights:
            learned[[0, -1]] = 0.0, 1.0
        self.rows: Rows = list(zip(rows, weights, strict=True))
        loss, gradient = self._computed(_Way())
        other_loss, other = self._computed(_Way(), padded=True)
        self.plain = loss, gradient
        self.length = float(np.linalg.norm(gradient)) or 1.0
        apart = float(np.linalg.norm(other - gradient)) / self.length
        self.tolerance = max(_FLOOR, _TIMES_ROUNDING * apart)
        self.loss_tolerance = max(_FLOOR, _TIMES_ROUNDING * abs(other_loss - loss) / abs(loss))

    def disagreement(self, way: _Way) -> str | None:
        """How far `way` is from the plain one, in words; None where it agrees."""
        try:
            loss, gradient = self._computed(way)
        # Whatever an architecture raises that a way does not fit, the plain way is there.
        except Exception as error:
            return brief(error, 120) or type(error).__name__
        plain_loss, plain_gradient = self.plain
        if not abs(loss - plain_loss) <= self.loss_tolerance * abs(plain_loss):
            return f"its loss differs, {loss:.6g} for {plain_loss:.6g}"
        distance = float(np.linalg.norm(gradient - plain_gradient)) / self.length
        return None if distance <= self.tolerance else f"its gradient differs by {distance:.1e}"

    def _computed(self, way: _Way, *, padded: bool = False) -> tuple[float, Any]:
        # All of them: there are models that change their own in training.
        everything, parameters = self.model.parameters(), self.model.trainable_parameters()

        def loss(values: Any) -> mx.array:
            self.model.update(values)
            with checkpointed_blocks(self.model, None if way.checkpointing else 0):
                return sum(self._losses(way, padded), mx.array(0.0))

        try:
            if not tree_flatten(parameters):
                return float(np.asarray(loss(parameters))), np.zeros(1)
            with nullcontext() if way == _Way() else in_chunks():
                value, gradients = mx.value_and_grad(loss)(parameters)
            flat = [np.asarray(a.astype(mx.float32)).ravel() for _, a in tree_flatten(gradients)]
            return float(np.asarray(value)), np.concatenate(flat).astype(np.float64)
        finally:
            self.model.update(everything)

    def _losses(self, way: _Way, padded: bool) -> Iterable[mx.array]:
        nll: Any = weighted_nll if way.head else plain_nll
        rows, shared = self.rows, None
        if way.sharing:
            ahead = training_caches.Pass(_SHARED_TOKENS - 1)
            made = training_caches.caches(self.possible.caches, ahead, record=True)
            summed = np.sum([w[:_SHARED_TOKENS] for _, w in rows], axis=0)
            yield nll(self.model, rows[0][0][None, :_SHARED_TOKENS], summed[None], caches=made)[0]
            shared = training_caches.recorded(made)
            rows = [
                (ids[_SHARED_TOKENS - 1 :], _first_free(w[_SHARED_TOKENS - 1 :])) for ids, w in rows
            ]
        before = _SHARED_TOKENS - 1 if shared else 0
        # Behind a prefix rows stand alone, as training has them.
        bins = [[0, 1], [2, 3]] if way.packing and not shared else [[n] for n in range(4)]
        if way.packing or padded:
            gap = self.possible.gap_tokens
            width = max(sum(len(rows[i][0]) + gap for i in chosen) for chosen in bins)
            yield self._together(nll, [[rows[i] for i in chosen] for chosen in bins], width, shared)
            return
        for ids, learned in rows:
            layout = training_caches.Pass(len(ids) - 1, None, before, 1)
            own = training_caches.caches(self.possible.caches, layout, shared) if shared else None
            yield nll(self.model, ids[None], learned[None], caches=own)[0]

    def _together(self, nll: Any, bins: list[Rows], width: int, shared: Any) -> mx.array:
        ids, learned, segments = (np.zeros((len(bins), width)) for _ in range(3))
        for place, rows in enumerate(bins):
            at = 0
            for number, (row, weights) in enumerate(rows, 1):
                end = at + len(row)
                ids[place, at:end], segments[place, at:end] = row, number
                learned[place, at:end] = _first_free(weights)
                at = end + self.possible.gap_tokens
        caches = None
        packed = any(len(rows) > 1 for rows in bins)
        if packed or shared:
            layout = training_caches.Pass(
                width - 1,
                mx.array(segments[:, :-1].astype(np.int32)) if packed else None,
                _SHARED_TOKENS - 1 if shared else 0,
                len(bins),
            )
            caches = training_caches.caches(self.possible.caches, layout, shared)
        whole: mx.array = nll(
            self.model, ids.astype(np.int32), learned.astype(np.float32), caches=caches
        )[0]
        return whole


def _possible(model: nn.Module) -> Exact:
    """What the caches of a model allow."""
    why = "its layers keep something of a kind of their own"
    try:
        kinds = training_caches.kinds_of(model)
    # An architecture may make its caches in any way.
    except Exception as error:
        kinds, why = None, brief(error, 120)
    if kinds is None:
        return Exact(packing=False, sharing=False, reasons={"packing": why, "prefix": why})
    return Exact(caches=kinds, gap_tokens=training_caches.gap_tokens(model))


def _first_free(weights: Any) -> Any:
    return np.concatenate([[0.0], weights[1:]]).astype(np.float32)
