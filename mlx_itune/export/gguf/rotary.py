"""Rotary positions as llama.cpp is told about them: a base, a kind of scaling, factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import ModelError

if TYPE_CHECKING:
    from mlx_itune.export.gguf.architectures import Facts

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Rotary:
    """GGUF keys under the architecture's name, tensors (pairs,) float32, and remarks."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, Float32] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plain(facts: Facts) -> Rotary:
    """A base alone; mlx-lm's module of the architecture knows no scaling."""
    return Rotary({"rope.freq_base": float(facts.get("rope_theta", 10000.0))})


def scaled(facts: Facts) -> Rotary:
    """A base and the scaling of mlx-lm's rope_utils. Raises ModelError for one llama.cpp lacks."""
    keys = dict(plain(facts).keys)
    scaling = facts.get("rope_scaling") or {}
    kind = scaling.get("type") or scaling.get("rope_type", "default")
    if kind == "default":
        return Rotary(keys)
    if kind == "linear":
        return Rotary(keys | _linear(scaling))
    if kind == "llama3":
        factors = _llama3_factors(facts.head_dim, keys["rope.freq_base"], scaling)
        return Rotary(keys, {"rope_freqs.weight": factors})
    if kind == "yarn":
        return Rotary(keys | _yarn(scaling))
    raise ModelError(f"llama.cpp has no rotary scaling {kind!r} as mlx-lm computes it")


def without_factors(facts: Facts) -> Rotary:
    """The same where llama.cpp's loader refuses a tensor of factors. Raises ModelError for one."""
    found = scaled(facts)
    if found.tensors:
        raise ModelError("llama.cpp takes llama3's rotary factors with llama and granite alone")
    return found


def with_local_base(facts: Facts) -> Rotary:
    """Gemma 3: another base, and no scaling, in the layers with a window."""
    found = without_factors(facts)
    local = float(facts.get("rope_local_base_freq", 10000.0))
    # Versions of llama.cpp before there was this key take 10,000.
    keys = dict(found.keys) | ({} if local == 10000.0 else {"rope.freq_base_swa": local})
    return Rotary(keys)


def longrope(facts: Facts) -> Rotary:
    """Phi 3: part of each head is rotated, and long rows have a factor for each frequency."""
    keys = dict(plain(facts).keys)
    pairs = int(facts.head_dim * facts.get("partial_rotary_factor", 1.0)) // 2
    original = int(facts.get("original_max_position_embeddings", 4096))
    keys |= {
        "rope.dimension_count": 2 * pairs,
        "rope.scaling.original_context_length": original,
    }
    scaling = facts.get("rope_scaling") or {}
    kind = scaling.get("type", "default")
    if kind == "default":
        return Rotary(keys)
    if kind == "linear":
        return Rotary(keys | _linear(scaling))
    factors = np.broadcast_to(np.asarray(scaling["long_factor"], dtype=np.float32), (pairs,))
    stretch = facts.context_tokens / original
    if stretch > 1:
        magnitude = math.sqrt(1 + math.log(stretch) / math.log(original))
        keys["rope.scaling.attn_factor"] = magnitude
    # llama.cpp would take the short factors in short contexts; mlx-lm takes the long ones always.
    tensors = {
        f"rope_factors_{length}.weight": np.ascontiguousarray(factors)
        for length in ("long", "short")
    }
    note = "long rotary factors in contexts of any length, as mlx-lm computes and trains"
    return Rotary(keys, tensors, (note,))


def _linear(scaling: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}


def _yarn(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Peng et al., 2309.00071, section 3.4."""
    if scaling.get("mscale", 1) != 1 or scaling.get("mscale_all_dim", 0) != 0:
        raise ModelError("llama.cpp has no mscale of its own in yarn scaling")
    for name, theirs in (("beta_fast", 32), ("beta_slow", 1)):
        # There are keys for them, which llama.cpp reads for other architectures only.
        if scaling.get(name, theirs) != theirs:
            raise ModelError(
                f"yarn scaling with {name} {scaling[name]}, and llama.cpp takes {theirs}"
            )
    original = int(scaling.get("original_max_position_embeddings", 4096))
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": original,
    }


def _llama3_factors(dims: int, base: float, scaling: Mapping[str, Any]) -> Float32:
    """What Llama 3.1 divides each frequency by: 1 for fast ones, `factor` for slow ones."""
    factor = float(scaling["factor"])
    low = float(scaling.get("low_freq_factor", 1.0))
    high = float(scaling.get("high_freq_factor", 4.0))
    original = float(scaling.get("original_max_position_embeddings", 8192))
    wavelengths = 2 * math.pi * base ** (np.arange(0, dims, 2, dtype=np.float64) / dims)
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    slow = np.where(wavelengths > original / low, factor, between)
    return np.where(wavelengths <= original / high, 1.0, slow).astype(np.float32)
