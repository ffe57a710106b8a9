"""The model cards (README.md) that travel with what is shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError, one_line
from mlx_itune.kit.json_files import read_toml

TEXTS, _ = read_toml(Path(__file__).with_name("texts.toml"), error=ModelError)
_SNIPPET: dict[str, str] = TEXTS["snippets"]
_SH = "```sh\n{}\n```\n"
_LMSTUDIO = {"LM Studio": _SH.format("sh install-lmstudio.sh")}
# Format -> heading -> snippet.
_SNIPPETS: dict[str, dict[str, str]] = {
    "mlx": {
        "Python (mlx-lm)": _SNIPPET["mlx"],
        "Swift (mlx-swift-lm 3)": _SNIPPET["swift"],
        **_LMSTUDIO,
    },
    "gguf": {"llama.cpp": _SH.format("llama-cli -m {path} --jinja -cnv"), **_LMSTUDIO},
    "gguf-lora": {
        "llama.cpp, base and adapter": _SH.format(
            "llama-cli -m BASE.gguf --lora {path} --jinja -cnv"
        )
    },
    "hf": {"transformers": _SNIPPET["hf"]},
    "peft": {"PEFT": _SNIPPET["peft"]},
    "ollama": {"Ollama": _SH.format("sh install-ollama.sh\nollama run {name}")},
    "lmstudio": _LMSTUDIO,
}


def model_card(base_id: str, fused: Mapping[str, Any] | None, licence: str | None = None) -> str:
    """Of an MLX directory: base, method, fidelity; ``fused`` as in provenance.json."""
    about = {"license": licence, "library_name": "mlx", "pipeline_tag": "text-generation"}
    lines = []
    if fused is not None:
        lines = [
            "A LoRA adapter merged into its base model by mlx-itune.",
            "",
            f"- how: {fused['method']}",
            f"- distance from base + adapter, measured {_distance(fused)}",
            *_table(fused["tried"]),
            "- `provenance.json` says what it was trained on, and how",
        ]
    title = f"{base_id}{', tuned' if fused else ''}"
    return _card({**about, "base_model": base_id}, title, lines, _SNIPPET["mlx"].format(path="."))


def transformers_card(base_id: str, measured: Sequence[str], *, tuned: bool) -> str:
    """Of a transformers directory; ``measured``: what reading it back showed."""
    about = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    title = f"{base_id}{', tuned' if tuned else ''}, for transformers"
    about["base_model"] = base_id
    return _card(about, title, measured, _SNIPPET["hf"].format(path="."))


def peft_card(base_id: str, measured: Sequence[str], notes: Sequence[str]) -> str:
    """Of a PEFT adapter; ``measured``: what reading it back showed."""
    about = {"library_name": "peft", "base_model": base_id}
    lines = [*measured, "", *(f"- {note}" for note in notes)]
    return _card(about, f"LoRA for {base_id}", lines, _SNIPPET["peft"].format(path="."))


def bundle_card(head: Mapping[str, Any], model_name: str) -> str:
    """Of a bundle; ``head`` is its manifest, ``model_name`` what Ollama calls the model."""
    base, fused = one_line(head["base"]["id"] or "unknown"), head["fidelity"]
    lines = [f"Made from {base} by {head['made_by']}."]
    if head["base"].get("fingerprint"):
        lines += [f"Fingerprint of the base's weights: `{head['base']['fingerprint']}`."]
    lines += ["", "## How close it is to what was trained", ""]
    if fused is None or fused.get("kl_mean") is None:
        lines += ["Not measured: no adapter was merged into these files."]
    else:
        lines += [f"Merged: {fused['method']}. Against base + adapter, {_distance(fused)}."]
    lines += ["", "## Licences", "", "| of | licence |", "|---|---|"]
    lines += [f"| {_cell(of)} | {_cell(licence)} |" for of, licence in head["licences"].items()]
    lines += ["", "## How to run it", ""]
    for part in head["parts"]:
        for title, snippet in _SNIPPETS[part["format"]].items():
            lines += [f"### {title}", "", snippet.format(path=part["path"], name=model_name)]
    about = {"base_model": base, "pipeline_tag": "text-generation"}
    checking = (
        "`manifest.json` has the SHA-256 of every file; the install scripts check them first."
    )
    return _card(about, one_line(head["name"]), lines, f"## How to check it\n\n{checking}\n")


def licence_in_card(folder: Path) -> str | None:
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


def _card(about: Mapping[str, str | None], title: str, lines: Sequence[str], last: str) -> str:
    known = [f"{key}: {value}" for key, value in about.items() if value]
    return "\n".join(["---", *known, "---", "", f"# {title}", "", *lines, "", last])


def _distance(fused: Mapping[str, Any]) -> str:
    return (
        f"on {fused['tokens']:,} learned tokens of held-out rows: mean KL {fused['kl_mean']:.3g} "
        f"nats per token, 99th percentile {fused['kl_p99']:.3g}, same first choice on "
        f"{fused['top1_agreement']:.2%}"
    )


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


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
