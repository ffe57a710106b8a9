"""Caches through which gradients flow: their masks, and a probe that tells faults from rounding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import build

import mlx.core as mx  # isort: skip

from mlx_itune.model.engine.probe import probe
from mlx_itune.model.engine.training_caches import Pass


def _mask(lengths: list[int], shared: int, window: int | None) -> Any:
    """The definition, token by token."""
    places = [(n, t) for n, size in enumerate(lengths) for t in range(size)]
    order = range(shared + len(places))
    keys = [(None, t) for t in range(shared)] + places
    return np.array(
        [
            [
                (keys[key][0] in (None, row))
                and key <= query
                and (window is None or query - key < window)
                for key in order
            ]
            for query, (row, _) in enumerate(places, shared)
        ]
    )


@pytest.mark.parametrize(
    ("rows", "shared", "window"),
    [([[9]], 3, 4), ([[4, 3, 2]], 0, None), ([[5, 4], [9], [1, 1, 7]], 0, 4)],
)
def test_the_mask_array_is_the_definition(
    rows: list[list[int]], shared: int, window: int | None
) -> None:
    numbers = [[n for n, size in enumerate(row) for _ in range(size)] for row in rows]
    segments = mx.array(numbers) if shared == 0 else None
    made = np.array(Pass(9, segments, shared).mask(True, window))
    for row, sizes in enumerate(rows):
        ours = made if made.ndim == 2 else made[row, 0]
        assert np.array_equal(ours, _mask(sizes, shared, window))


def test_no_mask_array_is_made_where_a_kernel_knows_the_mask() -> None:
    assert Pass(9, None, 3).mask(False, None) == "causal"
    assert Pass(9, None, 3).mask(False, 12) == "causal"
    assert Pass(1).mask(False, None) is None


def test_the_probe_tells_a_fault_from_rounding() -> None:
    """A large vocabulary, where even the plain way rounds, is exact; a small fault is one."""
    model = build("qwen3", vocab_size=40_000)
    assert probe(model).reasons == {}

    layer = model.layers[0]

    class Absolute(type(layer)):  # type: ignore[misc]
        """A block whose input depends, a little, on where the row's first token stands."""

        def __call__(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
            first = 0 if cache is None else int(cache.offset)
            places = mx.arange(first, first + x.shape[1]).astype(mx.float32)
            return super().__call__(x * (1 + 1e-3 * places)[None, :, None], mask, cache)

    layer.__class__ = Absolute
    found = probe(model)
    assert not found.packing and "differs" in found.reasons["packing"]
    assert found.sharing and found.head
