"""Merge an adapter into one model directory in the smallest way that is near base + adapter."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx.utils import tree_flatten

from mlx_itune import __version__
from mlx_itune.dataset.importing.inputs import licence_in_card
from mlx_itune.export.artifact import (
    quantization_config,
    refuse_same,
    require_finite,
    sealed,
    write_model,
)
from mlx_itune.export.cards import card
from mlx_itune.export.fusing.compensate import Calibration
from mlx_itune.export.fusing.fidelity import Fidelity, Reference, require_same_codes
from mlx_itune.export.fusing.merge import Way, merge, on_the_grid, ways
from mlx_itune.export.request import Observe, Request
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import refuse_occupied, storage_errors
from mlx_itune.kit.json_files import canonical, plain, write_object
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.loading.fingerprint import weight_files

# Of rows that were given for measuring only, the part that calibrates instead; never the same ones.
_CALIBRATING_SHARE = 3

# Looks at the written directory before it is sealed: (it, base + adapter, its mean KL from that).
Check = Callable[[Path, LoadedModel, float], None]


@dataclass(frozen=True)
class Measured(Fidelity):
    """One way, how large its weights are, and how far it was from base + adapter. ``tokens``:
    measured on so many; fewer than of the way written where it was clearly too far."""

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
    """The model written, the way taken, its fidelity, and every way that was tried. ``bytes`` and
    ``base_bytes`` are of the weights; ``score_reference`` is base + adapter's task score,
    ``score_fused`` the written model's;
    ``rows_from`` says where the measured rows are from."""

    out: str
    base_bytes: int
    max_kl: float
    rows: int
    rows_from: str
    calibration_rows: int
    score_reference: float | None
    score_fused: float | None
    tried: tuple[Tried, ...]


def fuse(
    request: Request, observe: Observe = lambda _: None, check: Check | None = None
) -> FuseResult:
    """Write the model and its adapter as one MLX directory; fidelity is measured on the rows.
    Raises ModelError when no way is within the limit (unless ``allow_lossy``) or the adapter is
    another base's, UsageError when ``out`` is the base, StorageError, and what ``check`` raises."""
    job = _Job(request, observe, check)
    plan, tried = job.plan, job.tried
    if request.every:
        for way in plan:
            job.attempt(way, limit=None, keep=False)
        within = [n for n, t in enumerate(tried) if t.kl_mean <= request.max_kl]
        if not within and not request.allow_lossy:
            raise job.refusal()
        chosen = min(within or [len(plan) - 1], key=lambda n: tried[n].bytes)
        # Written again, and what is written is measured again.
        plan = [plan[chosen]]
        del tried[chosen]
    for way in plan:
        lossy = request.allow_lossy and way == plan[-1]
        result = job.attempt(way, limit=math.inf if lossy else request.max_kl, keep=True)
        if result is not None:
            return result
    raise job.refusal()


class _TooFar(Exception):
    """This way lost too much; its staged directory goes, the next way is tried."""


class _Job:
    """Base + adapter, the ways to try, and those that were."""

    def __init__(self, request: Request, observe: Observe, check: Check | None) -> None:
        assert request.adapter is not None
        self.request, self.observe, self.check = request, observe, check
        self.source = base.resolve(request.model)
        refuse_same(self.source, request.out)
        refuse_same(request.adapter, request.out)
        refuse_occupied(request.out)
        self.reference = base.load(request.model, compute=request.compute)
        self.adapter = request.trained()
        adapters.apply(self.reference, self.adapter)
        self.reference.model.eval()
        self.layers = dict(lora.adapted(self.reference.model))
        self.raw, self.config = base.read(self.source)
        for name, tensor in tree_flatten(self.raw.parameters()):
            require_finite(name, tensor)
        measured, spare = request.rows.measured, request.rows.calibration
        way, every = request.way or "auto", request.every
        # Where an exact merge comes first, all rows are there to measure it on.
        exact_first = on_the_grid(self.layers) and way != "compensated" and not every
        calibrated = bool(spare) or (spare is None and len(measured) > 1 and not exact_first)
        self.plan = ways(
            self.raw, self.layers, way, request.bits, calibrated=calibrated, every=every
        )
        if spare is None and any(one.compensated for one in self.plan):
            spare = measured[1::_CALIBRATING_SHARE]
            measured = [row for n, row in enumerate(measured) if n % _CALIBRATING_SHARE != 1]
        self.held_out = Reference(self.reference.model, measured)
        self.calibration = Calibration(self.reference.model, self.layers, spare or ())
        self.score_reference = request.score(self.reference) if request.score else None
        self.tried: list[Tried] = []

    def attempt(self, way: Way, *, limit: float | None, keep: bool) -> FuseResult | None:
        """Write one way and measure it; it stays if ``keep`` and its KL is within ``limit``."""
        self.observe(way.name)
        request = self.request
        tensors, layers = merge(self.raw, self.layers, way, self.calibration)
        quantization = quantization_config(self.config.get("quantization"), layers)
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())
        with contextlib.suppress(_TooFar), sealed(request.out, size_bytes, "the model") as stage:
            write_model(stage, self.source, tensors, quantization, request.tokenizer)
            # On disk now; another model is about to be loaded.
            del tensors
            if way.kind == "exact" and way.dtype is None:
                require_same_codes(stage, self.raw, self.layers)
            # The very files that ship, read back.
            fused = base.load(str(stage), compute=request.compute)
            distance = self.held_out.compare(fused.model, limit=limit)
            # A divergence that is no number is within no limit.
            passed = limit is None or distance.kl_mean <= limit
            score = request.score(fused) if request.score and passed else None
            del fused
            measured = {
                **vars(distance),
                "method": way.name,
                "way": way.choice,
                "bits": way.bits,
                "bytes": _weight_bytes(stage),
            }
            self.tried.append(Tried(**measured, score=score))
            if not (keep and passed):
                raise _TooFar
            compensated = any(t.way == "compensated" for t in self.tried)
            result = FuseResult(
                **measured,
                out=str(request.out),
                base_bytes=_weight_bytes(self.source),
                max_kl=request.max_kl,
                rows=self.held_out.rows,
                rows_from=request.rows.source,
                calibration_rows=len(self.calibration.rows) if compensated else 0,
                score_reference=self.score_reference,
                score_fused=score,
                tried=tuple(sorted(self.tried, key=lambda t: t.bytes)),
            )
            self._write_papers(stage, result)
            if self.check is not None:
                self.check(stage, self.reference, result.kl_mean)
            return result
        return None

    def _write_papers(self, stage: Path, result: FuseResult) -> None:
        """The model card and provenance.json: where it comes from, what the merge lost."""
        record = plain(result)
        del record["out"], record["rows_from"]
        versions = {"mlx_itune": __version__, "mlx_lm": base.mlx_lm_version()}
        papers = canonical({**self.adapter.provenance, "fuse": {**record, **versions}})
        write_object(stage / "provenance.json", json.loads(papers))
        licence, own = licence_in_card(self.source), self.reference.id
        told = card("mlx", own, f"{own}, tuned", fused=record, licence=licence)
        (stage / "README.md").write_text(told, encoding="utf-8")

    def refusal(self) -> ModelError:
        best = min(self.tried, key=lambda t: t.kl_mean)
        forced = self.request.bits is not None or self.request.way not in (None, "auto")
        return ModelError(
            f"not written: {best.method} is {best.kl_mean:.2g} nats per token from base + adapter, "
            f"beyond --max-kl {self.request.max_kl:g}",
            where=str(self.request.out),
            hint=f"{'leave --bits and --way out, ' if forced else ''}raise --max-kl or pass "
            "--allow-lossy",
        )


def _weight_bytes(path: Path) -> int:
    with storage_errors(path):
        return sum(file.stat().st_size for file in weight_files(path))
