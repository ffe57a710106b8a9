"""How far is one model from another, measured; and a written one read back by what will run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.kit.errors import DataError, ModelError
from mlx_itune.model.adapters.grid import GridNorm
from mlx_itune.model.engine import compute
from mlx_itune.model.engine.loss import learned_logits, log_sum_exp, weighted_nll
from mlx_itune.model.engine.probe import choose_nll
from mlx_itune.model.loading import base
from mlx_itune.model.loading.base import LoadedModel

# Log-probabilities of the reference that are kept between comparisons; further rows are run again.
_KEPT_BYTES = 1 << 29
# A comparison that cannot come within the limit any more goes on to so many tokens.
_ENOUGH_TOKENS = 1024
# A few rows show a wrong file as well as many.
_READ_BACK_ROWS = 8
_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Fidelity:
    """KL(reference || other) in nats per token, and how often both prefer the same token."""

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int


class Reference:
    """A model that others are compared with, at every learned position of ``examples``. Raises
    DataError when there is no learned token."""

    def __init__(self, model: nn.Module, examples: Sequence[TokenizedExample]) -> None:
        self._model = model
        self._rows = [
            (example.input_ids[None], example.weights[None])
            for example in examples
            if example.weights[1:].any()
        ]
        self.rows = len(self._rows)
        self.tokens = sum(int(np.count_nonzero(weights[:, 1:])) for _, weights in self._rows)
        if not self.tokens:
            what = "no learned token to measure fidelity on"
            raise DataError(what, hint="give --data with answers")
        self._kept: dict[int, Any] = {}
        self._kept_bytes = 0
        self._head_is_exact = choose_nll(model) is weighted_nll

    def compare(self, other: nn.Module, *, limit: float | None = None) -> Fidelity:
        """``other``'s distance. It is measured on all rows or, once no rest of them could bring
        the mean within ``limit`` (no divergence is negative), on enough to say how far it is."""
        divergences: list[Any] = []
        agreed: list[Any] = []
        total, tokens = 0.0, 0
        for number, row in enumerate(self._rows):
            p, q = self._own(number), self._log_probabilities(other, *row)
            kl = np.array(_divergence(p, q), dtype=np.float64)
            divergences.append(kl)
            agreed.append(np.array(mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)))
            total, tokens = total + float(kl.sum()), tokens + kl.size
            if limit is not None and tokens >= _ENOUGH_TOKENS and total > limit * self.tokens:
                break
        per_token = np.concatenate(divergences)
        return Fidelity(
            kl_mean=float(per_token.mean()),
            kl_p99=float(np.quantile(per_token, 0.99)),
            top1_agreement=float(np.concatenate(agreed).mean()),
            tokens=tokens,
        )

    def _own(self, number: int) -> Any:
        if number in self._kept:
            return self._kept[number]
        p = self._log_probabilities(self._model, *self._rows[number])
        if self._kept_bytes + p.nbytes <= _KEPT_BYTES:
            mx.eval(p)
            self._kept[number] = p
            self._kept_bytes += p.nbytes
        return p

    def _log_probabilities(self, model: nn.Module, input_ids: Any, weights: Any) -> Any:
        """Log-probabilities (N, V) float32 at the N learned positions of one row."""
        if self._head_is_exact:
            logits = learned_logits(model, input_ids, weights)[0]
        else:
            # The head cannot be told from the rest: all positions are computed.
            learned = mx.array(np.flatnonzero(weights[0, 1:]))
            logits = model(mx.array(input_ids[:, :-1])).astype(mx.float32)[0, learned]
        return logits - log_sum_exp(logits)[:, None]


def _divergence(p: Any, q: Any) -> Any:
    """KL (N,) of log-probabilities p and q (N, V), exact for nearly equal distributions too. Both
    sum to one, so KL = sum of e^p (e^(q - p) - 1 - (q - p)): no term is negative and none cancels
    another, where the textbook sum of e^p (p - q) drowns in float32 rounding."""
    chance, gap = mx.exp(p), q - p
    near = mx.abs(gap) < 1
    close = chance * (mx.expm1(mx.where(near, gap, 0)) - gap)
    far = mx.exp(q) - chance - chance * gap
    return mx.where(near, close, far).sum(axis=-1)


@dataclass(frozen=True)
class Verification:
    """What mlx-lm made of the artefact, against the model it was made from. ``answer`` is what
    ``mlx_lm.generate`` wrote for the first prompt."""

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
    the mean KL is beyond ``max_kl``."""
    model, tokenizer = base.reopen(out)
    tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
    if expected is not None:
        _require_equal(tensors, expected, out)
    # What was read is mlx-lm's; on a CPU its quantized kernels would take a minute to compare it.
    compute.apply(model)
    rows = data[:_READ_BACK_ROWS]
    measured = Reference(reference.model, rows).compare(model)
    if measured.kl_mean > max_kl:
        what = f"read back by mlx-lm it is {measured.kl_mean:.2g} nats per token from its source"
        raise ModelError(what, where=str(out))
    prompt = rows[0].input_ids[: int((rows[0].weights > 0).argmax())]
    return Verification(
        f"mlx-lm {base.mlx_lm_version()}",
        len(tensors),
        None if expected is None else True,
        measured.kl_mean,
        measured.top1_agreement,
        base.greedy(model, tokenizer, prompt.tolist(), _ANSWER_TOKENS),
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
