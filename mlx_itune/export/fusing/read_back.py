"""Read an exported model back with the program that will run it, and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.export.fusing.fidelity import fidelity
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters.grid_norm import GridNorm
from mlx_itune.model.engine import compute
from mlx_itune.model.loading import base
from mlx_itune.model.loading import mlx_lm_models as stock
from mlx_itune.model.loading.base import LoadedModel

# A few rows show a wrong file as well as many.
_ROWS = 8
_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Verification:
    """What mlx-lm made of the artefact, against the model it was made from.

    ``answer`` is what ``mlx_lm.generate`` wrote for the first prompt.
    """

    reader: str
    tensors: int
    tensors_equal: bool | None
    kl_mean: float
    top1_agreement: float
    answer: str


def verify(
    out: Path,
    reference: LoadedModel,
    data: Sequence[TokenizedExample],
    *,
    max_kl: float,
    expected: Mapping[str, Any] | None = None,
) -> Verification:
    """Open ``out`` with ``mlx_lm.load`` and compare it with ``reference`` on ``data``.

    ``expected``: tensors that must be there bit for bit. Raises ModelError when they are not, or
    the mean KL is beyond ``max_kl``.
    """
    model, tokenizer = stock.reopen(out)
    tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
    if expected is not None:
        _require_equal(tensors, expected, out)
    # What was read is mlx-lm's; on a CPU its quantized kernels would take a minute to compare it.
    compute.apply(model)
    rows = data[:_ROWS]
    measured = fidelity(reference.model, model, rows)
    if measured.kl_mean > max_kl:
        raise ModelError(
            f"read back by mlx-lm it is {measured.kl_mean:.2g} nats per token from its source",
            where=str(out),
        )
    first = rows[0]
    learned = int((first.weights > 0).argmax())
    answer = stock.greedy(model, tokenizer, first.input_ids[:learned].tolist(), _ANSWER_TOKENS)
    return Verification(
        f"mlx-lm {stock.mlx_lm_version()}",
        len(tensors),
        None if expected is None else True,
        measured.kl_mean,
        measured.top1_agreement,
        answer,
    )


def require_same_codes(out: Path, raw: nn.Module, layers: Mapping[str, Any]) -> None:
    """Raise ModelError unless ``out`` has the tensors of its base ``raw`` bit for bit, but for the
    scales and biases of the adapted ``layers``, and the weights of adapted norms."""
    moved = {f"{path}.{name}" for path in layers for name in ("scales", "biases")}
    moved |= {f"{path}.weight" for path, m in layers.items() if isinstance(m, GridNorm)}
    before, after = (
        {n: t for n, t in tree_flatten(model.parameters()) if n not in moved}
        for model in (raw, base.read(out)[0])
    )
    _require_equal(after, before, out)


def _require_equal(tensors: Mapping[str, Any], expected: Mapping[str, Any], out: Path) -> None:
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise ModelError(f"tensor {odd} is missing or should not be there", where=str(out))
    for name, tensor in tensors.items():
        wanted = expected[name]
        same = tensor.dtype == wanted.dtype and tensor.shape == wanted.shape
        # Compared as bits: a NaN is equal to itself, and 0 is not -0.
        if not same or not mx.array_equal(tensor.view(mx.uint8), wanted.view(mx.uint8)).item():
            raise ModelError(f"tensor {name} changed on its way to disk", where=str(out))
