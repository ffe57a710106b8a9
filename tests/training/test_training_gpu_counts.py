"""What a step asks of a GPU, counted: launches, waits, shapes, positions."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_counts


def test_a_step_asks_no_more_of_a_gpu_than_mlx_lm_s() -> None:
    # Rows of its own, like those of the benchmark: they need no file.
    found = gpu_counts.measure(Path("nowhere"))
    assert found["launches_per_layer_ratio"] <= 1.0
    assert found["launches_36_layers_ratio"] <= 1.0
    assert found["shapes_in_64_steps"] <= 24
    assert found["positions_ratio"]["w1"] <= 1.05 and found["positions_ratio"]["w2"] <= 0.3
    for kind, counts in found["adapters"].items():
        assert (counts["evaluations_per_step"], counts["waits_per_step"]) == (1, 0)
        assert counts["launches_per_layer_ratio"] <= 1.3, kind
        assert counts["launches_36_layers_ratio"] <= 1.3, kind
