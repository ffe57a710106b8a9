"""Exported GGUF files in llama.cpp: the log-probabilities that MLX gives, per architecture."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.gguf_models import MODELS, write_model
from tests.export.shipped_models import tuned, write_adapter

import mlx.core as mx  # isort: skip

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.formats import export
from mlx_itune.export.request import Request
from mlx_itune.model.loading import base
from tests.parity.llama_cpp_model import log_probabilities, normalized, opened

pytestmark = pytest.mark.parity

PROMPTS, TOKENS = 8, 64
# Mean |difference| of log-probabilities over the whole vocabulary, in nats. Halves, measured: 3e-4
# to 1.3e-3. Blocks: llama.cpp rounds activations to 8 bits; measured up to 0.018 (Q4_1).
HALF, BLOCKS = 0.005, 0.02
# The first two candidates are this far apart where the choice between them is compared.
APART = 0.05
Rows = list[NDArray[np.float64]]


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(6, 384, TOKENS).tolist() for _ in range(PROMPTS)]


def ours(source: Path, adapter: Path | None = None) -> Rows:
    model = tuned(source, adapter, "dequantized")
    logits = (model(mx.array([ids]))[0].astype(mx.float32) for ids in prompts())
    return [normalized(np.array(each)) for each in logits]


def theirs(file: Path, lora: Path | None = None) -> Rows:
    with opened(file, lora=lora) as model:
        return [log_probabilities(model, ids) for ids in prompts()]


def exported(source: Path, kind: str) -> Path:
    out = source.with_suffix(f".{kind}.gguf")
    export(Request(str(source), None, out, load_tokenizer(source), "gguf", type=kind))
    return out


def difference(a: Sequence[Any], b: Sequence[Any]) -> float:
    return float(np.mean([np.abs(x - y).mean() for x, y in zip(a, b, strict=True)]))


def agreement(a: Rows, b: Rows) -> float:
    """How often both prefer the same token, where the first says clearly which."""
    same = []
    for x, y in zip(a, b, strict=True):
        top = np.sort(x, axis=-1)
        clear = top[:, -1] - top[:, -2] >= APART
        same.append((x.argmax(-1) == y.argmax(-1))[clear])
    every = np.concatenate(same)
    assert len(every) > PROMPTS * TOKENS // 2
    return float(every.mean())


@pytest.mark.parametrize("name", MODELS)
def test_halves_give_the_log_probabilities_of_mlx(name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", name)
    mine, other = ours(source), theirs(exported(source, "f16"))
    assert difference(mine, other) <= HALF
    assert agreement(mine, other) >= 0.99


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "grid", [{"bits": 4}, {"bits": 5}, {"bits": 4, "mode": "mxfp4"}], ids=["q4_1", "q5_1", "mxfp4"]
)
def test_the_same_codes_give_the_log_probabilities_of_mlx(
    name: str, grid: dict[str, Any], tmp_path: Path
) -> None:
    # With every expert chosen, as a choice turns over on a rounding; halves test the choice.
    every = {"num_experts_per_tok": 4} if "num_experts" in MODELS[name] else {}
    source = write_model(tmp_path / "m", name, quantization={"group_size": 32, **grid}, **every)
    mine, other = ours(source), theirs(exported(source, "lossless"))
    assert difference(mine, other) <= BLOCKS
    assert agreement(mine, other) >= 0.98


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m", "q5_k_m", "q6_k"])
def test_other_types_load_and_stay_near(kind: str, tmp_path: Path) -> None:
    source = write_model(
        tmp_path / "m", "llama", hidden_size=256, intermediate_size=512, num_attention_heads=8
    )
    # Other weights would be 0.9 and more away.
    limit = {"q8_0": 0.05, "q6_k": 0.1, "q5_k_m": 0.2, "q4_k_m": 0.4}[kind]
    assert difference(ours(source), theirs(exported(source, kind))) <= limit


@pytest.mark.parametrize(
    ("name", "kind", "where", "packed"),
    [
        *((name, "lora", {}, False) for name in MODELS),
        ("qwen2/yarn", "lora", {"keys": ["lm_head", "model.embed_tokens"]}, False),
        *(("llama", kind, {}, True) for kind in ("qalora", "lora")),
    ],
)
def test_a_lora_beside_its_base_is_the_adapted_model(
    name: str, kind: str, where: dict[str, Any], packed: bool, tmp_path: Path
) -> None:
    grid = {"group_size": 32, "bits": 4} if packed else None
    source = write_model(tmp_path / "m", name, quantization=grid)
    folder = write_adapter(tmp_path / "adapter", source, kind=kind, **where)
    file, lora = exported(source, "lossless" if packed else "f16"), tmp_path / "lora.gguf"
    export(Request(str(source), folder, lora, load_tokenizer(source), "gguf-lora"))
    adapted = theirs(file, lora)
    assert difference(ours(source, folder), adapted) <= (BLOCKS if packed else HALF)
    assert where or difference(theirs(file), adapted) >= 0.1


def test_the_starter(tmp_path: Path) -> None:
    source = tmp_path / "starter"
    shutil.copytree(base.resolve("starter"), source)
    mine = ours(source)
    assert difference(mine, theirs(exported(source, "f16"))) <= HALF
    assert difference(mine, theirs(exported(source, "lossless"))) <= BLOCKS
