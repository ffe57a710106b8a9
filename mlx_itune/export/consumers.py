"""What the programs that run a model are known not to load, said before a user finds out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Architectures that Ollama's converter of safetensors directories does not know
# (ollama/ollama, convert/convert.go); a GGUF file of them loads.
_OLLAMA_NOT_CONVERTED = frozenset({"qwen3", "mistral"})


def consumer_warnings(
    consumer: str, config: Mapping[str, Any], *, adapter_kind: str | None = None
) -> tuple[str, ...]:
    """Sentences for a user about to ship to ``consumer``.

    ``consumer``: "ollama", "lmstudio", "llama.cpp", "mlx-swift-lm", "transformers". ``config`` is
    the model's config.json; ``adapter_kind`` is set where an adapter ships by itself: "lora",
    "rslora", "dora", "grid" or "qalora".
    """
    quantized = bool(config.get("quantization"))
    found = []
    if consumer == "ollama":
        if quantized:
            found.append(
                "Ollama does not read MLX's quantized safetensors (unknown data type: U32): "
                "give it the GGUF file"
            )
        if config.get("model_type") in _OLLAMA_NOT_CONVERTED:
            found.append(
                f"Ollama does not convert {config['model_type']} from safetensors: "
                "give it the GGUF file"
            )
    if consumer == "lmstudio" and adapter_kind:
        found.append("LM Studio loads no adapters: fuse it and export the model")
    if consumer in ("ollama", "llama.cpp") and adapter_kind in ("dora", "grid"):
        found.append(f"llama.cpp loads no {adapter_kind} adapters: fuse it and export the model")
    if consumer == "llama.cpp" and quantized:
        found.append("llama.cpp's own converter refuses MLX's quantized weights: use --to gguf")
    if consumer == "mlx-swift-lm" and adapter_kind in ("grid", "qalora"):
        found.append(
            f"mlx-swift-lm knows lora and dora adapters: fuse the {adapter_kind} adapter"
            if adapter_kind == "grid"
            else "mlx-swift-lm loads a qalora adapter as the lora it also is"
        )
    if consumer == "transformers" and quantized:
        found.append("transformers does not read MLX's quantized weights: use --to hf")
    return tuple(found)
