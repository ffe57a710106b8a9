"""Checkpoints: whole or not there, whatever call fails; and no byte of one changes unnoticed."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import DivergedError, StorageError
from mlx_itune.kit.json_files import read_record
from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.loading import base
from mlx_itune.training.engine.footprint import Row
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.run import checkpoint
from tests.training.learners import learner_of

import mlx.core as mx  # isort: skip

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "close", "stat")
FAULTS = (errno.ENOSPC, errno.EINTR)
FLIPS = 300


@pytest.fixture(scope="module")
def learner(tiny_model_dir: Path) -> Learner:
    loaded = base.load(str(tiny_model_dir))
    lora.attach(loaded.model, rank=2, scale=2.0, keys=["self_attn.q_proj"])
    return learner_of(loaded.model)


def config(learner: Learner) -> adapter.AdapterConfig:
    return adapter.config_of(learner.model, kind="lora", rank=2, scale=2.0)


def write(folder: Path, learner: Learner, step: int, **options: Any) -> Path:
    state = {"step": step, "run": "this"}
    return checkpoint.write(folder, learner, config(learner), {"v": 1}, state, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(real: Any, at: int, number: int) -> tuple[Any, list[bool]]:
    """A function whose n-th call (from 0) fails with an errno; one True for each call made."""
    calls: list[bool] = []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(True)
        if len(calls) == at + 1:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    return call, calls


@pytest.mark.parametrize("number", FAULTS, ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_at_any_call_of_the_writer_leaves_the_previous_checkpoint(
    call: str, number: int, learner: Learner, tmp_path: Path
) -> None:
    """Every call is failed once: the first, then the second, until none is left to fail."""
    at = 0
    while True:
        folder = tmp_path / str(at)
        write(folder, learner, 1)
        with pytest.MonkeyPatch.context() as patch:
            made, calls = failing(getattr(os, call), at, number)
            patch.setattr(os, call, made)
            try:
                write(folder, learner, 2, keep=1)
            except StorageError as error:
                assert os.strerror(number) in str(error)
        found = [path.name for path in checkpoint.complete(folder)]
        # The new one is there only as a whole; the old one goes only once it is.
        assert found in (["step-000001"], ["step-000001", "step-000002"], ["step-000002"])
        for path in checkpoint.complete(folder):
            assert checkpoint.read(path).state["step"] == checkpoint.step_of(path)
        # What is left over is hidden, and gone with the next checkpoint.
        write(folder, learner, 3, keep=1)
        assert names(folder) == ["step-000003"]
        if len(calls) <= at:
            break
        at += 1
    assert at or call not in ("open", "write", "fsync", "replace", "rename", "mkdir")


def test_a_flipped_byte_is_told_every_time(learner: Learner, tmp_path: Path) -> None:
    path = write(tmp_path / "c", learner, 7)
    files = sorted(path.iterdir())
    places, told = random.Random(4), 0
    for flip in range(FLIPS):
        # Each file as often as the next, so that the small ones, the manifest too, get their share.
        file = files[flip % len(files)]
        whole = file.read_bytes()
        data = bytearray(whole)
        data[places.randrange(len(data))] ^= 1 << places.randrange(8)
        file.write_bytes(data)
        try:
            checkpoint.read(path)
        except StorageError:
            told += 1
        file.write_bytes(whole)
    assert told == FLIPS
    assert checkpoint.read(path).state["step"] == 7


def test_truncated_missing_and_foreign_files_are_told(learner: Learner, tmp_path: Path) -> None:
    path = write(tmp_path / "c", learner, 7)
    other = write(tmp_path / "other", learner, 8)
    (path / ".DS_Store").write_bytes(b"x")
    assert ".DS_Store" not in checkpoint.read(path).files
    for name in (*checkpoint.read(path).files, "manifest.json"):
        file = path / name
        whole = file.read_bytes()
        for damage in (whole[: len(whole) // 2], whole[:-1], b"", whole + b"\n", None):
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.raises(StorageError, match=name):
                checkpoint.read(path)
        file.write_bytes(whole)
    with pytest.raises(StorageError, match="is the manifest of step-000008"):
        checkpoint.read(shutil.copytree(other, tmp_path / "c" / "step-000009"))
    own = path / "manifest.json"
    manifest = read_record(own, checkpoint.Manifest, error=StorageError)
    manifest.files["../secret"] = checkpoint.SealedFile(0, "")
    for content, said in (
        (manifest.sealed(), "outside"),
        ((other / own.name).read_bytes(), "manifest"),
    ):
        own.write_bytes(content)
        with pytest.raises(StorageError, match=said):
            checkpoint.read(path)


def test_the_newest_and_the_best_stay(learner: Learner, tmp_path: Path) -> None:
    for step in range(1, 8):
        write(tmp_path, learner, step, keep=2, best_step=3 if step >= 3 else None)
    assert names(tmp_path) == ["step-000003", "step-000006", "step-000007"]
    # Nothing that a later session would find newer than what it writes is counted.
    write(tmp_path, learner, 5, keep=1, best_step=3)
    assert names(tmp_path) == ["step-000003", "step-000005", "step-000006", "step-000007"]


def test_nothing_that_is_not_finite_is_written(learner: Learner, tmp_path: Path) -> None:
    write(tmp_path, learner, 1)
    layer = learner.model.layers[0].self_attn.q_proj
    good = layer.lora_b
    try:
        for bad in (mx.nan, mx.inf):
            layer.lora_b = good.at[0, 0].add(bad)
            with pytest.raises(DivergedError, match="lora_b holds NaN or infinity"):
                write(tmp_path, learner, 2)
    finally:
        layer.lora_b = good
    assert names(tmp_path) == ["step-000001"]


def test_a_checkpoint_restores_weights_and_moments_of_its_own_shape(
    learner: Learner, tiny_model_dir: Path, tmp_path: Path
) -> None:
    def another(rank: int) -> Learner:
        loaded = base.load(str(tiny_model_dir))
        lora.attach(loaded.model, rank=rank, scale=2.0, keys=["self_attn.q_proj"], seed=5)
        return learner_of(loaded.model)

    example: Any = Row(np.arange(10, 30, dtype=np.int32), np.ones(20, np.float32))
    learner.step([example], 1e-2)
    learner.finish()
    sealed = checkpoint.read(write(tmp_path, learner, 1))
    again = another(rank=2)
    checkpoint.restore(sealed, again)
    for one in (again, learner):
        one.step([example], 1e-2)
    assert again.finish() == learner.finish()
    ours, theirs = (
        dict(tree_flatten(one.model.trainable_parameters())) for one in (again, learner)
    )
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for name, array in ours.items():
        assert np.array_equal(np.array(array), np.array(theirs[name])), name
    with pytest.raises(StorageError, match="does not hold"):
        checkpoint.restore(sealed, another(rank=3))
