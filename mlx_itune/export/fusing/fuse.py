"""Merge an adapter into one model directory, and measure what the merge lost.

The ways to merge are tried from the smallest result to the largest; the first whose KL divergence
from base + adapter is within the limit is the one written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune import __version__
from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.export.artifact import (
    quantization_config,
    refuse_same,
    require_finite,
    sealed,
    write_model,
)
from mlx_itune.export.cards import licence_in_card, model_card
from mlx_itune.export.fusing.calibrate import Calibration
from mlx_itune.export.fusing.fidelity import Fidelity, Reference
from mlx_itune.export.fusing.merge import merge
from mlx_itune.export.fusing.merge_ways import Way, on_the_grid, ways
from mlx_itune.export.fusing.read_back import require_same_codes
from mlx_itune.export.request import Observe, Request, unobserved
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import refuse_occupied, storage_errors
from mlx_itune.kit.json_files import canonical, plain, write_object
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base
from mlx_itune.model.loading import mlx_lm_models as stock
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.loading.fingerprint import weight_files

# Of rows that were given for measuring only, the part that calibrates instead; never the same ones.
_CALIBRATING_SHARE = 3

# Looks at the written directory before it is sealed: (it, base + adapter, its mean KL from that).
Check = Callable[[Path, LoadedModel, float], None]


@dataclass(frozen=True)
class Measured(Fidelity):
    """One way, how large its weights are, and how far it was from base + adapter.

    ``tokens``: measured on so many; fewer than of the way written where it was clearly too far.
    """

    method: str
    way: str
    bits: int
    bytes: int


@dataclass(frozen=True)
class Tried(Measured):
    """A way that was tried; ``score`` is the model's on the task."""

    score: float | None


@dataclass(frozen=True)
class FuseResult(Measured):
    """The model written, the way taken, its fidelity, and every way that was tried.

    ``bytes`` and ``base_bytes`` are of the weights; ``score_reference`` is base + adapter's task
    score, ``score_fused`` the written model's.
    """

    out: str
    base_bytes: int
    max_kl: float
    rows: int
    calibration_rows: int
    score_reference: float | None
    score_fused: float | None
    tried: tuple[Tried, ...]


def fuse(request: Request, observe: Observe = unobserved, check: Check | None = None) -> FuseResult:
    """Write the model and its adapter as one MLX directory; fidelity is measured on the rows.

    Where a way needs rows to calibrate on and there are none, a third of those measured on is set
    aside. Raises ModelError when no way is within the limit (unless ``allow_lossy``) or the adapter
    is another base's, UsageError when ``out`` is the base, StorageError when it exists or cannot be
    written, and what ``check`` raises.
    """
    assert request.adapter is not None
    source, out = base.resolve(request.model), request.out
    refuse_same(source, out)
    refuse_same(request.adapter, out)
    refuse_occupied(out)
    reference = base.load(request.model, compute=request.compute)
    adapter = adapters.load(request.adapter, any_base=request.allow_other_base)
    adapter.require_template(request.tokenizer.name, request.tokenizer.template_sha256)
    adapters.apply(reference, adapter)
    reference.model.eval()
    layers = dict(lora.adapted(reference.model))
    raw, config = base.read(source)
    for name, tensor in tree_flatten(raw.parameters()):
        require_finite(name, tensor)
    data, calibration, way = request.rows.measured, request.rows.calibration, request.way or "auto"
    # Where an exact merge comes first, all rows are there to measure it on.
    exact_first = on_the_grid(layers) and way != "compensated" and not request.every
    calibrated = bool(calibration) or (calibration is None and len(data) > 1 and not exact_first)
    plan = ways(
        raw, layers, choice=way, bits=request.bits, calibrated=calibrated, every=request.every
    )
    if calibration is None and any(one.compensated for one in plan):
        data, calibration = _set_aside(data)
    job = _Job(
        request=request,
        source=source,
        reference=reference,
        provenance=adapter.provenance,
        held_out=Reference(reference.model, data),
        calibration=Calibration(reference.model, layers, calibration or ()),
        raw=raw,
        config=config,
        layers=layers,
        score_reference=request.score(reference) if request.score else None,
        observe=observe,
        check=check,
    )
    tried: list[Tried] = []
    if request.every:
        for one in plan:
            job.attempt(one, tried, limit=None, keep=False)
        within = [n for n, t in enumerate(tried) if t.kl_mean <= request.max_kl]
        if not within and not request.allow_lossy:
            raise _refusal(request, tried)
        chosen = min(within or [len(plan) - 1], key=lambda n: tried[n].bytes)
        # Written again, and what is written is measured again.
        plan, tried = [plan[chosen]], tried[:chosen] + tried[chosen + 1 :]
    for one in plan:
        lossy = request.allow_lossy and one == plan[-1]
        result = job.attempt(one, tried, limit=math.inf if lossy else request.max_kl, keep=True)
        if result is not None:
            return result
    raise _refusal(request, tried)


class _TooFar(Exception):
    """This way lost too much; its staged directory goes, the next way is tried."""


@dataclass(frozen=True)
class _Job:
    """What all attempts at one fuse share."""

    request: Request
    source: Path
    reference: LoadedModel
    provenance: Mapping[str, Any]
    held_out: Reference
    calibration: Calibration
    raw: nn.Module
    config: Mapping[str, Any]
    layers: Mapping[str, nn.Module]
    score_reference: float | None
    observe: Observe
    check: Check | None

    def attempt(
        self, way: Way, tried: list[Tried], *, limit: float | None, keep: bool
    ) -> FuseResult | None:
        """Write one way and measure it; it stays if ``keep`` and its KL is within ``limit``."""
        self.observe(way.name)
        tensors, layers = merge(self.raw, self.layers, way, self.calibration)
        quantization = quantization_config(self.config.get("quantization"), layers)
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())
        try:
            with sealed(self.request.out, size_bytes, "the model") as stage:
                write_model(stage, self.source, tensors, quantization, self.request.tokenizer)
                # On disk now; another model is about to be loaded.
                del tensors
                if way.kind == "exact" and way.dtype is None:
                    require_same_codes(stage, self.raw, self.layers)
                found, passed = self._measured(stage, way, limit)
                tried.append(found)
                if not (keep and passed):
                    raise _TooFar
                result = self._result(found, tried)
                self._write_papers(stage, result)
                if self.check is not None:
                    self.check(stage, self.reference, result.kl_mean)
            return result
        except _TooFar:
            return None

    def _measured(self, stage: Path, way: Way, limit: float | None) -> tuple[Tried, bool]:
        """The very files that ship, read back; and whether they are within the limit."""
        fused = base.load(str(stage), compute=self.request.compute)
        measured = self.held_out.compare(fused.model, limit=limit)
        # A divergence that is no number is within no limit.
        passed = limit is None or measured.kl_mean <= limit
        score = self.request.score(fused) if self.request.score and passed else None
        found = Tried(
            **vars(measured),
            method=way.name,
            way=way.choice,
            bits=way.bits,
            bytes=_weight_bytes(stage),
            score=score,
        )
        return found, passed

    def _result(self, taken: Tried, tried: Sequence[Tried]) -> FuseResult:
        compensated = any(t.way == "compensated" for t in tried)
        measured = {name: value for name, value in vars(taken).items() if name != "score"}
        return FuseResult(
            **measured,
            out=str(self.request.out),
            base_bytes=_weight_bytes(self.source),
            max_kl=self.request.max_kl,
            rows=self.held_out.rows,
            calibration_rows=self.calibration.rows if compensated else 0,
            score_reference=self.score_reference,
            score_fused=taken.score,
            tried=tuple(sorted(tried, key=lambda t: t.bytes)),
        )

    def _write_papers(self, stage: Path, result: FuseResult) -> None:
        """The model card and provenance.json: where it comes from, what the merge lost."""
        record = plain(result)
        del record["out"]
        versions = {"mlx_itune": __version__, "mlx_lm": stock.mlx_lm_version()}
        papers = canonical({**self.provenance, "fuse": {**record, **versions}})
        write_object(stage / "provenance.json", json.loads(papers))
        card = model_card(self.reference.id, record, licence_in_card(self.source))
        (stage / "README.md").write_text(card, encoding="utf-8")


def _set_aside(
    rows: Sequence[TokenizedExample],
) -> tuple[Sequence[TokenizedExample], Sequence[TokenizedExample]]:
    """(to measure on, to calibrate on): every third row is for calibration."""
    kept = [row for n, row in enumerate(rows) if n % _CALIBRATING_SHARE != 1]
    return kept, rows[1::_CALIBRATING_SHARE]


def _weight_bytes(path: Path) -> int:
    with storage_errors(path):
        return sum(file.stat().st_size for file in weight_files(path))


def _refusal(request: Request, tried: Sequence[Tried]) -> ModelError:
    best = min(tried, key=lambda t: t.kl_mean)
    forced = request.bits is not None or request.way not in (None, "auto")
    return ModelError(
        f"not written: {best.method} is {best.kl_mean:.2g} nats per token from base + adapter, "
        f"beyond --max-kl {request.max_kl:g}",
        where=str(request.out),
        hint=f"{'leave --bits and --way out, ' if forced else ''}raise --max-kl or pass "
        "--allow-lossy",
    )
