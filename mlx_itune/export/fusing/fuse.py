"""Merge an adapter into one model directory, and measure what the merge lost.

The ways to merge are tried from the smallest result to the largest; the first whose KL divergence
from base + adapter is within the limit is the one written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune import __version__
from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import (
    quantization_config,
    refuse_same,
    require_finite,
    write_model,
)
from mlx_itune.export.fusing.calibrate import Calibration
from mlx_itune.export.fusing.fidelity import Reference
from mlx_itune.export.fusing.merge import merge
from mlx_itune.export.fusing.merge_ways import Way, on_the_grid, ways
from mlx_itune.export.shipping.card import card_licence, model_card
from mlx_itune.export.shipping.verify import require_same_codes
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import refuse_occupied, staged_directory, storage_errors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base
from mlx_itune.model.loading import mlx_lm_models as stock
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.loading.fingerprint import weight_files

DEFAULT_MAX_KL = 1e-3
# Of rows that were given for measuring only, the part that calibrates instead; never the same ones.
_CALIBRATING_SHARE = 3

Observe = Callable[[str], None]
# A model's mean score on a task; None where nothing can be scored.
Score = Callable[[LoadedModel], float | None]


@dataclass(frozen=True)
class Tried:
    """One way, how large its weights are, and how far it was from base + adapter.

    ``tokens``: measured on so many; fewer than of the way written where it was clearly too far.
    """

    method: str
    way: str
    bits: int
    bytes: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int
    score: float | None


@dataclass(frozen=True)
class FuseResult:
    """The model written, the way taken, its fidelity, and every way that was tried.

    ``bytes`` and ``base_bytes`` are of the weights; ``score_reference`` is base + adapter's task
    score, ``score_fused`` the written model's.
    """

    out: str
    bits: int
    method: str
    way: str
    bytes: int
    base_bytes: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    max_kl: float
    tokens: int
    rows: int
    calibration_rows: int
    score_reference: float | None
    score_fused: float | None
    tried: tuple[Tried, ...]


def fuse(
    model: str,
    adapter_dir: Path,
    out: Path,
    *,
    data: Sequence[TokenizedExample],
    tokenizer: ChatTokenizer,
    calibration: Sequence[TokenizedExample] | None = None,
    score: Score | None = None,
    way: str = "auto",
    bits: int | None = None,
    max_kl: float = DEFAULT_MAX_KL,
    allow_lossy: bool = False,
    every: bool = False,
    compute: str = "auto",
    offline: bool = False,
    overwrite: bool = False,
    observe: Observe | None = None,
) -> FuseResult:
    """Write ``model`` + adapter as one MLX directory ``out``; fidelity is measured on ``data``.

    ``calibration``: rows to compensate rounding errors on, none of them measured on; without any
    a third of ``data`` is set aside where a way needs it. ``way``: one of ``ways.CHOICES``.
    ``max_kl`` bounds the mean KL(base + adapter || fused) in nats per learned token. ``every``
    measures and scores all ways, for the table. Raises ModelError when no way is within the limit
    (unless ``allow_lossy``) or the adapter is another base's, UsageError when ``out`` is the base,
    StorageError when it exists or cannot be written.
    """
    source = base.resolve(model, offline=offline)
    refuse_same(source, out)
    refuse_same(adapter_dir, out)
    refuse_occupied(out, overwrite)
    reference = base.load(model, compute=compute, offline=offline)
    adapter = adapters.load(adapter_dir)
    adapter.require_template(tokenizer.name, tokenizer.template_sha256)
    adapters.apply(reference, adapter)
    reference.model.eval()
    layers: dict[str, nn.Module] = dict(lora.adapted(reference.model))
    raw, config = stock.read(source)
    for name, tensor in tree_flatten(raw.parameters()):
        require_finite(name, tensor)
    # Where an exact merge comes first, all rows are there to measure it on.
    splits = len(data) > 1 and (not on_the_grid(layers) or way == "compensated" or every)
    calibrated = splits if calibration is None else bool(calibration)
    plan = ways(raw, layers, choice=way, bits=bits, calibrated=calibrated, every=every)
    if calibration is None and any(one.compensated for one in plan):
        data, calibration = _set_aside(data)
    compensating = [] if calibration is None else calibration
    job = _Job(
        reference=reference,
        held_out=Reference(reference.model, data),
        calibration=Calibration(reference.model, layers, compensating),
        provenance=adapter.provenance,
        source=source,
        raw=raw,
        config=config,
        layers=layers,
        tokenizer=tokenizer,
        out=out,
        max_kl=max_kl,
        compute=compute,
        overwrite=overwrite,
        score=score,
        score_reference=score(reference) if score else None,
        observe=observe or (lambda _: None),
    )
    tried: list[Tried] = []
    if every:
        for one in plan:
            job.attempt(one, tried, limit=None, keep=False)
        within = [n for n, t in enumerate(tried) if t.kl_mean <= max_kl]
        if not within and not allow_lossy:
            raise _refusal(out, tried, max_kl, forced=way != "auto" or bits is not None)
        chosen = min(within or [len(plan) - 1], key=lambda n: tried[n].bytes)
        # Written again, and what is written is measured again.
        plan, tried = [plan[chosen]], tried[:chosen] + tried[chosen + 1 :]
    for one in plan:
        lossy = allow_lossy and one == plan[-1]
        result = job.attempt(one, tried, limit=math.inf if lossy else max_kl, keep=True)
        if result is not None:
            return result
    raise _refusal(out, tried, max_kl, forced=way != "auto" or bits is not None)


class _TooFar(Exception):
    """This way lost too much; its staged directory goes, the next way is tried."""


@dataclass(frozen=True)
class _Job:
    """What all attempts at one fuse share."""

    reference: LoadedModel
    held_out: Reference
    calibration: Calibration
    provenance: Mapping[str, Any]
    source: Path
    raw: nn.Module
    config: Mapping[str, Any]
    layers: Mapping[str, nn.Module]
    tokenizer: ChatTokenizer
    out: Path
    max_kl: float
    compute: str
    overwrite: bool
    score: Score | None
    score_reference: float | None
    observe: Observe

    def attempt(
        self, way: Way, tried: list[Tried], *, limit: float | None, keep: bool
    ) -> FuseResult | None:
        """Write one way and measure it; it stays if ``keep`` and its KL is within ``limit``."""
        self.observe(way.name)
        tensors, layers = merge(self.raw, self.layers, way, self.calibration)
        quantization = quantization_config(self.config.get("quantization"), layers)
        try:
            with staged_directory(self.out, overwrite=self.overwrite) as stage:
                write_model(stage, self.source, tensors, quantization, self.tokenizer)
                # On disk now; another model is about to be loaded.
                del tensors
                if way.kind == "exact" and way.dtype is None:
                    require_same_codes(stage, self.raw, self.layers)
                # Measured on the very files that ship, read back.
                fused = base.load(str(stage), compute=self.compute)
                measured = self.held_out.compare(fused.model, limit=limit)
                # A divergence that is no number is within no limit.
                passed = limit is None or measured.kl_mean <= limit
                found = Tried(
                    method=way.name,
                    way=way.choice,
                    bits=way.bits,
                    bytes=_weight_bytes(stage),
                    kl_mean=measured.kl_mean,
                    kl_p99=measured.kl_p99,
                    top1_agreement=measured.top1_agreement,
                    tokens=measured.tokens,
                    score=self.score(fused) if self.score and passed else None,
                )
                tried.append(found)
                if not (keep and passed):
                    raise _TooFar
                result = self._result(found, tried)
                _write_papers(stage, self, result)
            return result
        except _TooFar:
            return None

    def _result(self, taken: Tried, tried: Sequence[Tried]) -> FuseResult:
        return FuseResult(
            out=str(self.out),
            bits=taken.bits,
            method=taken.method,
            way=taken.way,
            bytes=taken.bytes,
            base_bytes=_weight_bytes(self.source),
            kl_mean=taken.kl_mean,
            kl_p99=taken.kl_p99,
            top1_agreement=taken.top1_agreement,
            max_kl=self.max_kl,
            tokens=taken.tokens,
            rows=self.held_out.rows,
            calibration_rows=self.calibration.rows
            if any(t.way == "compensated" for t in tried)
            else 0,
            score_reference=self.score_reference,
            score_fused=taken.score,
            tried=tuple(sorted(tried, key=lambda t: t.bytes)),
        )


def _set_aside(
    rows: Sequence[TokenizedExample],
) -> tuple[Sequence[TokenizedExample], Sequence[TokenizedExample]]:
    """(to measure on, to calibrate on): every third row is for calibration."""
    kept = [row for n, row in enumerate(rows) if n % _CALIBRATING_SHARE != 1]
    return kept, rows[1::_CALIBRATING_SHARE]


def _weight_bytes(path: Path) -> int:
    with storage_errors(path):
        return sum(file.stat().st_size for file in weight_files(path))


def _refusal(out: Path, tried: Sequence[Tried], max_kl: float, *, forced: bool) -> ModelError:
    best = min(tried, key=lambda t: t.kl_mean)
    way_out = "leave --bits and --way out, " if forced else ""
    return ModelError(
        f"not written: {best.method} is {best.kl_mean:.2g} nats per token from base + adapter, "
        f"beyond --max-kl {max_kl:g}",
        where=str(out),
        hint=f"{way_out}raise --max-kl or pass --allow-lossy",
    )


def _write_papers(stage: Path, job: _Job, result: FuseResult) -> None:
    """The model card and provenance.json: where it comes from, what the merge lost."""
    # JSON knows no NaN, which a way that was tried may have given.
    record = json.loads(json.dumps(asdict(result)), parse_constant=lambda _: None)
    del record["out"]
    papers = {
        **job.provenance,
        "fuse": {**record, "mlx_itune": __version__, "mlx_lm": stock.mlx_lm_version()},
    }
    text = json.dumps(papers, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    card = model_card(job.reference.id, record, card_licence(job.source))
    with storage_errors(stage):
        (stage / "provenance.json").write_text(text, encoding="utf-8")
        (stage / "README.md").write_text(card, encoding="utf-8")
