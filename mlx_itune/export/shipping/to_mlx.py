"""Export to MLX: a directory that mlx-lm, mlx-swift-lm and LM Studio open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx.utils import tree_flatten

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import (
    Artifact,
    describe,
    quantization_config,
    refuse_same,
    write_model,
)
from mlx_itune.export.fusing.fuse import DEFAULT_MAX_KL, FuseResult, Observe, Score, fuse
from mlx_itune.export.fusing.merge import merge
from mlx_itune.export.fusing.merge_ways import Way
from mlx_itune.export.shipping.card import model_card
from mlx_itune.export.shipping.verify import Verification, verify
from mlx_itune.kit.files import remove_directory, staged_directory, storage_errors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.loading import base
from mlx_itune.model.loading import mlx_lm_models as stock

# mlx-lm's kernels round otherwise than the float32 path they are compared with.
_READ_BACK_MAX_KL = 1e-2


@dataclass(frozen=True)
class ExportResult:
    """What was written, what reading it back showed, and the merge where there was one."""

    artifacts: tuple[Artifact, ...]
    verify: Verification
    fuse: FuseResult | None


def export_mlx(
    model: str,
    adapter_dir: Path | None,
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
    compute: str = "auto",
    offline: bool = False,
    overwrite: bool = False,
    observe: Observe | None = None,
) -> ExportResult:
    """Write ``model``, merged with the adapter where there is one, and verify it with mlx-lm.

    Raises what ``fuse.fuse`` raises, and ModelError when the directory does
    not read back as what was written.
    """
    if adapter_dir is not None:
        fused = fuse(
            model,
            adapter_dir,
            out,
            data=data,
            tokenizer=tokenizer,
            calibration=calibration,
            score=score,
            way=way,
            bits=bits,
            max_kl=max_kl,
            allow_lossy=allow_lossy,
            compute=compute,
            offline=offline,
            overwrite=overwrite,
            observe=observe,
        )
        try:
            reference = base.load(model, compute=compute, offline=offline)
            adapters.apply(reference, adapters.load(adapter_dir))
            reference.model.eval()
            limit = max(_READ_BACK_MAX_KL, 10 * fused.kl_mean)
            checked = verify(out, reference, data, max_kl=limit)
        except BaseException:
            # What was not found good is not left there as if it were.
            remove_directory(out.resolve())
            raise
        return ExportResult((describe(out, "mlx"),), checked, fused)
    source = base.resolve(model, offline=offline)
    refuse_same(source, out)
    raw, config = stock.read(source)
    tensors = dict(tree_flatten(raw.parameters()))
    # No delta and the base's own grid: every tensor as it is.
    _, layers = merge(raw, {}, Way("requantized", 0))
    with staged_directory(out, overwrite=overwrite) as stage:
        quantization = quantization_config(config.get("quantization"), layers)
        write_model(stage, source, tensors, quantization, tokenizer)
        reference = base.load(model, compute=compute, offline=offline)
        with storage_errors(stage):
            card = source / "README.md"
            text = card.read_text("utf-8") if card.is_file() else model_card(reference.id, None)
            (stage / "README.md").write_text(text, encoding="utf-8")
            papers = source / "provenance.json"
            if papers.is_file():
                (stage / "provenance.json").write_bytes(papers.read_bytes())
        if observe:
            observe("reading it back with mlx-lm")
        checked = verify(stage, reference, data, max_kl=_READ_BACK_MAX_KL, expected=tensors)
    return ExportResult((describe(out, "mlx"),), checked, None)
