"""What each row costs a model: losses row by row, and how sure a mean of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.model.engine.loss import learned_logits, log_sum_exp
from mlx_itune.model.loading.base import LoadedModel

# Padded tokens, and learned ones, whose logits are there whole, per forward pass.
_TOKENS, _LEARNED = 4096, 512
_DRAWS = 2000

Losses = NDArray[np.float64]


def row_losses(
    loaded: LoadedModel,
    examples: Sequence[TokenizedExample],
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> Losses:
    """(N, 2) float64: of each row the sum of weight * nats over its learned tokens, and of the
    weights; in the order of the rows. observe: is told of rows done and of all."""
    found = np.zeros((len(examples), 2))
    done = 0
    for places in _batches(examples):
        rows = [examples[place] for place in places]
        width = len(rows[-1].input_ids)
        ids, weights = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width))
        for k, row in enumerate(rows):
            ids[k, : len(row.input_ids)], weights[k, : len(row.weights)] = (
                row.input_ids,
                row.weights,
            )
        weights[:, 0] = 0
        if weights.any():
            logits, targets, learned = learned_logits(loaded.model, ids, weights)
            picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            nats = np.array(learned * (log_sum_exp(logits) - picked), dtype=np.float64)
            own = np.repeat(places, np.count_nonzero(weights, axis=1))
            np.add.at(found[:, 0], own, nats[: len(own)])
            found[places, 1] = weights.sum(axis=1)
        done += len(places)
        observe(done, len(examples))
    return found


def _batches(examples: Sequence[TokenizedExample]) -> list[list[int]]:
    """Places of rows of like length, within both limits."""
    lengths = [len(row.input_ids) for row in examples]
    learned = [int(np.count_nonzero(row.weights)) for row in examples]
    made: list[list[int]] = []
    many = 0
    for place in np.argsort(lengths, kind="stable").tolist():
        many += learned[place]
        full = made and (len(made[-1]) + 1) * lengths[place] > _TOKENS
        if not made or full or many > _LEARNED:
            made.append([])
            many = learned[place]
        made[-1].append(place)
    return made


def mean_of(values: Losses) -> float:
    """Of (N, 2) values and weights the mean by weight."""
    total, weight = values.sum(axis=0)
    return float(total / weight) if weight else float("nan")


def interval(values: Losses, other: Losses | None = None) -> tuple[float, float]:
    """The 95 % interval of `mean_of`, or of how far it is above that of `other` on the same rows:
    by 2,000 bootstrap draws of the rows, always the same ones."""
    drawn = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))

    def means(of: Losses) -> Losses:
        sums = of[drawn].sum(axis=1)
        return sums[:, 0] / np.maximum(sums[:, 1], 1e-12)  # type: ignore[no-any-return]

    found = means(values) - (means(other) if other is not None else 0.0)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
