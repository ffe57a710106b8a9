"""The model card that travels with a fused or exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def model_card(base_id: str, fused: Mapping[str, Any] | None, licence: str | None = None) -> str:
    """README.md text: base, method, fidelity, how to open it; ``fused`` as in provenance.json."""
    tuned = fused is not None
    lines = [
        "---",
        *([f"license: {licence}"] if licence else []),
        "library_name: mlx",
        "pipeline_tag: text-generation",
        f"base_model: {base_id}",
        "---",
        "",
        f"# {base_id}{', tuned' if tuned else ''}",
        "",
    ]
    if fused is not None:
        lines += [
            "A LoRA adapter merged into its base model by mlx-itune.",
            "",
            f"- how: {fused['method']}",
            "- distance from base + adapter, measured on "
            f"{fused['tokens']:,} learned tokens of held-out rows:",
            f"  mean KL {fused['kl_mean']:.3g} nats per token, 99th percentile "
            f"{fused['kl_p99']:.3g}, same first choice on {fused['top1_agreement']:.2%}",
            *_table(fused["tried"]),
            "- `provenance.json` says what it was trained on, and how",
            "",
        ]
    lines += ["```bash", "mlx_lm.generate --model . --prompt 'Hello'", "```", ""]
    return "\n".join(lines)


def card_licence(folder: Path) -> str | None:
    """The `license:` line of a model directory's card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return None
    for line in lines[1 : lines.index("---", 1)]:
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")
    return None


def _table(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """Size against fidelity of the ways that were tried, where there was more than one."""
    if len(tried) < 2:
        return []
    rows = [
        f"  | {t['method']} | {t['bytes'] / 1e6:,.1f} | {t['kl_mean']:.2g} | "
        f"{t['top1_agreement']:.2%} |"
        for t in tried
        if t["kl_mean"] is not None
    ]
    return ["", "  | way | MB | mean KL | same first choice |", "  |---|---|---|---|", *rows, ""]
