"""Merge an adapter into one model directory, and measure what the merge lost.

The ways to merge are tried from the smallest result to the largest; the first whose KL divergence
from base + adapter is within the limit is the one written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_itune import __version__
from mlx_itune.dataset.render import TokenizedExample
from mlx_itune.dataset.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import quantization_config, refuse_same, write_model
from mlx_itune.export.card import model_card
from mlx_itune.export.fidelity import Fidelity, fidelity
from mlx_itune.export.merge import merge, ways
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import staged_directory, storage_errors
from mlx_itune.model import adapter as adapters
from mlx_itune.model import base, lora, stock

DEFAULT_MAX_KL = 1e-3

Observe = Callable[[str], None]


@dataclass(frozen=True)
class Tried:
    """One way and how far its result was from base + adapter."""

    method: str
    bits: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float


@dataclass(frozen=True)
class FuseResult:
    """The model written, the way taken, its fidelity, and every way that was tried."""

    out: str
    bits: int
    method: str
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int
    tried: tuple[Tried, ...]


def fuse(
    model: str,
    adapter_dir: Path,
    out: Path,
    *,
    data: Sequence[TokenizedExample],
    tokenizer: ChatTokenizer,
    bits: int | None = None,
    max_kl: float = DEFAULT_MAX_KL,
    allow_lossy: bool = False,
    compute: str = "auto",
    offline: bool = False,
    overwrite: bool = False,
    observe: Observe | None = None,
) -> FuseResult:
    """Write ``model`` + adapter as one MLX directory ``out``; fidelity is measured on ``data``.

    ``max_kl`` bounds the mean KL(base + adapter || fused) in nats per learned token. Raises
    ModelError when no way is within it (unless ``allow_lossy``) or the adapter is another base's,
    UsageError when ``out`` is the base, StorageError when it exists or cannot be written.
    """
    source = base.resolve(model, offline=offline)
    refuse_same(source, out)
    refuse_same(adapter_dir, out)
    reference = base.load(model, compute=compute, offline=offline)
    adapter = adapters.load(adapter_dir)
    adapters.apply(reference, adapter)
    reference.model.eval()
    deltas = {path: lora.merge_delta(layer) for path, layer in lora.adapted(reference.model)}
    raw, config = stock.read(source)
    tried: list[Tried] = []
    candidates = ways(raw, bits)
    for way in candidates:
        if observe:
            observe(way.name)
        tensors, layers = merge(raw, deltas, way)
        quantization = quantization_config(config.get("quantization"), layers)
        try:
            with staged_directory(out, overwrite=overwrite) as stage:
                write_model(stage, source, tensors, quantization, tokenizer)
                # Measured on the very files that ship, read back.
                fused = base.load(str(stage), compute=compute).model
                measured = fidelity(reference.model, fused, data)
                tried.append(Tried(way.name, way.bits, *_numbers(measured)))
                lossy = allow_lossy and way == candidates[-1]
                if measured.kl_mean > max_kl and not lossy:
                    raise _TooFar
                result = FuseResult(
                    str(out), way.bits, way.name, *_numbers(measured), measured.tokens, tuple(tried)
                )
                _write_papers(stage, reference.id, adapter.provenance, result)
            return result
        except _TooFar:
            continue
    raise _refusal(out, tried, max_kl, forced=bits is not None)


class _TooFar(Exception):
    """This way lost too much; its staged directory goes, the next way is tried."""


def _numbers(measured: Fidelity) -> tuple[float, float, float]:
    return measured.kl_mean, measured.kl_p99, measured.top1_agreement


def _refusal(out: Path, tried: Sequence[Tried], max_kl: float, *, forced: bool) -> ModelError:
    best = min(tried, key=lambda t: t.kl_mean)
    way_out = "leave --bits out, " if forced else ""
    return ModelError(
        f"not written: {best.method} is {best.kl_mean:.2g} nats per token from base + adapter, "
        f"beyond --max-kl {max_kl:g}",
        where=str(out),
        hint=f"{way_out}raise --max-kl or pass --allow-lossy",
    )


def _write_papers(
    stage: Path, base_id: str, provenance: Mapping[str, Any], result: FuseResult
) -> None:
    """The model card and provenance.json: where it comes from, what the merge lost."""
    record = asdict(result)
    del record["out"]
    papers = {
        **provenance,
        "fuse": {**record, "mlx_itune": __version__, "mlx_lm": stock.mlx_lm_version()},
    }
    text = json.dumps(papers, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with storage_errors(stage):
        (stage / "provenance.json").write_text(text, encoding="utf-8")
        (stage / "README.md").write_text(model_card(base_id, record), encoding="utf-8")
