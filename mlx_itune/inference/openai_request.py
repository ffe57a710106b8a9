"""What a request in OpenAI's form asks for, and what of it cannot be served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_itune.model.serving.answers import Refusal

# Fields that change the answer and that this server has nothing for; what is listed changes none.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "draft_model": ("default_model",),
    "num_draft_tokens": (0,),
    "role_mapping": ({},),
    "chat_template_kwargs": ({},),
}
_SEEDS = 1 << 63
_XTC_THRESHOLD = 0.5
# Beyond float32 the log-probabilities of the answer are infinite, which is no JSON.
_MOST_BIAS = 1e9
# MLX's indices have 32 bits; no text is so long.
_MOST_TOKENS = (1 << 31) - 1
_WINDOWS = ("repetition_context_size", "presence_context_size", "frequency_context_size")
_INTEGERS = ("top_k", "max_tokens", "max_completion_tokens", "top_logprobs", *_WINDOWS)
_NUMBERS = (
    "temperature",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "xtc_probability",
    "xtc_threshold",
)


def checked(body: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """The body without nulls, in the types that mlx-lm's handler wants. Raises Refusal.

    vocabulary: how many logits the model gives.
    """
    kept = {key: value for key, value in body.items() if value is not None}
    for key, neutral in _ONLY.items():
        if key in kept and kept.pop(key) not in neutral:
            raise Refusal(
                400, f"{key}={body[key]!r} is not supported", param=key, code="unsupported_value"
            )
    if body.get("tool_choice") == "none":
        kept.pop("tools", None)
    kept["stop"] = _stops(kept.get("stop", []))
    _seed(kept)
    _sampling(kept, vocabulary)
    options = kept.get("stream_options", {})
    if not isinstance(options, dict):
        raise Refusal(400, "stream_options is not an object", param="stream_options")
    kept["stream_options"] = {"include_usage": bool(options.get("include_usage"))}
    return kept


def text_prompt(body: Mapping[str, Any]) -> str:
    """The `prompt` of a completion request: one text, or a list of one. Raises Refusal."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise Refusal(400, "prompt is not one text", param="prompt")
    return prompt


def _stops(value: Any) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(stop, str) for stop in listed):
        raise Refusal(400, "stop is neither a text nor a list of texts", param="stop")
    return [stop for stop in listed if stop]


def _seed(kept: dict[str, Any]) -> None:
    seed = kept.get("seed")
    if seed is None:
        return
    if type(seed) is not int:
        raise Refusal(400, "seed is not an integer", param="seed")
    kept["seed"] = seed % _SEEDS


def _sampling(kept: dict[str, Any], vocabulary: int) -> None:
    """What would stop mlx-lm's generation thread, and everybody's requests with it."""
    for name in _INTEGERS:
        if name in kept and type(kept[name]) is not int:
            raise Refusal(400, f"{name} is not an integer", param=name)
    for name in _WINDOWS:
        kept.update({name: min(kept[name], _MOST_TOKENS)} if name in kept else {})
    if kept.get("top_k", 0) >= vocabulary:
        kept["top_k"] = 0
    # MLX takes no integer beyond 64 bits, and mlx-lm no integer for some of these.
    for name in _NUMBERS:
        if type(kept.get(name)) is int:
            kept[name] = float(kept[name])
    threshold = kept.get("xtc_threshold", 0.0)
    if isinstance(threshold, float) and threshold > _XTC_THRESHOLD:
        raise Refusal(400, f"xtc_threshold must be at most {_XTC_THRESHOLD}", param="xtc_threshold")
    bias = kept.get("logit_bias", {})
    if not isinstance(bias, dict) or not all(_is_bias(*pair, vocabulary) for pair in bias.items()):
        raise Refusal(400, "logit_bias is not an object of token id to number", param="logit_bias")


def _is_bias(token: str, value: Any, vocabulary: int) -> bool:
    # int() refuses thousands of digits.
    is_short = token.isascii() and token.isdigit() and len(token) <= len(str(vocabulary))
    is_token = is_short and int(token) < vocabulary
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_token and is_number and abs(value) <= _MOST_BIAS
