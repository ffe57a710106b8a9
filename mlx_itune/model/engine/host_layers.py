"""Layers of a row that is computed at once (see `host`), and the loss; each with its gradient.

The products are BLAS's own, which adds a low-rank update to what it has just written; the rest goes
by pieces over all cores. float32, as what they stand in for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_itune.model.engine import host
from mlx_itune.model.engine.host import Arrays, Floats
from mlx_itune.model.loading import backend

_ALL = slice(None)


def linear(
    x: mx.array, weight: Callable[[], Floats], outputs: int, low_rank: Arrays | None, scale: float
) -> mx.array:
    """x W^T + scale (x A) B, x (..., in) float32; low_rank: A (in, rank) and B (rank, out).

    weight: makes W (out, in) anew when it is needed.
    """
    inputs = x.shape[-1]

    def forward(x: mx.array, *factors: mx.array) -> mx.array:
        rows = host.seen(x).reshape(-1, inputs)
        made, memory = host.empty((*x.shape[:-1], outputs))
        y = memory.reshape(-1, outputs)
        backend.product(rows, weight().T, out=y)
        if factors:
            a, b = map(host.seen, factors)
            backend.product(backend.product(rows, a), b, scale, out=y, add=True)
        return made

    def backward(primals: Any, cotangent: mx.array, _: Any) -> Any:
        given, *factors = primals if low_rank else [primals]
        rows, ahead = host.seen(given).reshape(-1, inputs), host.seen(cotangent)
        ahead = ahead.reshape(-1, outputs)
        made, memory = host.empty(given.shape)
        d_x = memory.reshape(-1, inputs)
        backend.product(ahead, weight(), out=d_x)
        if not factors:
            return made
        a, b = map(host.seen, factors)
        d_low = backend.product(ahead, b.T, scale)
        backend.product(d_low, a.T, out=d_x, add=True)
        d_b = backend.product(backend.product(rows, a).T, ahead, scale)
        return [made, mx.array(backend.product(rows.T, d_low)), mx.array(d_b)]

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    y: mx.array = operation(x, *(low_rank or ()))
    return y


def rms_norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x / sqrt(mean(x^2) + eps) * weight along the last axis; the weight is a constant."""
    gain = host.seen(weight)

    def inverse(rows: Floats) -> Floats:
        mean = np.einsum("...d,...d->...", rows, rows)[..., None] * np.float32(1 / rows.shape[-1])
        made: Floats = 1 / np.sqrt(mean + np.float32(eps))
        return made

    def forward(x: mx.array) -> mx.array:
        given = host.seen(x)
        made, y = host.empty(x.shape)

        def part(rows: slice) -> None:
            place = (..., rows, _ALL)
            np.multiply(given[place], inverse(given[place]), out=y[place])
            y[place] *= gain

        host.on_all_cores(part, host.pieces(x.shape[-2]))
        return made

    def backward(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        given, ahead = host.seen(x), host.seen(cotangent)
        made, d_x = host.empty(x.shape)

        def part(rows: slice) -> None:
            place = (..., rows, _ALL)
            part_x, factor = given[place], inverse(given[place])
            scaled = ahead[place] * gain
            along = np.einsum("...d,...d->...", scaled, part_x)[..., None]
            along *= factor * factor * np.float32(1 / part_x.shape[-1])
            np.multiply(part_x, along, out=d_x[place])
            np.subtract(scaled, d_x[place], out=d_x[place])
            d_x[place] *= factor

        host.on_all_cores(part, host.pieces(x.shape[-2]))
        return made

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    y: mx.array = operation(x)
    return y


def turn(x: mx.array, cosines: mx.array, sines: mx.array, half: int) -> mx.array:
    """x * cosines + swapped(x) * sines: see `rotary`; x (B, heads, T, width)."""
    c, s = host.seen(cosines), host.seen(sines)
    first, second = slice(0, half), slice(half, 2 * half)

    def turned(x: mx.array, sign: float) -> mx.array:
        given = host.seen(x)
        made, y = host.empty(x.shape)

        def part(rows: slice) -> None:
            place = (..., rows, _ALL)
            part_x, part_y = given[place], y[place]
            np.multiply(part_x, c[rows], out=part_y)
            sine = s[rows] * np.float32(sign)
            part_y[..., first] += part_x[..., second] * sine[:, first]
            part_y[..., second] += part_x[..., first] * sine[:, second]

        host.on_all_cores(part, host.pieces(x.shape[-2]))
        return made

    def forward(x: mx.array) -> mx.array:
        return turned(x, 1.0)

    def backward(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        return turned(cotangent, -1.0)

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    y: mx.array = operation(x)
    return y


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, elementwise, at once."""

    def forward(gate: mx.array, x: mx.array) -> mx.array:
        mx.eval(gate, x)
        g, u = np.asarray(gate), np.asarray(x)
        made, out = host.empty(g.shape)

        def part(rows: slice) -> None:
            y = np.negative(g[..., rows, :], out=out[..., rows, :])
            np.exp(y, out=y)
            y += 1
            np.divide(g[..., rows, :], y, out=y)
            y *= u[..., rows, :]

        host.on_all_cores(part, host.pieces(g.shape[-2]))
        return made

    def backward(primals: Arrays, cotangent: mx.array, _: mx.array) -> Arrays:
        mx.eval(primals, cotangent)
        g, u, d = (np.asarray(a) for a in (*primals, cotangent))
        (made_gate, d_gate), (made_x, d_x) = host.empty(g.shape), host.empty(g.shape)

        def part(rows: slice) -> None:
            at = (..., rows, slice(None))
            sigmoid = np.exp(-g[at])
            sigmoid += 1
            np.reciprocal(sigmoid, out=sigmoid)
            silu = np.multiply(g[at], sigmoid)
            np.multiply(d[at], silu, out=d_x[at])
            slope = np.subtract(1, sigmoid, out=d_gate[at])
            slope *= silu
            slope += sigmoid
            slope *= u[at]
            slope *= d[at]

        host.on_all_cores(part, host.pieces(g.shape[-2]))
        return [made_gate, made_x]

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    y: mx.array = operation(gate, x)
    return y


def nll(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """`cpu.nll`, at once."""

    def forward(logits: mx.array, targets: mx.array) -> Arrays:
        mx.eval(logits, targets)
        all_scores, chosen = np.asarray(logits), np.asarray(targets)
        made, gradient = host.empty(logits.shape)
        (made_nll, losses), (made_total, totals) = (
            host.empty(targets.shape),
            host.empty(targets.shape),
        )

        def part(rows: slice) -> None:
            for row in range(rows.start, rows.stop):
                scores, powers = all_scores[row], gradient[row]
                peak = scores.max()
                np.subtract(scores, peak, out=powers)
                np.exp(powers, out=powers)
                total = powers.sum()
                losses[row] = np.log(total) + peak - scores[chosen[row]]
                totals[row] = total
                powers[chosen[row]] -= total

        host.on_all_cores(part, host.pieces(len(chosen), 4))
        return [made_nll, made, made_total]

    def backward(primals: Arrays, _: Arrays, outputs: Arrays) -> Arrays:
        return [outputs[1], mx.zeros_like(primals[1])]

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    outputs: Any = operation(logits, targets)
    return outputs[0], outputs[2]


class RMSNorm(nn.RMSNorm):  # type: ignore[misc]
    """An RMSNorm that knows `host`."""

    def __call__(self, x: mx.array) -> mx.array:
        if host.active() and x.dtype == mx.float32 and "weight" in self._no_grad:
            return rms_norm(x, self["weight"], self.eps)
        y: mx.array = super().__call__(x)
        return y
