"""`resume` as a user types it, and what `train` says when it is stopped."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main
from tests.crash.server import Server
from tests.crash.small_run import write_data

Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *argv: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "log.txt") as started:
        yield started


def stopped(server: Server, argv: list[object], runs: Path, number: int) -> tuple[int, str]:
    """A process of its own that gets a signal in the middle of its steps: exit code and output."""
    server.log.write_text("")
    trainer = server.start(*argv)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = list(runs.glob("2*/events.jsonl"))
        if logs and '"event": "step"' in logs[0].read_text():
            break
        time.sleep(0.01)
    trainer.kill(number)
    return trainer.wait(), server.log.read_text()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_run_prints_the_line_that_continues_it(
    number: int,
    code: int,
    capsys: Capture,
    server: Server,
    tiny_model_dir: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    flags = ("--rank", 2, "--steps", 80, "--batch-size", 4, "--keys", "self_attn.q_proj")
    places = ("--model", tiny_model_dir, "--data", data, "--out", tmp_path / "out", "--runs", runs)
    left, said = stopped(server, ["train", *places, *flags, "--offline"], runs, number)
    assert left == code, said
    (run,) = runs.iterdir()
    assert f"; continue with: mlx-itune resume {run}\n" in said and "error:" not in said
    assert not (tmp_path / "out").exists()

    code, out, err = call(capsys, "resume", run, "--json", "--offline")
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    assert (result["steps"], result["finished_before"], result["rewritten"]) == (80, False, False)
    assert (tmp_path / "out" / "adapters.safetensors").is_file()
    assert call(capsys, "resume", run.name[:12], "--runs", runs, "--offline")[0] == 0


def test_a_finished_run_says_so_and_a_changed_one_is_refused(
    capsys: Capture, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    flags = ("--rank", 2, "--steps", 2, "--batch-size", 4, "--keys", "self_attn.q_proj")
    places = ("--out", tmp_path / "out", "--runs", tmp_path / "runs")
    model = ("--model", tiny_model_dir, "--data", data)
    assert call(capsys, "train", *model, *places, *flags, "--offline")[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    code, out, err = call(capsys, "resume", run, "--offline")
    assert code == 0 and "nothing to do" in err and "adapter" in out
    code, out, err = call(capsys, "resume", run, "--offline", "--out", tmp_path / "again")
    assert code == 0 and "written again" in err
    again = (tmp_path / "again" / "adapters.safetensors").read_bytes()
    assert again == (tmp_path / "out" / "adapters.safetensors").read_bytes()

    (run / "result.json").unlink()
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text().replace("Yes", "No"))
    code, _, err = call(capsys, "resume", run, "--offline")
    assert code == 3 and "data.train.sha256 (train.jsonl) is " in err and err.count("\n") == 1
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("rank = 2", "rank = 4"))
    code, _, err = call(capsys, "resume", run, "--offline")
    assert code == 2 and "rank is 4, the run began with 2" in err
    for folder, said in ((tmp_path / "nowhere", "no such run"), (data, "is no run")):
        code, _, err = call(capsys, "resume", folder)
        assert code == 2 and said in err
