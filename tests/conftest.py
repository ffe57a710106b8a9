"""What every test stands on: a home of its own, no network, and a tiny model made in-process."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest imports this file under another name: a second copy would set another HF_HOME.
sys.modules.setdefault("tests.conftest", sys.modules[__name__])
# Read once, when huggingface_hub is first imported: so before any test module is.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="mlx-itune-test-hf-")
os.environ["MLX_ITUNE_CACHE"] = tempfile.mkdtemp(prefix="mlx-itune-test-cache-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CHAT_TEMPLATE = (
    "{% if tools %}<|tool|>\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|{{ message.role }}|>\n{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TOKENIZER_TEXT = [
    "Extract the medications and their dosages from the note.",
    "The patient takes metformin 500 mg twice daily and zolpidem 5 mg at night.",
    "Follow-up: in two weeks. Allergies: none known. Triage: routine.",
    "Answer the question with yes or no, then give the reason in one sentence.",
]
LAYERS = 2
LAYER = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


_attempts: list[object] = []


def _stay_here(event: str, args: tuple[Any, ...]) -> None:
    """Refuse every way off this machine: all but a Unix socket's path and loopback addresses."""
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        return
    address = args[:1] if event == "socket.getaddrinfo" else args[1]
    if not isinstance(address, tuple) or address[0] in (None, "", "localhost", "::1"):
        return
    if not str(address[0]).startswith("127."):
        _attempts.append(address)
        raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {event} of {address!r}")


sys.addaudithook(_stay_here)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--count", type=int, default=10_000, help="conversations of `make masks`")


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail a test that reached for the network."""
    _attempts.clear()
    yield
    if _attempts:
        pytest.fail(f"the test reached for the network: {_attempts}")


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders yet to be made; pytest's own numbering reads all earlier ones for each."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own; the XDG folders follow it."""
    path = next(homes)
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return path


def write_tiny_tokenizer(out: Path) -> int:
    """Train a byte-level BPE on a few sentences, write it with a template; return its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT, trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return int(tokenizer.get_vocab_size())


def write_tiny_model(out: Path, *, bits: int | None = None, seed: int = 0) -> Path:
    """Write a two-layer Llama directory with random weights, float32 or quantized (group 64)."""
    import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
    import mlx.core as mx  # isort: skip
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    out.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": write_tiny_tokenizer(out),
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": SPECIAL_TOKENS.index("<|end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
        "torch_dtype": "float32",
    }
    model = Model(ModelArgs.from_dict(config))
    weights: dict[str, Any] = dict(tree_flatten(model.parameters()))
    names = [f"model.layers.{n}.{name}" for n in range(LAYERS) for name in LAYER]
    keys = mx.random.split(mx.random.key(seed), 1 + len(names))
    for key, name in zip(keys, ("model.embed_tokens", *names), strict=True):
        shape = weights[f"{name}.weight"].shape
        weights[f"{name}.weight"] = mx.random.normal(shape, key=key) * shape[1] ** -0.5
    model.load_weights([*weights.items()])
    if bits is not None:
        nn.quantize(model, 64, bits)
        config["quantization"] = {"group_size": 64, "bits": bits, "mode": "affine"}
        config["quantization_config"] = config["quantization"]
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 Llama directory; read-only by agreement, copy it before changing it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_quantized_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in 4 bits; read-only by agreement, copy it before changing it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-4bit", bits=4)
