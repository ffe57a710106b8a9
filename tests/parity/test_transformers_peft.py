"""The same model, rows and initial A, B in transformers + PEFT on torch: losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.loading import base
from mlx_itune.training.engine.footprint import Row
from mlx_itune.training.engine.microbatch import MicroBatch, Rectangle
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.settings import TrainSettings

pytestmark = pytest.mark.parity

STEPS, RANK, ALPHA, RATE, SEED = 20, 4, 8.0, 2e-3, 0
TOLERANCE = 1e-4


def _batch(step: int) -> Rectangle:
    rng = np.random.default_rng(step)
    ids = rng.integers(6, 300, (4, 25)).astype(np.int32)
    weights = (rng.random((4, 25)) < 0.5).astype(np.float32)
    for row, length in enumerate((25, 19, 12, 22)):
        ids[row, length:], weights[row, length:] = 0, 0.0
    return Rectangle(ids, weights)


def _theirs(path: Path) -> tuple[Any, dict[str, Any]]:
    """The PEFT model, and its LoRA parameters by our names."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    base_model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(base_model, config)
    by_name = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            short = name.removeprefix("base_model.model.").replace(".default.weight", "")
            by_name[short.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = parameter
            # With B = 0 Adam's first step is the sign of a gradient, rounding and all: entries
            # near zero then set the two runs apart by more than they differ.
            if "lora_B" in short:
                torch.nn.init.normal_(parameter, std=0.02)
    return model, by_name


def _relative(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))


def test_losses_and_gradients_over_twenty_steps(tiny_model_dir: Path, tmp_path: Path) -> None:
    import torch

    theirs, parameters = _theirs(tiny_model_dir)
    loaded = base.load(str(tiny_model_dir))
    paths = lora.attach(loaded.model, rank=RANK, scale=ALPHA / RANK, seed=0)
    assert len(parameters) == 2 * len(paths)
    # PEFT keeps A and B as the transposes of ours.
    initial = {n: mx.array(p.detach().numpy().T.copy()) for n, p in parameters.items()}
    loaded.model.update(tree_unflatten(list(initial.items())))

    ours = Learner(loaded.model, TrainSettings(str(tiny_model_dir), tmp_path, tmp_path))
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    for step in range(STEPS):
        batch = _batch(step)
        whole = MicroBatch((batch,))
        ours.model.train()
        lazy, held = ours.summed([[whole]], mx.array(1 / batch.weights[:, 1:].sum()))
        loss, gradients = lazy.item(), ours.optimizer.named(held)
        ids = torch.from_numpy(batch.input_ids.astype(np.int64))
        learned = torch.from_numpy(batch.weights[:, 1:].copy())
        logits = theirs(input_ids=ids).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none"
        )
        their_loss = (nll * learned.reshape(-1)).sum() / learned.sum()
        optimizer.zero_grad()
        their_loss.backward()

        assert loss == pytest.approx(their_loss.item(), rel=TOLERANCE)
        for name, gradient in gradients.items():
            their_gradient = parameters[name].grad.numpy().T
            assert _relative(np.array(gradient), their_gradient) < TOLERANCE, (step, name)

        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        ours.step([*map(Row, batch.input_ids, batch.weights)], RATE)
        ours.finish()

    keys = lora.placed(loaded.model)[0]
    config = adapter.AdapterConfig(RANK, ALPHA / RANK, 0.0, keys, 2)
    adapter.save(tmp_path / "a", loaded.model, config, {})
    _same_logits_in_mlx_lm(loaded.model, tiny_model_dir, tmp_path / "a")


def _same_logits_in_mlx_lm(model: Any, path: Path, folder: Path) -> None:
    from mlx_lm import load

    theirs, _ = load(str(path), adapter_path=str(folder))
    ids = mx.array(_batch(99).input_ids)
    expected = np.array(model(ids))
    assert _relative(expected, np.array(theirs(ids))) < 1e-5
