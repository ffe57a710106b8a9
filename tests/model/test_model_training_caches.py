"""Caches through which gradients flow: packing, shared prefixes, and what a probe makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import ARCHITECTURES, PLACED, STATEFUL, build

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten

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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_probe_finds_what_is_exact(name: str) -> None:
    model = build(name)
    before = dict(tree_flatten(model.parameters()))
    found = probe(model)
    # Gemma 2's attention takes one mask for all rows.
    assert found.packing == (name != "gemma2")
    assert found.reasons.keys() == (set() if found.packing else {"packing"})
    assert found.head and found.sharing and found.checkpointing
    assert found.cache_count == len(model.layers)
    after = dict(tree_flatten(model.parameters()))
    assert all(after[path] is array for path, array in before.items())


@pytest.mark.parametrize("name", STATEFUL)
def test_the_probe_leaves_models_with_other_states_alone(name: str) -> None:
    found = probe(build(name))
    assert not (found.packing or found.sharing)
    assert "more than keys and values" in found.reasons["packing"]
    assert found.head and found.checkpointing


@pytest.mark.parametrize("name", PLACED)
def test_the_probe_refuses_packing_where_absolute_places_count(name: str) -> None:
    found = probe(build(name))
    assert not found.packing and "differs" in found.reasons["packing"]
    assert found.sharing and found.head and found.checkpointing


def test_the_probe_tells_a_fault_from_rounding() -> None:
    """A large vocabulary, where even the plain way rounds, is exact; a small fault is one."""
    model = build("llama", vocab_size=40_000)
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
