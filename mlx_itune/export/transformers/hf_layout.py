"""Where a tensor of mlx-lm's lies in a transformers checkpoint: the inverse of its `sanitize`.

mlx-lm keeps transformers' names but for the experts of a mixture, which it stacks. Checkpoints
keep them one by one; transformers 5 stacks them when it loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_itune.kit.errors import ModelError

# model_type and the class that config.json names: those whose logits were compared with
# transformers' own (tests/parity). gemma, helium, olmo3 and starcoder2 keep the names, but compute
# something else there.
_CLASSES = {
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
}
_STACK = re.compile(r"(.+)\.switch_mlp\.(gate_proj|up_proj|down_proj)\.weight")
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
# What mlx-lm calls its own switches; transformers has no such setting.
_OURS_ALONE = {"model_type", "rope_traditional"}
# Those of the above whose heads transformers, too, rotates by neighbouring values.
_NEIGHBOURS = {"glm4"}
# Sliding windows that mlx-lm's modules leave out; those of llama and mistral only with layer_types.
_WINDOW = {"mistral", "mixtral", "phi3"}
_SWITCHED_WINDOW = {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"}
# Biases that mlx-lm's module may have, and transformers' would drop when it loads.
_DROPPED = {
    "mistral": r".*_proj\.bias",
    "olmo2": r".*\.mlp\..*\.bias",
    "olmoe": r".*\.mlp\..*\.bias",
    "cohere": r".*norm\.bias",
    "cohere2": r".*norm\.bias",
}


@dataclass(frozen=True)
class HfTensor:
    """A tensor of the checkpoint: `source` is mlx-lm's name, of which it is one `expert` or all."""

    name: str
    shape: tuple[int, ...]
    source: str
    expert: int | None = None


def compared(model_type: str) -> bool:
    """Whether transformers' class of a model type was compared with mlx-lm's module."""
    return model_type in _CLASSES


def class_name(model_type: str, where: str) -> str:
    """The transformers class of a model type. Raises ModelError for one that is not known here."""
    if not compared(model_type):
        raise ModelError(
            f"model_type {model_type!r} has no export to transformers",
            where=where,
            hint="it is known for " + ", ".join(sorted(_CLASSES)),
        )
    return _CLASSES[model_type]


def require_same_function(
    model_type: str, settings: Mapping[str, Any], shapes: Mapping[str, Any], where: str
) -> None:
    """Raises ModelError for what transformers' class of this type would compute otherwise."""
    if settings.get("rope_traditional") not in (None, model_type in _NEIGHBOURS):
        raise ModelError(
            f"rope_traditional is not what transformers' {model_type} computes", where=where
        )
    if model_type in ("llama", "mistral") and "sliding_attention" in settings["layer_types"]:
        raise ModelError(
            f"has a sliding window in some layers, which transformers' {model_type} has not",
            where=where,
        )
    lost = [name for name in shapes if re.fullmatch(_DROPPED.get(model_type, ""), name)]
    if lost:
        raise ModelError(f"transformers' {model_type} has no {min(lost)}", where=where)


def placed(shapes: Mapping[str, tuple[int, ...]], model_type: str) -> list[HfTensor]:
    """The checkpoint's tensors for mlx-lm's parameters, of which `shapes` has the float shapes.

    In the order of mlx-lm's names, so that what is cut from one tensor stands together.
    """
    found = []
    for source in sorted(shapes):
        shape, stack = shapes[source], _STACK.fullmatch(source)
        if stack is None:
            found.append(HfTensor(source, shape, source))
            continue
        prefix, name = stack.groups()
        name = _MIXTRAL[name] if model_type == "mixtral" else name
        found += [
            HfTensor(f"{prefix}.experts.{e}.{name}.weight", shape[1:], source, e)
            for e in range(shape[0])
        ]
    return found


def cleaned_config(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    where: str,
    *,
    scaled: bool,
) -> dict[str, Any]:
    """config.json for transformers: no quantization, its class, and no number left to a default.

    Rotary positions and windows are as mlx-lm computes them: ``scaled`` says whether it scales any.
    `settings` are mlx-lm's, defaults filled in: theirs are not always those of transformers. Lists
    stay out: by `layer_types` transformers tells Ministral from Mistral.
    """
    model_type = str(config["model_type"])
    left_out = {"quantization", "quantization_config", "auto_map", "_name_or_path"}
    cleaned = {key: value for key, value in config.items() if key not in left_out}
    for key, value in settings.items():
        plain = isinstance(value, (bool, int, float, str)) and key not in _OURS_ALONE
        if plain and cleaned.get(key) is None:
            cleaned[key] = value
    if "rope_parameters" not in settings:
        cleaned.pop("rope_parameters", None)
    scaling = cleaned.get("rope_scaling")
    if not scaled:
        for key in ("rope_scaling", "rope_parameters"):
            cleaned.pop(key, None)
    elif isinstance(scaling, dict) and "long_factor" in scaling:
        # transformers takes the short factors in short texts; mlx-lm takes the long ones always.
        cleaned["rope_scaling"] = {**scaling, "short_factor": scaling["long_factor"]}
    _drop_window(cleaned, model_type)
    if model_type == "qwen2_moe":
        # mlx-lm's module has no such step.
        cleaned["norm_topk_prob"] = False
    cleaned["architectures"] = [class_name(model_type, where)]
    cleaned["tie_word_embeddings"] = not any(name.startswith("lm_head.") for name in shapes)
    cleaned["vocab_size"] = shapes["model.embed_tokens.weight"][0]
    # The older key and, since transformers 4.56, the newer one.
    cleaned["torch_dtype"] = cleaned["dtype"] = dtype
    return cleaned


def _drop_window(config: dict[str, Any], model_type: str) -> None:
    """No sliding window where mlx-lm computes none; Gemma 2's, which must be, hides nothing."""
    if model_type in _WINDOW:
        config["sliding_window"] = None
    elif model_type in _SWITCHED_WINDOW:
        config["use_sliding_window"] = False
    elif model_type == "gemma2":
        context = config.get("max_position_embeddings") or 8192
        config["sliding_window"] = max(context, config.get("sliding_window") or 4096)
    if model_type in _WINDOW | _SWITCHED_WINDOW and "layer_types" in config:
        config["layer_types"] = ["full_attention"] * len(config["layer_types"])
