"""A real model, 4-bit and float16: every fast way is exact on it, and the whole job gets done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.real import smollm2

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten

from mlx_itune.dataset.rendering.prepare import tokenized
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.model.adapters import lora
from mlx_itune.model.engine import probe
from mlx_itune.model.engine.loss import plain_nll
from mlx_itune.model.loading import base
from mlx_itune.training.run import checkpoint
from tests.crash.small_run import outcome
from tests.crash.trainer import Trainer
from tests.training.learners import gradient_of, learner_of

pytestmark = pytest.mark.real
SYSTEM = "Name the intent of the customer's message. Answer with the label only."
ASKED = {
    "card_arrival": "When will my new {} card be here?",
    "lost_card": "I cannot find my {} card anywhere, what now?",
    "top_up_failed": "My top-up from the {} account did not go through.",
    "exchange_rate": "What rate do you use when I pay in {}?",
    "cash_withdrawal": "Why was I charged for {} at the machine?",
}
WORDS = (
    "debit",
    "travel",
    "second",
    "business",
    "joint",
    "euro",
    "virtual",
    "old",
    "blue",
    "spare",
)
FLAGS = (
    *("--steps", 10, "--batch-size", 8, "--rank", 8, "--adapter", "grid", "--warmup", 0),
    *("--learning-rate", "4e-3", "--save-every", 1, "--seed", 3, "--offline", "--json"),
)


@pytest.fixture(scope="module", params=[4, 16], ids=["4-bit", "float16"])
def model(request: pytest.FixtureRequest) -> Path:
    return smollm2.directory(request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 rows to learn and 8 to validate."""
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for n in range(108):
        label, words = list(ASKED)[n % 5], f"{WORDS[n // 5 % 10]}{' spare' * (n // 50)}"
        turns = (("system", SYSTEM), ("user", ASKED[label].format(words)), ("assistant", label))
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append(json.dumps({"messages": messages}) + "\n")
    (folder / "train.jsonl").write_text("".join(rows[:100]))
    (folder / "valid.jsonl").write_text("".join(rows[100:]))
    return folder


@pytest.fixture
def adapted(model: Path) -> Any:
    loaded = base.load(str(model)).model
    lora.attach(loaded, rank=8, scale=2.0, seed=0)
    for number, (_, layer) in enumerate(lora.adapted(loaded)):
        key = mx.random.key(number)
        layer.lora_b = 0.02 * mx.random.normal(layer.lora_b.shape, key=key)
    return loaded


def test_what_is_known_of_it_is_what_a_trial_finds(
    adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probe.probe(adapted)
    assert (found.head, found.packing, found.sharing, found.checkpointing) == (True,) * 4
    monkeypatch.setattr(probe, "probe", lambda _: pytest.fail("a known architecture was tried"))
    assert probe.exact_ways(adapted) == found and not found.reasons


def test_every_fast_way_is_exact_on_real_rows(adapted: Any, model: Path, data: Path) -> None:
    rows = tokenized(data, load_tokenizer(model)).train.examples[:4]
    adapted.train()
    width = max(len(row.input_ids) for row in rows)

    def plain(values: Any, padded: bool) -> mx.array:
        adapted.update(values)
        parts = [(row.input_ids[None], row.weights[None]) for row in rows]
        if padded:
            fill = [((0, 0), (0, width - len(row.input_ids))) for row in rows]
            wide = [[np.pad(a, f) for a in part] for part, f in zip(parts, fill, strict=True)]
            parts = [tuple(np.concatenate(arrays) for arrays in zip(*wide, strict=True))]  # type: ignore[misc]
        made = [plain_nll(adapted, *part) for part in parts]
        return sum(m[0] for m in made) / sum(m[1] for m in made)

    def flat(gradients: dict[str, Any]) -> Any:
        return np.concatenate([np.array(gradients[name]).ravel() for name in sorted(gradients)])

    learned = adapted.trainable_parameters()
    (loss, truth), (_, other) = (
        (np.asarray(value).item(), flat(dict(tree_flatten(gradients))))
        for value, gradients in (mx.value_and_grad(plain)(learned, p) for p in (False, True))
    )
    adapted.update(learned)
    # How far the plain way is from itself, in another order, tells what is only rounding.
    length = np.linalg.norm(truth)
    limit = max(1e-5, 20 * np.linalg.norm(other - truth) / length)
    assert limit < 1e-3
    off: dict[str, Any] = {"packing": "off", "prefix_sharing": "off"}
    for how in (off, {**off, "gradient_checkpointing": "on"}, {"packing": "off"}, {}):
        got, gradients = gradient_of(learner_of(adapted, **how), rows)
        assert got == pytest.approx(loss, rel=1e-5), how
        assert np.linalg.norm(flat(gradients) - truth) / length <= limit, how


def run(home: Path, *argv: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    trainer, log = Trainer(home / "log", *argv), home / "log"
    assert trainer.wait() == 0, log.read_text()[-2000:]
    (line,) = (line for line in log.read_text().splitlines() if line.startswith("{"))
    log.unlink()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid adapter for the 4-bit model, trained through the command line, in a run of its own."""
    home = tmp_path_factory.mktemp("peace")
    run(home, *training(data, home))
    return home


def training(data: Path, home: Path) -> tuple[object, ...]:
    where = ("--out", home / "adapter", "--runs", home / "runs")
    return ("train", "--model", smollm2.directory(4), "--data", data, *where, *FLAGS)


def only_run(home: Path) -> Path:
    (found,) = (path for path in (home / "runs").iterdir() if not path.name.startswith("."))
    return found


def test_ten_steps_lower_the_loss(trained: Path) -> None:
    told = [json.loads(line) for line in (only_run(trained) / "events.jsonl").open()]
    losses = [event["loss"] for event in told if event["event"] == "valid"]
    assert len(losses) >= 2 and losses[-1] < 0.7 * losses[0]


def test_a_killed_run_ends_the_same(data: Path, trained: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "log", *training(data, tmp_path))
    began = time.monotonic()
    while not [*tmp_path.glob("runs/*/checkpoints/step-000005/manifest.json")]:
        assert time.monotonic() - began < 300, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.02)
    trainer.kill()
    assert trainer.wait() == -9
    (tmp_path / "log").unlink()
    killed = only_run(tmp_path)
    assert checkpoint.complete(killed / "checkpoints")[-1].name < "step-000010"
    run(tmp_path, "resume", killed, "--offline", "--json")
    ours, theirs = (
        outcome(killed, tmp_path / "adapter"),
        outcome(only_run(trained), trained / "adapter"),
    )
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def test_it_merges_ships_and_answers(data: Path, trained: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    base_and_adapter = ("--model", smollm2.directory(4), "--adapter", trained / "adapter")
    fused, gguf = tmp_path / "fused", tmp_path / "tuned.gguf"
    common = ("--offline", "--json")
    found = run(tmp_path, "fuse", *base_and_adapter, "--data", data, "--out", fused, *common)
    assert found["kl_mean"] <= 1e-6
    run(tmp_path, "export", "--model", fused, "--to", "gguf", "--out", gguf, *common)
    weights = dict(tree_flatten(base.load(str(fused)).model.parameters()))
    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    # GGUF has the codes of 4 bits; of 8 bits it has blocks without an offset, rounded once.
    for name, theirs, limit in (
        ("model.embed_tokens", "token_embd", 4e-3),
        ("model.layers.7.mlp.down_proj", "blk.7.ffn_down", 1e-6),
        ("model.layers.29.self_attn.v_proj", "blk.29.attn_v", 1e-6),
        ("model.norm", "output_norm", 0.0),
    ):
        tensor = tensors[f"{theirs}.weight"]
        read = dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(-1)
        stored = np.array(weights[f"{name}.weight"]).reshape(-1)
        assert np.abs(read - stored).max() <= limit * np.abs(stored).max(), name
    asked = ASKED["lost_card"].format("blue")
    said = ("--system", SYSTEM, "--prompt", asked, "--max-tokens", 8)
    assert run(tmp_path, "generate", "--model", fused, *said, *common)["text"].strip()
