"""Boards get a run's numbers, nothing private, and never end a run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import UsageError
from mlx_itune.training.engine.loop import train
from mlx_itune.training.hooks import attached, shared_settings
from tests.training.conftest import Settings

Patch = pytest.MonkeyPatch


@pytest.fixture
def board(monkeypatch: Patch) -> MagicMock:
    """TensorBoard's writer, which keeps what it is given."""
    writer = MagicMock()
    writer.opened = MagicMock(return_value=writer)
    session = type("SessionLog", (SimpleNamespace,), {"START": 1})
    summary = type("Summary", (SimpleNamespace,), {"Value": SimpleNamespace})
    modules: dict[str, dict[str, Any]] = {
        "summary.writer.event_file_writer": {"EventFileWriter": writer.opened},
        "compat.proto.event_pb2": {"Event": SimpleNamespace, "SessionLog": session},
        "compat.proto.summary_pb2": {"Summary": summary},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"tensorboard.{name}", SimpleNamespace(**content))
    return writer


@pytest.fixture
def wandb(monkeypatch: Patch) -> MagicMock:
    fake = MagicMock()
    fake.init.return_value = fake
    fake.Settings = SimpleNamespace
    fake.summary = {}
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def events_of(board: MagicMock) -> list[Any]:
    return [call.args[0] for call in board.add_event.call_args_list]


def scalars(board: MagicMock, tag: str) -> list[tuple[int, float]]:
    summaries = [event for event in events_of(board) if hasattr(event, "summary")]
    return [(e.step, v.simple_value) for e in summaries for v in e.summary.value if v.tag == tag]


def test_tensorboard_gets_every_number_of_a_run(
    settings: Settings, board: MagicMock, tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    chosen = settings(eval_every=2)
    with attached(chosen, events.append, tensorboard=tmp_path / "board") as observe:
        result = train(chosen, observe=observe)
    folder = str(tmp_path / "board" / Path(result.run).name)
    board.opened.assert_called_once_with(folder, flush_secs=30)
    board.close.assert_called_once()
    steps = [event for event in events if event["event"] == "step"]
    for name, tag in (
        ("loss", "train/loss"),
        ("supervised_tokens_per_second", "speed/learned_tokens_per_second"),
    ):
        assert scalars(board, tag) == [(e["step"], e[name]) for e in steps]
    valid = [(e["step"], e["loss"]) for e in events if e["event"] == "valid"]
    assert scalars(board, "valid/loss") == valid
    assert [step for step, _ in valid] == [0, 2, 4, 6]


def test_a_resumed_run_takes_back_what_it_makes_again_and_nothing_wild_is_told(
    settings: Settings, board: MagicMock, tmp_path: Path
) -> None:
    with attached(settings(), tensorboard=tmp_path) as observe:
        observe({"event": "start", "run": "runs/r", "steps": 9})
        observe({"event": "resume", "step": 6})
        for loss in (math.nan, None, math.inf, True, "1"):
            observe({"event": "step", "step": 7, "loss": loss, "learning_rate": 0.5})
    session, first = events_of(board)[:2]
    assert (session.step, session.session_log.status) == (7, 1)
    assert first.step == 7
    assert scalars(board, "train/loss") == []
    assert len(scalars(board, "train/learning_rate")) == 5


def test_a_board_that_fails_is_dropped_and_told_once(
    settings: Settings, board: MagicMock, tmp_path: Path
) -> None:
    board.add_event.side_effect = OSError(28, "No space left on device")
    said: list[str] = []
    seen: list[int] = []
    with attached(
        settings(), lambda e: seen.append(e["step"]), tensorboard=tmp_path / "b", say=said.append
    ) as observe:
        observe({"event": "start", "run": "runs/r", "steps": 9, "step": 0})
        for step in (1, 2, 3):
            observe({"event": "step", "step": step, "loss": 1.0})
    assert seen == [0, 1, 2, 3]
    (warning,) = said
    assert warning.startswith("warning: TensorBoard was switched off, training goes on: ")
    assert "No space left" in warning


def test_wandb_gets_numbers_and_settings_and_nothing_private(
    settings: Settings, wandb: MagicMock, tmp_path: Path
) -> None:
    chosen = settings(eval_every=2)
    with attached(chosen, wandb="dosing") as observe:
        result = train(chosen, observe=observe)
    how = wandb.init.call_args.kwargs
    rows = [call.args[0] for call in wandb.log.call_args_list]
    assert (how["project"], how["mode"], how["resume"]) == ("dosing", "offline", "allow")
    assert how["id"] == how["name"] == Path(result.run).name
    assert how["dir"] == result.run
    assert how["config"]["learning_rate"] == chosen.learning_rate
    assert how["config"]["planned_steps"] == 6
    sent = json.dumps([how["config"], rows, wandb.summary], default=str)
    assert str(tmp_path) not in sent
    assert chosen.model not in sent and how["config"]["model"] == "tiny"
    hub = settings(model="mlx-community/Qwen3-0.6B-4bit")
    assert shared_settings(hub)["model"] == "mlx-community/Qwen3-0.6B-4bit"
    assert how["settings"].console == "off" and how["settings"].disable_git
    wandb.define_metric.assert_called_with("*", step_metric="step")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6
    assert [row["step"] for row in rows if "valid/loss" in row] == [0, 2, 4, 6]
    assert wandb.summary["valid_loss"] == result.valid_loss
    wandb.finish.assert_called_once_with(exit_code=0)
    wandb.login.assert_not_called()


def test_online_needs_a_login_before_anything_is_computed(
    settings: Settings, wandb: MagicMock
) -> None:
    online = settings(offline=False)
    with pytest.raises(KeyboardInterrupt), attached(online, wandb="p") as observe:
        wandb.login.assert_called_once()
        observe({"event": "start", "run": "runs/r", "steps": 9})
        raise KeyboardInterrupt
    # A run that does not end is marked.
    wandb.finish.assert_called_once_with(exit_code=1)
    wandb.login.return_value = False
    refused = pytest.raises(UsageError, match=r"not logged in.*wandb login, or --offline")
    with refused, attached(online, wandb="p"):
        pass


@pytest.mark.parametrize(
    ("package", "module"),
    [("wandb", "wandb"), ("tensorboard", "tensorboard.summary.writer.event_file_writer")],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    package: str, module: str, settings: Settings, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    asked: dict[str, Any] = {package: "p" if package == "wandb" else Path("board")}
    with pytest.raises(UsageError) as raised, attached(settings(), **asked):
        pass
    assert f"pip install {package}" in str(raised.value) and "\n" not in str(raised.value)
